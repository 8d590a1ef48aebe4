"""How far a commit has got: in Git, live in etcd, enforced by every OPA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Final

from api.fleet import Fleet
from reconciler.agent.mirror import Mirror
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PolicyName
from reconciler.core.ports import KeyValue, KeyValueStore, Range, Source
from reconciler.core.records import Applied, Receipt

_KNOWN: Final = 10_000


class Sync(StrEnum):
    """The values of ``Policy-Sync``, and of ``?wait=`` but for ``none``."""

    PENDING = "pending"
    LIVE = "live"
    ACTIVE = "active"


@dataclass(slots=True)
class _Awaited:
    """A policy that every OPA is to enforce as it is in ``commit`` with one of these `Applied.digest`, or later."""

    policy: PolicyName
    commit: str
    digests: set[str]


class Progress:
    """Answers, and waits for, how far a commit has got."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace, mirror: Mirror, fleet: Fleet, source: Source) -> None:
        self._store = store
        self._keyspace = keyspace
        self._mirror = mirror
        self._fleet = fleet
        self._source = source
        self._known: set[tuple[str, str]] = set()
        self._fetched = -1.0
        self._fetching = asyncio.Lock()
        self._waits: set[asyncio.Timeout] = set()
        self._closing = False

    def close(self) -> None:
        """Every wait is over now, and will be from now on: the replica ends, and its callers are to have an answer."""
        self._closing = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _at_most(self, seconds: float) -> AsyncIterator[None]:
        """Raises `TimeoutError` after ``seconds``, and when the replica ends."""
        async with asyncio.timeout(0 if self._closing else seconds) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)

    async def reach(self, policy: PolicyName, commit: str, wanted: Sync, seconds: float) -> Sync:
        """Wait until ``wanted`` or the time is over; how far it is then. A policy that is held is waited for no
        longer: only another commit can help it."""
        reached = Sync.PENDING
        try:
            async with self._at_most(seconds):
                live = None if wanted is Sync.PENDING else await self._live(policy, commit)
                if live is None:
                    return reached
                reached = Sync.LIVE
                if wanted is Sync.ACTIVE:
                    wait = _Awaited(policy, live.commit, {live.digest})
                    await self._until(lambda: self._enforced(wait), self._fleet.changed)
                    reached = Sync.ACTIVE
        except (TimeoutError, RegopsError):
            return reached
        return reached

    async def known(self, commit: str) -> bool:
        """Whether the branch has such a commit, as far as the remote says now. Raises `TransientError`."""
        if await self._reaches(commit, commit):
            return True
        await self._fetch(monotonic())
        return await self._reaches(commit, commit)

    async def until_mirrored(self, commit: str, seconds: float) -> bool:
        """Wait until this replica's mirror contains the commit; ``False`` when the time is over before."""
        try:
            async with self._at_most(seconds):
                await self._mirrored(commit)
        except TimeoutError:
            return False
        return True

    async def _live(self, policy: PolicyName, commit: str) -> Applied | None:
        """What is applied, where the policy is live with it; ``None`` while it is held."""
        await self._mirrored(commit)
        held = Range(self._keyspace.held(policy), keys_only=True)
        read = await self._store.read(held, Range(self._keyspace.applied))
        return None if read.ranges[0] else _applied(read.ranges[1])

    async def _mirrored(self, commit: str) -> None:
        state = self._mirror.state
        while state is None or state.commit is None or not await self._contains(state.commit, commit):
            state = await self._mirror.wait_newer(state)

    async def _enforced(self, wait: _Awaited) -> bool:
        """By every OPA that answers for the policy, and by one at least; a silent one is a doubt."""
        receipts = self._fleet.answering_for(wait.policy)
        for receipt in receipts.values():
            if receipt is None or not await self._proves(receipt, wait):
                return False
        return bool(receipts)

    async def _proves(self, receipt: Receipt, wait: _Awaited) -> bool:
        """A later commit, or the very content. A receipt of the same commit may be of what was live before: what was
        held of a commit goes live later, and the commit stays the same."""
        commit, digest = receipt.enforced_revision, receipt.live_digest
        if commit in {None, "none"}:
            return False
        if commit != wait.commit:
            return await self._contains(str(commit), wait.commit)
        if digest is not None and digest not in wait.digests:  # what is applied may have changed once more since
            now = _applied((await self._store.read(Range(self._keyspace.applied))).ranges[0])
            wait.digests |= {now.digest} if now is not None and now.commit == wait.commit else set()
        return digest is None or digest in wait.digests

    async def _until(self, true: Callable[[], Awaitable[bool]], news: Callable[[], Awaitable[None]]) -> None:
        while True:
            waiting = asyncio.ensure_future(news())
            try:
                await asyncio.sleep(0)  # it listens from here on, so nothing is missed while looking
                if await true():
                    return
                await waiting
            finally:
                waiting.cancel()

    async def _contains(self, head: str, commit: str) -> bool:
        """Whether ``commit`` is in the history of ``head``; fetched when the head is not in this replica's mirror."""
        if head == commit or (head, commit) in self._known:
            return True
        found = await self._reaches(head, commit)
        if not found and not await self._reaches(head, head):
            await self._fetch(monotonic())
            found = await self._reaches(head, commit)
        if found:
            if len(self._known) > _KNOWN:
                self._known.clear()
            self._known.add((head, commit))
        return found

    async def refreshed(self) -> None:
        """Fetch what the remote has now; one fetch for all who ask meanwhile. Raises what the source raises."""
        await self._fetch(monotonic())

    async def _reaches(self, head: str, commit: str) -> bool:
        """``False`` too while this replica has no mirror."""
        try:
            return await self._source.contains(head, commit)
        except TransientError:
            return False

    async def _fetch(self, asked: float) -> None:
        """One at a time; whoever waited takes the fetch that began after it had asked."""
        async with self._fetching:
            if self._fetched < asked:
                began = monotonic()
                await self._source.fetch()
                self._fetched = began


def _applied(kvs: Sequence[KeyValue]) -> Applied | None:
    """``None`` too for what cannot be read."""
    try:
        return Applied.decode(kvs[0].value) if kvs else None
    except (ValueError, TypeError, KeyError):
        return None
