"""etcd in memory, with faults on demand. The contract suite keeps it honest.

Revisions, compaction, watches and leases as in etcd; lease time moves only by `InMemoryStore.advance`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field

from reconciler.core.errors import (
    CompactedError,
    DivergedError,
    RegopsError,
    StalledError,
    StoreError,
    UnknownOutcomeError,
)
from reconciler.core.ports import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Outcome,
    Put,
    Range,
    Read,
    Target,
    Transaction,
    WatchBatch,
)

_ABSENT = KeyValue("", b"", 0, 0)


@dataclass
class _Lease:
    ttl: int
    ends: float


@dataclass
class History:
    """Everything that a backup holds: `InMemoryStore.save` returns a copy, `restore` takes one."""

    revision: int = 1
    compacted: int = 0
    versions: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    leases: dict[int, _Lease] = field(default_factory=dict)

    def at(self, key: str, revision: int) -> KeyValue | None:
        """The key as of a revision, ``None`` where it is absent."""
        past = [event for event in self.versions.get(key, ()) if event.kv.mod_revision <= revision]
        return past[-1].kv if past and not past[-1].deleted else None

    def since(self, revision: int) -> list[Event]:
        """All events from a revision on, oldest first."""
        events = [e for past in self.versions.values() for e in past if e.kv.mod_revision >= revision]
        return sorted(events, key=lambda event: event.kv.mod_revision)

    def change(self, operations: Sequence[Put | Delete]) -> None:
        """All operations at the next revision; deleting what is absent changes nothing."""
        held = {each.key: self.at(each.key, self.revision) for each in operations}
        effective = [each for each in operations if isinstance(each, Put) or held[each.key]]
        self.revision += bool(effective)
        for each in effective:
            created = (held[each.key] or _ABSENT).create_revision or self.revision
            if isinstance(each, Put):
                event = Event(KeyValue(each.key, each.value, created, self.revision, each.lease))
            else:
                event = Event(KeyValue(each.key, b"", 0, self.revision), deleted=True)
            self.versions[each.key].append(event)

    def end_lease(self, lease: int) -> None:
        """Forget the lease and delete its keys, at one revision."""
        del self.leases[lease]
        self.change([Delete(key) for key in self.versions if (self.at(key, self.revision) or _ABSENT).lease == lease])


class InMemoryStore:
    """Implements `KeyValueStore`.

    Faults: ``fail("commit", error, …)`` lets the next calls of a method raise; ``hold("commit")`` lets all its calls
    wait until the returned event is set; ``away`` is an etcd out of reach, ``full`` the NOSPACE alarm; ``lose_answer``
    and ``lose_request`` make the next commit an unknown outcome; ``restore`` brings a state of `save` back.
    ``calls`` counts calls by method. A watch gives a sign of life every ``pulse`` real seconds.
    """

    def __init__(
        self, *, max_request_bytes: int = 2 * 1024 * 1024, max_operations: int = 128, pulse: float = 0.05
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.away = False
        self.full = False
        self._max_request_bytes = max_request_bytes
        self._max_operations = max_operations
        self._pulse = pulse
        self._now = 0.0
        self._history = History()
        self._restores = 0
        self._went_back = False
        self._leases_granted = 0
        self._lost: str | None = None
        self._faults: dict[str, deque[RegopsError]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._watchers: set[asyncio.Event] = set()

    # What others do.

    @property
    def revision(self) -> int:
        """The store's newest revision."""
        return self._history.revision

    def put(self, key: str, value: bytes) -> int:
        """Write by another hand; the new revision."""
        return self._change([Put(key, value)])

    def delete(self, key: str) -> int:
        """Delete by another hand."""
        return self._change([Delete(key)])

    def values(self, prefix: str = "") -> dict[str, bytes]:
        """What is there now."""
        found = {key: self._history.at(key, self.revision) for key in self._history.versions if key.startswith(prefix)}
        return {key: kv.value for key, kv in sorted(found.items()) if kv}

    def compact(self, revision: int) -> None:
        """Forget what was overwritten before ``revision``."""
        assert self._history.compacted < revision <= self.revision
        self._history.compacted = revision

    def advance(self, seconds: float) -> None:
        """Let lease time pass."""
        self._now += seconds
        for lease in [each for each, known in self._history.leases.items() if known.ends <= self._now]:
            self._history.end_lease(lease)
        self._wake()

    def save(self) -> History:
        """A backup."""
        return copy.deepcopy(self._history)

    def restore(self, history: History) -> None:
        """Go back to a backup: told once to who reads, and to every watch."""
        self._history = copy.deepcopy(history)
        self._restores += 1
        self._went_back = True
        self._wake()

    def lose_answer(self) -> None:
        """The next commit happens, and nobody hears of it."""
        self._lost = "answer"

    def lose_request(self) -> None:
        """The next commit does not happen, and nobody hears of that."""
        self._lost = "request"

    def fail(self, method: str, *errors: RegopsError) -> None:
        """Let the next ``len(errors)`` calls of a method raise these."""
        self._faults[method].extend(errors)

    def hold(self, method: str) -> asyncio.Event:
        """Let calls of a method wait until the event is set."""
        return self._gates.setdefault(method, asyncio.Event())

    # The port.

    async def read(self, *ranges: Range, revision: int = 0) -> Read:
        await self._called("read")
        self._check_not_back()
        if revision > self.revision:
            raise DivergedError(f"revision {revision} does not exist", reason="StoreDiverged")
        if 0 < revision < self._history.compacted:
            raise CompactedError("the revision is compacted", compact_revision=0)
        at = revision or self.revision
        return Read(self.revision, tuple(self._range(each, at) for each in ranges), raft_term=2)

    async def commit(self, transaction: Transaction) -> Outcome:
        await self._called("commit")
        lost, self._lost = self._lost, None
        if lost == "request":
            raise UnknownOutcomeError("the request was lost", reason="UnknownOutcome")
        self._refuse(transaction)
        succeeded = all(self._holds(compare) for compare in transaction.compares)
        if succeeded:
            self._check_leases(transaction)
            self._change(transaction.operations)
        if lost == "answer":
            raise UnknownOutcomeError("the answer was lost", reason="UnknownOutcome")
        if not succeeded:
            self._check_not_back()
        return Outcome(succeeded, self.revision)

    @contextlib.asynccontextmanager
    async def watch(self, *ranges: Range, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        self.calls["watch"] += 1
        batches = self._batches(ranges, from_revision)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def grant(self, ttl: int) -> int:
        await self._called("grant")
        if self.full:
            raise StalledError("the database is full", reason="NoSpace")
        self._leases_granted += 1
        self._history.leases[self._leases_granted] = _Lease(ttl, self._now + ttl)
        return self._leases_granted

    async def keep_alive(self, lease: int) -> int:
        await self._called("keep_alive")
        if lease not in self._history.leases:
            return 0
        known = self._history.leases[lease]
        known.ends = self._now + known.ttl
        return known.ttl

    async def revoke(self, lease: int) -> None:
        await self._called("revoke")
        if lease in self._history.leases:
            self._history.end_lease(lease)
            self._wake()

    # Below.

    async def _called(self, method: str) -> None:
        self.calls[method] += 1
        if method in self._gates:
            await self._gates[method].wait()
        if self._faults[method]:
            raise self._faults[method].popleft()
        if self.away:
            raise StoreError("etcd is away", reason="StoreUnavailable")

    def _check_not_back(self) -> None:
        went_back, self._went_back = self._went_back, False
        if went_back:
            raise DivergedError("etcd went back", reason="StoreDiverged")

    def _change(self, operations: Sequence[Put | Delete]) -> int:
        self._history.change(operations)
        self._wake()
        return self.revision

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def _range(self, each: Range, revision: int) -> tuple[KeyValue, ...]:
        keys = sorted(key for key in self._history.versions if _covers(each, key))
        found = [kv for key in keys if (kv := self._history.at(key, revision))]
        if not each.keys_only:
            return tuple(found)
        return tuple(KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.lease) for kv in found)

    def _holds(self, compare: Compare) -> bool:
        kv = self._history.at(compare.key, self.revision) or _ABSENT
        return compare.revision == (kv.create_revision if compare.target is Target.CREATE else kv.mod_revision)

    def _refuse(self, transaction: Transaction) -> None:
        puts = [each for each in transaction.operations if isinstance(each, Put)]
        size = sum(len(each.key.encode()) + len(each.value) for each in puts)
        most = max(len(transaction.operations), len(transaction.compares))
        if size > self._max_request_bytes or most > self._max_operations:
            raise StalledError("etcd refuses a request of this size", reason="TooLarge")
        repeated = Counter(each.key for each in transaction.operations)
        if any(repeated[each.key] > 1 for each in puts):
            raise StalledError("a key is written twice in one transaction", reason="StoreRefused")
        if self.full and puts:
            raise StalledError("the database is full", reason="NoSpace")

    def _check_leases(self, transaction: Transaction) -> None:
        leases = {each.lease for each in transaction.operations if isinstance(each, Put) and each.lease}
        if leases - self._history.leases.keys():
            raise StoreError("the lease does not exist", reason="LeaseNotFound")

    async def _batches(self, ranges: Sequence[Range], start: int) -> AsyncGenerator[WatchBatch, None]:
        restores, woken = self._restores, asyncio.Event()
        self._watchers.add(woken)
        try:
            while True:
                woken.clear()
                if not self.away:
                    if restores != self._restores or start > self.revision + 1:
                        raise DivergedError("etcd went back behind the watched revision", reason="StoreDiverged")
                    if start < self._history.compacted:
                        raise CompactedError(f"{start} is compacted", compact_revision=self._history.compacted)
                    events = [e for e in self._history.since(start) if any(_covers(r, e.kv.key) for r in ranges)]
                    start = self.revision + 1
                    yield WatchBatch(events[-1].kv.mod_revision if events else self.revision, tuple(events))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), self._pulse)
        finally:
            self._watchers.discard(woken)


def _covers(each: Range, key: str) -> bool:
    return key.startswith(each.key) if each.prefix else key == each.key
