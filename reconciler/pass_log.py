"""The log of passes in etcd, for every replica to show: written by the leader beside the passes, never in their way.

Every write compares the leader key, as those of a pass do: who leads no more writes no more. The last entries are kept.
A pass whose leader dies before its entry is written has none: what it changed is in the audit trail and in the
policies' history all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

from reconciler.core.errors import ConflictError, RegopsError, TransientError
from reconciler.core.fleet import FleetState
from reconciler.core.following import Following
from reconciler.core.keyspace import Keyspace
from reconciler.core.passes import APPLIED, FAILED, PassRecord
from reconciler.core.ports import Delete, Fence, KeyValue, KeyValueStore, Put, Range, Source, Transaction
from reconciler.core.records import Applied
from reconciler.core.silence import FORGET_AFTER
from reconciler.core.times import rfc3339
from reconciler.metrics import FleetMetrics
from reconciler.pass_entries import entry_of, told
from reconciler.reconcile import PassResult
from reconciler.triggers import Trigger

log = logging.getLogger(__name__)

KEPT: Final = 200
"""Entries that are kept, the newest."""
_WAITING: Final = 100
_FAILURE_GAP: Final = timedelta(seconds=30)
"""How often at most the entry of a failure that repeats itself is written."""
_RETRY_SECONDS: Final = 1.0


class PassLog:
    """`applied` and `failed` are told by the loop; `run` writes while this replica leads."""

    def __init__(
        self,
        store: KeyValueStore,
        keyspace: Keyspace,
        source: Source,
        *,
        leader: str,
        metrics: FleetMetrics,
        keep: int = KEPT,
        forget_after: timedelta = FORGET_AFTER,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._source = source
        self._leader = leader
        self._keep = keep
        self._forget_after = forget_after
        self._clock = clock
        self._waiting: deque[tuple[PassRecord, PassResult | None]] = deque(maxlen=_WAITING)
        self._filled = asyncio.Event()
        self._names: deque[str] = deque()
        self._newest: PassRecord | None = None
        self._newest_written = datetime.min.replace(tzinfo=UTC)
        self._fence: Fence | None = None
        self._fleet = FleetState(keyspace)
        self._following = Following(self._fleet, took=metrics.took)
        self._metrics = metrics
        self._applied: Applied | None = None
        self._concluding = asyncio.Lock()

    # --- what the loop tells -----------------------------------------------------------------------------------------

    def applied(self, result: PassResult, trigger: Trigger) -> None:
        """A pass has written. Neither waits nor raises; one that only renewed what was there makes no entry."""
        record = entry_of(result, self._begun(APPLIED, trigger))
        if record is not None:
            self._put(record, result)

    def failed(self, error: RegopsError, trigger: Trigger) -> None:
        """A pass broke off. Neither waits nor raises."""
        self._put(replace(self._begun(FAILED, trigger), reason=error.reason, message=str(error)), None)

    def _begun(self, outcome: str, trigger: Trigger) -> PassRecord:
        now = self._clock()
        name = f"{int(now.timestamp() * 1000):014d}-{secrets.token_hex(4)}"
        return PassRecord(name, outcome, str(trigger.kind), rfc3339(trigger.seen_at), rfc3339(now), self._leader)

    def _put(self, record: PassRecord, result: PassResult | None) -> None:
        if len(self._waiting) == _WAITING:
            log.warning("an entry of the log of passes was given up: etcd was away for too long")
        self._waiting.append((record, result))
        self._filled.set()

    # --- etcd --------------------------------------------------------------------------------------------------------

    async def run(self, fence: Fence) -> NoReturn:
        """Write entries and follow the fleet until cancelled, while ``fence`` holds; while etcd is away they wait."""
        self._fence = fence
        self._metrics.follow(
            lambda: self._fleet.counts(self._applied, self._clock(), self._forget_after),
            self._fleet.commits,
            lambda: self._following.lag(self._clock()),
        )
        try:
            await self._run()
        finally:
            self._fleet.clear()
            self._following.clear()
            self._metrics.clear()

    async def _run(self) -> NoReturn:
        while True:
            try:
                await self._load()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write())
                    group.create_task(self._follow())
            except* RegopsError as group:
                log.warning("log of passes waits", extra={"error": "; ".join(str(each) for each in group.exceptions)})
            except* Exception:  # a defect here must not end the process that applies policies
                log.exception("log of passes failed unexpectedly")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _load(self) -> None:
        """What is there from before, also by another leader."""
        kvs = (await self._store.read(Range(self._keyspace.passes, prefix=True))).ranges[0]
        ordered = sorted(kvs, key=lambda kv: kv.create_revision)
        self._names = deque(kv.key.removeprefix(self._keyspace.passes) for kv in ordered)
        records = [record for kv in ordered if (record := _decoded(kv)) is not None]
        self._newest = records[-1] if records else None
        last = next((record for record in reversed(records) if record.followed), None)
        if last is not None and not (last.enforced and last.enforced.complete):
            self._following.resume(last)

    async def _write(self) -> NoReturn:
        while True:
            await self._filled.wait()
            while self._waiting:
                waiting = self._waiting[0]
                record, result = waiting
                record = record if result is None else await told(self._source, record, result)
                await self._enter(record)
                if self._waiting and self._waiting[0] is waiting:  # else it was given up meanwhile
                    self._waiting.popleft()
                if result is not None and record.followed:
                    self._following.entered(record, result.live.applied_revision, self._clock())
                    await self._conclude()
            self._filled.clear()

    async def _enter(self, record: PassRecord) -> None:
        last = self._newest
        if last is not None and last.same_failure(record):
            self._newest = last.again(record)
            if self._clock() - self._newest_written < _FAILURE_GAP:
                return
            await self._save(self._newest)
        else:
            if last is not None and last.count > 1:  # its last word may have been left out
                await self._save(last)
            await self._save(record)
            self._newest = record
        self._newest_written = self._clock()

    async def _save(self, record: PassRecord) -> None:
        """Write one entry, and delete those that are too many."""
        old: list[str] = []
        if record.id not in self._names:
            old = [self._names[i] for i in range(max(0, len(self._names) + 1 - self._keep))]
        deletions = (Delete(self._keyspace.logged(name)) for name in old[:100])
        put = Put(self._keyspace.logged(record.id), record.encode())
        if self._fence is None:
            raise AssertionError("nobody writes who does not lead")
        outcome = await self._store.commit(Transaction((self._fence.compare(),), (put, *deletions)))
        if not outcome.succeeded:
            raise ConflictError("this replica leads no more: the log of passes is another one's", reason="Conflict")
        for name in old[:100]:
            self._names.remove(name)
        if record.id not in self._names:
            self._names.append(record.id)

    # --- the fleet ---------------------------------------------------------------------------------------------------

    async def _follow(self) -> NoReturn:
        keys = self._keyspace
        ranges = (
            Range(keys.receipts, prefix=True),
            Range(keys.alives, prefix=True, keys_only=True),
            Range(keys.applied),
        )
        read = await self._store.read(*ranges)
        self._fleet.clear()
        for kv in (kv for kvs in read.ranges[:2] for kv in kvs):
            self._fleet.found(kv)
        for agent in list(self._fleet.alive):
            self._following.reached(agent)
        self._saw_applied(read.ranges[2])
        await self._conclude()
        async with self._store.watch(*ranges, from_revision=read.revision + 1) as batches:
            async for batch in batches:
                if batch.resumed:
                    raise TransientError("it may be another store by now: everything is read again")
                for event in batch.events:
                    if event.kv.key == self._keyspace.applied:
                        self._saw_applied((event.kv,))
                    else:
                        self._following.reached(self._fleet.happened(event))
                await self._conclude()
        raise AssertionError("a watch without an end has ended")

    def _saw_applied(self, applied: Sequence[KeyValue]) -> None:
        for kv in applied:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self._applied = Applied.decode(kv.value)

    async def _conclude(self) -> None:
        """Say of each entry how far the fleet is, where that is due."""
        async with self._concluding:
            for entry, record in self._following.news(self._clock()):
                if record.id in self._names:
                    await self._save(record)
                if self._newest is not None and self._newest.id == record.id:
                    self._newest = record
                entry.record = record


def _decoded(kv: KeyValue) -> PassRecord | None:
    try:
        return PassRecord.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        log.warning("record cannot be read", extra={"key": kv.key})
        return None
