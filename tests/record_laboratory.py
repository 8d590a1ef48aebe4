"""Histories as lists of steps, played by a world in memory, where everything can go wrong."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Final

import pytest
from fakes.record import InMemoryVersions
from fakes.source import InMemorySource
from record_world import Site, World

from reconciler import record_ledger, record_writer
from reconciler.core import ledger
from reconciler.core.errors import TransientError
from reconciler.core.versions import Retention

AWAY: Final = TransientError("away", reason="RecordUnavailable")
ALL: Final = Retention(1000, 1000)


@contextlib.contextmanager
def small_steps() -> Iterator[None]:
    """Pages and batches of a few, so that short histories have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "PAGE_COMMITS", 3)
        patch.setattr(ledger, "PAGE_VERSIONS", 4)
        patch.setattr(record_ledger, "PAGE_COMMITS", 3)
        patch.setattr(record_ledger, "_BATCH", 2)
        patch.setattr(record_writer, "_BATCH", 2)
        yield


async def act(world: World, kind: str, *what: Any) -> None:
    """One thing that people or the engine do."""
    match kind, what:
        case "put", (name, text):
            world.put({name: text})
        case "move", (old, new) if old != new:
            world.put({old: None, new: world.commits[world.head].texts.get(old)})
        case "merge" | "turn", (name, text):
            world.merge({name: text}, turned=kind == "turn")
        case "rewind", (steps,):
            world.rewind(steps)
        case "record", (some,):
            await world.record(*(world.sites[each] for each in some if each < len(world.sites)))
        case _, (number, *rest) if kind in {"look", "pass", "arrive", "crash"}:
            await _act_at(world, kind, world.sites[number % len(world.sites)], *rest)


async def _act_at(world: World, kind: str, site: Site, what: Any = ()) -> None:
    if kind in {"look", "arrive"}:
        await world.look(site)
    if kind in {"pass", "arrive"}:
        world.run_pass(site, sorted(what))
    if kind == "crash":
        await world.crash(site, what)


class Laboratory:
    """Mirrors and a database in memory, where everything can go wrong."""

    def __init__(self, keep: Retention, sites: int) -> None:
        self.store = _Fragile(self)
        branch = InMemorySource()
        self.world = World(branch, [_Mirror(branch) for _ in range(sites)], self.store, keep)
        self._saved: Any = None

    async def run(self, actions: list[Any], *, whole: bool) -> None:
        world = self.world
        world.put({"platform": "first"})
        for site in world.sites:
            await world.look(site)
        for kind, *what in actions:
            await act(world, kind, *what)
            self._suffer(kind, *what)
        self.store._faults.clear()
        self.store.vanish.clear()
        await world.settle()
        await world.check(whole=whole)

    def lose(self, what: str) -> None:
        store = self.store
        self.world.hear()
        self.world.told.clear()
        if what in {"everything", "versions"}:
            store.stored.clear()
        if what in {"everything", "pages"}:
            store._pages.clear()
        if what in {"everything", "bookmark"}:
            store._mark = None
        if what != "everything":  # nobody would look before the next start
            for site in self.world.sites:
                site.noted.clear()
                site.recorder = self.world._recorder(site.source, site.life)

    def _suffer(self, kind: str, *what: Any) -> None:
        store, world = self.store, self.world
        match kind:
            case "fault":
                store.fail(*what, AWAY)
            case "lose":
                self.lose(*what)
            case "vanish":
                store.vanish.add(*what)
            case "save":
                self._saved = copy.copy(store.stored), copy.copy(store._pages), store._mark, copy.copy(world.told)
            case "restore" if self._saved:
                stored, pages, store._mark, told = self._saved
                store.stored, store._pages, world.told = copy.copy(stored), copy.copy(pages), copy.copy(told)


class _Fragile(InMemoryVersions):
    """Somebody drops the database just before a call, while others are under way."""

    def __init__(self, laboratory: Laboratory) -> None:
        super().__init__()
        self._laboratory = laboratory
        self.vanish: set[str] = set()

    async def _called(self, method: str) -> None:
        await super()._called(method)
        if method in self.vanish:
            self.vanish.discard(method)
            self._laboratory.lose("everything")


class _Mirror(InMemorySource):
    """Another mirror of the same branch: it knows what it fetched."""

    def __init__(self, branch: InMemorySource) -> None:
        super().__init__()
        self._other = branch
        self._commits, self._blobs = branch._commits, branch._blobs

    async def fetch(self, *, told: bool = True) -> str:
        self.head = self._other.head
        return await super().fetch(told=told)
