"""The mirror: etcd's applied commit, held whole in memory, by watching one key.

It knows nothing of OPA; an API replica reads the live policy from it too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final, NoReturn, Protocol

from reconciler.agent.latest import Latest
from reconciler.agent.reading import Head, Reader, UnreadableError, head_of
from reconciler.agent.scope import ALL, Scope
from reconciler.agent.state import MirrorPolicy, MirrorState, Order, changed_since, goes_back
from reconciler.core.errors import CompactedError, DivergedError, RegopsError, StalledError, TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PolicyName, policy_name
from reconciler.core.ports import KeyValueStore, Range, WatchBatch
from reconciler.core.records import Applied

SILENCE: Final = 5.0
"""Seconds without a sign of life after which the mirror calls itself stale."""
_BACKOFF_FIRST: Final = 0.1
_BACKOFF_LAST: Final = 5.0

log = logging.getLogger(__name__)


class MirrorObserver(Protocol):
    """Told what the mirror does, for metrics. Label values are constant words."""

    def advanced(self, how: str, seconds: float, policies_read: int) -> None:
        """A newer state is held. ``how``: ``delta``, ``snapshot`` or ``empty``; ``seconds`` for the reading."""

    def kept(self, reason: str) -> None:
        """The former state stays. ``reason``: ``applying``, ``older``, ``unreadable`` or ``nothing_applied``."""

    def lost(self, error: RegopsError) -> None:
        """A read or the watch failed; it is tried again."""

    def resumed(self) -> None:
        """The watch goes on after its connection was lost: the store may be another one by now."""


class _Unobserved:
    def advanced(self, how: str, seconds: float, policies_read: int) -> None:
        pass

    def kept(self, reason: str) -> None:
        pass

    def lost(self, error: RegopsError) -> None:
        pass

    def resumed(self) -> None:
        pass


class Backoff:
    """Delays that double up to a bound, with full jitter, so that a fleet does not come back in step."""

    def __init__(self, first: float = _BACKOFF_FIRST, last: float = _BACKOFF_LAST) -> None:
        self._first = first
        self._last = last
        self._bound = first

    def reset(self) -> None:
        """Things work again: the next delay is the first."""
        self._bound = self._first

    async def sleep(self) -> None:
        """Wait for the next delay, at least half of its bound."""
        bound, self._bound = self._bound, min(self._last, self._bound * 2)
        await asyncio.sleep(bound * random.uniform(0.5, 1.0))  # noqa: S311 no secret


class Mirror:
    """Keeps `state` equal to the applied commit, within ``scope``; run `run` as a task.

    A state with a lower order than the one served is taken only from an ``applied`` that was written after this mirror
    connected: a restored etcd moves nobody back, a rebuilt one and a rewritten branch are followed.
    """

    def __init__(
        self,
        store: KeyValueStore,
        keyspace: Keyspace | None = None,
        scope: Scope = ALL,
        *,
        observer: MirrorObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keyspace = keyspace or Keyspace()
        self._scope = scope
        self._reader = Reader(store, self._keyspace, scope)
        self._served: Order | None = None
        self._observer = observer or _Unobserved()
        self._clock = clock
        self._latest = Latest[MirrorState]()
        self._backoff = Backoff()
        self._started = clock()
        self._heard: float | None = None

    @property
    def state(self) -> MirrorState | None:
        """The newest state, ``None`` until the first one is whole."""
        return self._latest.value

    async def wait_newer(self, than: MirrorState | None) -> MirrorState:
        """The state as soon as it is another one than ``than``. Has no deadline of its own."""
        return await self._latest.wait_newer(than)

    def never_below(self, order: Order | None) -> None:
        """Before `run`: the order of what is served already from another source, the copy on disk."""
        self._served = order

    @property
    def stale_since(self) -> float | None:
        """The clock's time of the last sign of life (or of the start) while etcd is out of reach, else ``None``."""
        if self._heard is None:
            return self._started
        return self._heard if self._clock() - self._heard > SILENCE else None

    async def run(self) -> NoReturn:
        """Follow etcd until cancelled; whatever happens to etcd, the newest whole state stays available."""
        while True:
            try:
                await self._session()
            except RegopsError as error:
                self._failed(error)
            await self._backoff.sleep()

    async def _session(self) -> None:
        """One connection: a first read, then every event after it. Ends only by raising."""
        head = await self._reader.head()
        self._hear()
        connected = head.revision
        watched = Range(self._keyspace.applied)
        async with self._store.watch(watched, from_revision=connected + 1) as batches:
            settled = await self._advance([head], connected)
            async for batch in batches:
                self._hear()
                settled = await self._take(batch, settled, connected)

    async def _take(self, batch: WatchBatch, settled: bool, connected: int) -> bool:
        """React to one batch; ``False`` when the newest state could not be read whole, so look at the next batch."""
        if batch.resumed:
            self._observer.resumed()
            return await self._advance(None, connected)
        puts = [event.kv for event in batch.events if not event.deleted]
        if not puts:
            return settled or await self._advance(None, connected)
        try:
            heads = [head_of(kv.mod_revision, kv) for kv in puts]
        except UnreadableError as error:
            return self._unreadable(error)
        return await self._advance(heads, connected)

    async def _advance(self, heads: Sequence[Head] | None, connected: int) -> bool:
        """Go to the last of ``heads`` (or the newest), repeating reads that fail. ``False`` when it is unreadable."""
        while True:
            try:
                heads = heads or [await self._reader.head()]
                await self._go(heads, connected)
            except (DivergedError, StalledError):
                raise
            except UnreadableError as error:
                return self._unreadable(error)
            except CompactedError as error:
                self._failed(error)
                heads = None
                await self._backoff.sleep()
            except TransientError as error:
                self._failed(error)
                await self._backoff.sleep()
            else:
                self._hear()
                self._backoff.reset()
                return True

    async def _go(self, heads: Sequence[Head], connected: int) -> None:
        head, former = heads[-1], self.state
        if head.applied is None:
            self._nothing_applied(head)
        elif former is not None and former.applied is not None and former.applied.id == head.applied.id:
            return
        elif goes_back(self._served, head.applied) and head.written_at <= connected:
            self._observer.kept("older")
            log.warning("an older commit is not followed", extra={"commit": head.applied.commit})
        else:
            await self._follow(head, head.applied, [item.applied for item in heads if item.applied])

    async def _follow(self, head: Head, applied: Applied, history: Sequence[Applied]) -> None:
        """While an apply is under way the newest state is a mixture; the one at ``applied`` itself never is."""
        begun, former = self._clock(), self.state
        revision = head.written_at if head.applying else head.revision
        policies = dict(former.policies) if former else {}
        changed = changed_since(former, history)
        try:
            if changed is None:
                policies, count = await self._reader.whole(revision, policies)
            else:
                count = await self._update(policies, changed, revision)
        except CompactedError:
            if not head.applying:
                raise
            self._observer.kept("applying")
            return
        self._publish(MirrorState(applied, revision, MappingProxyType(policies)))
        how = "snapshot" if changed is None else "delta"
        self._observer.advanced(how, self._clock() - begun, count)
        log.info("mirror advanced", extra={"commit": applied.commit, "how": how, "policies_read": count})

    async def _update(self, policies: dict[PolicyName, MirrorPolicy], changed: frozenset[str], revision: int) -> int:
        try:
            names = [name for name in map(policy_name, sorted(changed)) if self._scope.contains(name)]
        except ValueError as error:
            raise UnreadableError(f"an apply names an impossible policy: {error}") from error
        read = await self._reader.only(names, revision)
        for name, policy in read.items():
            if policy is None:
                policies.pop(name, None)
            else:
                policies[name] = policy
        return len(read)

    def _nothing_applied(self, head: Head) -> None:
        if self.state is None and self._served is None and not head.applying:
            self._publish(MirrorState(None, head.revision))
            self._observer.advanced("empty", 0.0, 0)
        elif self.state is None or self.state.applied is not None:
            self._observer.kept("applying" if head.applying else "nothing_applied")

    def _publish(self, state: MirrorState) -> None:
        if state.applied is not None:
            self._served = state.applied.order
        self._latest.set(state)

    def _hear(self) -> None:
        self._heard = self._clock()

    def _unreadable(self, error: UnreadableError) -> bool:
        self._observer.kept("unreadable")
        log.warning("the applied state cannot be read whole", extra={"error": str(error)})
        return False

    def _failed(self, error: RegopsError) -> None:
        self._observer.lost(error)
        log.warning("etcd could not be followed", extra={"reason": error.reason, "error": str(error)})
