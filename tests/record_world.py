"""Datacentres that follow one branch and record into one database, and what a plain reading of it all comes to.

The oracle knows every commit by its whole content and every pass by what it left live. It asks the record only in which
order commits that a rewritten branch has brought were taken up, and checks that order too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from reconciler.core.errors import RegopsError
from reconciler.core.ledger import Page
from reconciler.core.model import Content, PolicyName
from reconciler.core.ports import Source
from reconciler.core.record_ports import VersionStore
from reconciler.core.versions import APPLIED_TIMES, COMMIT_GONE, Hold, Retention, Seen, State, StoredVersion
from reconciler.metrics import RecorderMetrics
from reconciler.recorder import Recorder
from reconciler.settings import LoopSettings

Texts = Mapping[str, str]
"""A commit's policies: the text of each one's rego.rego, ``""`` for a folder without."""


class History(Protocol):
    """How the branch is written: by `InMemorySource` or at a real remote."""

    def commit(
        self, files: Mapping[str, bytes | None], *, message: str = "", on: str | None = None, merge: str | None = None
    ) -> str: ...

    def force_push(self, commit: str) -> None: ...


class Died(BaseException):
    """The process was killed."""


class Life:
    """Ends after so many steps; a call has one before it takes effect and one before its answer is heard."""

    def __init__(self) -> None:
        self.left = -1

    def step(self) -> None:
        if self.left == 0:
            raise Died
        self.left -= 1

    def mortal(self, inner: Any) -> Any:
        """The same object, as long as the life lasts."""
        life = self

        class Mortal:
            def __getattr__(self, name: str) -> Any:
                async def call(*words: Any, **named: Any) -> Any:
                    life.step()
                    result = await getattr(inner, name)(*words, **named)
                    life.step()
                    return result

                return call

        return Mortal()


@dataclass(frozen=True)
class Commit:
    parent: str | None
    texts: Texts
    subject: str


@dataclass(frozen=True)
class Pass:
    seen: Seen
    live: Mapping[str, str]


@dataclass
class Site:
    """One datacentre: what its mirror and its etcd have, and its recorder."""

    source: Source
    life: Life
    recorder: Recorder
    head: str = ""
    applied: str | None = None
    live: Mapping[str, str] = field(default_factory=dict)
    noted: list[Pass] = field(default_factory=list)

    def done(self) -> Iterator[Pass]:
        """The passes that were recorded since this was asked last."""
        waiting = [each.seen.at for each in self.recorder._waiting]
        for each in [each for each in self.noted if each.seen.at not in waiting]:
            self.noted.remove(each)
            yield each


class World:
    def __init__(self, history: History, sources: Sequence[Source], store: VersionStore, keep: Retention) -> None:
        self.history = history
        self.store = store
        self.keep = keep
        self.commits: dict[str, Commit] = {}
        self.head = ""
        self.passes: list[Pass] = []
        self.told: list[Pass] = []
        self.rewritten = False
        self.sites = [Site(source, life := Life(), self._recorder(source, life)) for source in sources]

    def _recorder(self, source: Source, life: Life) -> Recorder:
        metrics = RecorderMetrics(CollectorRegistry())
        store, source = life.mortal(self.store), life.mortal(source)
        return Recorder(source, store, keep=self.keep, metrics=metrics, settings=LoopSettings())

    # What people do to the branch.

    def put(self, changes: Mapping[str, str | None], *, on: str | None = None, merge: str | None = None) -> str:
        """Commit policies; ``None`` deletes one, ``""`` leaves a folder that is none."""
        base = self.head if on is None else on
        texts = dict(self.commits[base].texts) if base else {}
        files: dict[str, bytes | None] = {}
        for name, text in changes.items():
            texts.pop(name, None)
            files[f"policies/{name}"] = None
            if text is not None:
                texts[name] = text
        commit_files = {**files, **dict(_file(name, text) for name, text in changes.items() if text is not None)}
        subject = f"Merge pull request #{len(self.commits)} from ann/x" if merge else f"change {len(self.commits)}"
        commit = self.history.commit(commit_files, message=f"{subject}\n\nbody", on=on, merge=merge)
        self.commits[commit] = Commit(base or None, texts, subject)
        self.head = commit
        return commit

    def merge(self, changes: Mapping[str, str | None], *, turned: bool) -> None:
        """Merge a branch with these changes; ``turned``: the other way round, so that its commits are the line now."""
        base = self.head
        side = self.put(changes)
        other = self.put({"platform": f"main {len(self.commits)}"}, on=base)
        if turned:
            self.rewritten = True
            self.put({"platform": self.commits[other].texts["platform"]}, on=side, merge=other)
        else:
            self.put(changes, on=other, merge=side)

    def rewind(self, steps: int) -> None:
        """Force the branch back by some commits."""
        line = self.line(self.head)
        self.head = line[max(0, len(line) - 1 - steps)]
        self.history.force_push(self.head)
        self.rewritten = True

    # What each datacentre does.

    async def look(self, site: Site) -> None:
        site.head = await site.source.fetch()

    def run_pass(self, site: Site, held: Sequence[str]) -> None:
        """A pass over what the mirror has; of the policies held, what is live stays."""
        texts = self.commits[site.head].texts
        stay = {*held, *(name for name, text in texts.items() if not text)}
        live = {name: text for name, text in texts.items() if name not in stay}
        live |= {name: text for name in stay if (text := site.live.get(name) or self._last_valid(site.head, name))}
        changed = {
            PolicyName(name): None if name not in live else _etag(live[name])
            for name in sorted({*live, *site.live})
            if live.get(name) != site.live.get(name)
        }
        number = len(self.passes)
        at = f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}.000Z"
        holds = {PolicyName(name): Hold("ValidationFailed", "no") for name in sorted(stay)}
        each = Pass(Seen(site.head, site.applied, at, changed, holds), live)
        self.passes.append(each)
        site.applied, site.live = site.head, live
        site.noted.append(each)
        site.recorder.note(each.seen)

    def _last_valid(self, head: str, name: str) -> str | None:
        """What is live of a policy that cannot be, where nothing was: the newest former text."""
        texts = [self.commits[commit].texts.get(name) for commit in self.line(head)]
        return next((text for text in reversed(texts) if text and text != texts[-1]), None)

    async def record(self, *sites: Site) -> None:
        async def one(site: Site) -> None:
            try:
                await site.recorder.catch_up()
            except RegopsError:
                return

        await asyncio.gather(*(one(site) for site in sites))
        self.hear()

    async def crash(self, site: Site, steps: int) -> bool:
        """The process is killed after so many steps of recording, and another takes its place. Whether it died in the
        middle of something."""
        site.life.left = steps
        died = False
        try:
            await self.record(site)
        except Died:
            died = True
        self.hear()
        site.noted.clear()
        site.life = Life()
        site.recorder = self._recorder(site.source, site.life)
        return died

    def hear(self) -> None:
        """Note which passes were recorded."""
        for site in self.sites:
            self.told.extend(site.done())

    async def settle(self) -> None:
        """Everybody sees the branch as it is, and records."""
        for site in self.sites:
            await self.look(site)
            self.run_pass(site, ())
            await self.record(site)  # may find that the record is damaged
            await site.recorder.catch_up()
        self.hear()

    @property
    def heard(self) -> bool:
        """Whether every pass was recorded, and none was lost with its process."""
        return len(self.told) == len(self.passes)

    # What a plain reading comes to.

    def line(self, head: str | None) -> list[str]:
        found: list[str] = []
        while head:
            found.append(head)
            head = self.commits[head].parent
        return found[::-1]

    def changes(self, commit: str) -> Texts | Mapping[str, str | None]:
        """What a commit made of which policy, against its first parent."""
        parent, now = self.commits[commit].parent, self.commits[commit].texts
        before = self.commits[parent].texts if parent else {}
        return {name: now.get(name) for name in {*now, *before} if now.get(name) != before.get(name)}

    def numbered(self, order: Sequence[str]) -> dict[str, dict[int, tuple[str, str | None]]]:
        """Commit and text of every version of every policy, for commits in this order."""
        found: dict[str, dict[int, tuple[str, str | None]]] = defaultdict(dict)
        for commit in order:
            for name, text in self.changes(commit).items():
                found[name][len(found[name]) + 1] = (commit, text)
        return found

    def version_at(self, commit: str, name: str) -> str | None:
        """The commit that brought the version of a policy that ``commit`` has."""
        return next((each for each in reversed(self.line(commit)) if name in self.changes(each)), None)

    async def order(self) -> list[str]:
        """The order that the record has given to the commits, checked: the only order there can be where nobody
        rewrote the branch, and otherwise one in which every commit comes once, after its parent."""
        mark = await self.store.bookmark()
        pages: list[Page] = []
        position = 1
        while found := await self.store.pages(mark.generation, position):
            pages.extend(found)
            position = found[-1].end
        order = [entry.commit for page in pages for entry in page.entries]
        line = self.line(self.head)
        if not self.rewritten:
            assert order == line
        assert len(set(order)) == len(order)
        assert set(line) <= set(order) <= {commit for each in self.passes for commit in self.line(each.seen.commit)}
        places = {commit: place for place, commit in enumerate(order)}
        parents = [(commit, self.commits[commit].parent) for commit in order]
        assert all(places[parent] < places[commit] for commit, parent in parents if parent)
        assert mark.position == len(order) + 1
        return order

    async def check(self, *, whole: bool) -> None:
        """The record is what a plain reading says. ``whole``: nothing was lost of it on the way."""
        order = await self.order()
        for name, plain in self.numbered(order).items():
            policy = PolicyName(name)
            stored = {each.version: each for each in await self.store.versions(policy, limit=1000)}
            assert max(stored) == max(plain)
            for number in stored:
                one = await self.store.version(policy, number)
                assert one is not None
                self._check_version(name, one, *plain[number], order)
            kinds = [each.state is State.APPLIED for each in stored.values()]
            assert kinds.count(True) <= self.keep.applied
            assert kinds.count(False) <= self.keep.others
            if self.keep.others > len(plain):
                assert stored.keys() == plain.keys()
            self._check_told(name, {each.info.commit: each for each in stored.values()}, plain, whole=whole)

    def _check_version(
        self, name: str, stored: StoredVersion, commit: str, text: str | None, order: Sequence[str]
    ) -> None:
        version = stored.version
        known = self.commits[commit]
        assert version.info.commit == commit
        if version.reason == COMMIT_GONE:
            assert commit not in self.line(self.head)
            assert not self.heard, "who had it has died"
            return
        assert version.info.subject == known.subject
        assert stored.content == (Content(text.encode()) if text else None)
        assert version.deleted == (text is None)
        assert (version.pull_request is not None) == known.subject.startswith("Merge")
        for at in version.applied_at:
            (then,) = [each for each in self.passes if each.seen.at == at]
            assert then.live.get(name) == text, "it was live at that time"
            assert version.position <= order.index(then.seen.commit) + 1, "it was there at that time"
        if version.state is State.APPLIED and not version.inferred:
            assert version.applied_at
        if version.state is State.HELD and text != "":
            assert any(
                name in each.seen.held and self.version_at(each.seen.commit, name) == commit for each in self.passes
            )
        if text == "":
            assert version.state is State.HELD

    def _check_told(self, name: str, stored: Mapping[str, Any], plain: Mapping[int, Any], *, whole: bool) -> None:
        """What recorded passes told stands in the record, and is not inferred."""
        numbers = {commit: number for number, (commit, _) in plain.items()}
        for each in self.told:
            seen = each.seen
            newest = self.version_at(seen.commit, name)
            between = set(self.line(seen.commit)) - set(self.line(seen.previous)) if seen.previous else set()
            if self.keep.others > len(plain):
                assert not any(stored[commit].inferred for commit in between & stored.keys())
            if newest is None:
                continue
            if newest in stored and name in seen.held and newest in between:
                assert stored[newest].state is not State.SUPERSEDED
            if name in seen.changed and name not in seen.held:
                alike = {commit for commit, text in plain.values() if text == plain[numbers[newest]][1]}
                versions = [stored[commit] for commit in alike & stored.keys()]  # a rewritten branch has it twice
                if newest in stored:
                    assert any(version.state is State.APPLIED and not version.inferred for version in versions)
                    if whole and self.heard:
                        assert any(
                            seen.at in version.applied_at or len(version.applied_at) == APPLIED_TIMES
                            for version in versions
                        )
                elif whole:
                    applied = [each.version for each in stored.values() if each.state is State.APPLIED]
                    assert len(applied) >= self.keep.applied
                    assert len([n for n in applied if n > numbers[newest]]) >= self.keep.applied - 1, "one may be live"
        last = self.passes[-1]
        if whole and self.heard and name not in last.seen.held and self.version_at(last.seen.commit, name):
            texts = {text for number, (_, text) in plain.items() if number in {v.version for v in stored.values()}}
            assert last.live.get(name) in texts, "what is live now is kept"


def _file(name: str, text: str) -> tuple[str, bytes]:
    return (f"policies/{name}/rego.rego", text.encode()) if text else (f"policies/{name}/README.md", b"?")


def _etag(text: str) -> str:
    return Content(text.encode()).blob_ids().etag
