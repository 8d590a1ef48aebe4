"""The log of passes in etcd, for every replica to show: written by the leader beside the passes, never in their way.

The last entries are kept, no more. A pass whose leader dies before its entry is written has none: what it changed is in
the audit trail and in the policies' history all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.fleet import FleetState
from reconciler.core.keyspace import Keyspace
from reconciler.core.passes import (
    APPLIED,
    FAILED,
    Enforced,
    PassRecord,
    between,
)
from reconciler.core.ports import Delete, Event, KeyValue, KeyValueStore, Put, Range, Source, Transaction
from reconciler.core.records import Applied
from reconciler.core.times import rfc3339
from reconciler.metrics import FleetMetrics
from reconciler.pass_entries import entry_of, told
from reconciler.reconcile import PassResult
from reconciler.triggers import Trigger

log = logging.getLogger(__name__)

KEPT: Final = 200
"""Entries that are kept, the newest."""
_WAITING: Final = 100
_FOLLOWED: Final = 20
"""Newest entries for which the fleet is followed."""
_LATE: Final = timedelta(seconds=10)
"""How long after an apply its entry says how far the fleet is, when it is not complete before."""
_FAILURE_GAP: Final = timedelta(seconds=30)
"""How often at most the entry of a failure that repeats itself is written."""
_RETRY_SECONDS: Final = 1.0


@dataclass(slots=True)
class _Entry:
    """An entry in etcd, and which agents have reached its commit, since when. ``awaited``: those whose OPAs proved
    something when it was applied, and have not proven it yet."""

    record: PassRecord
    reached: dict[str, str] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)
    told_at: datetime | None = None


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
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._source = source
        self._leader = leader
        self._keep = keep
        self._clock = clock
        self._waiting: deque[tuple[PassRecord, PassResult | None]] = deque(maxlen=_WAITING)
        self._filled = asyncio.Event()
        self._names: deque[str] = deque()
        self._newest: PassRecord | None = None
        self._newest_written = datetime.min.replace(tzinfo=UTC)
        self._entries: deque[_Entry] = deque(maxlen=_FOLLOWED)
        self._fleet = FleetState(keyspace)
        self._metrics = metrics
        self._applied: str | None = None
        metrics.lag.set_function(self._lag)
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

    async def run(self) -> NoReturn:
        """Write entries and follow the fleet until cancelled; while etcd is away they wait."""
        try:
            await self._run()
        finally:
            self._fleet.clear()
            self._entries.clear()
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
        if not self._entries:
            last = next((record for record in reversed(records) if record.moved), None)
            self._entries.extend([_Entry(last)] if last and not (last.enforced and last.enforced.complete) else [])

    async def _write(self) -> NoReturn:
        while True:
            await self._filled.wait()
            while self._waiting:
                record, result = self._waiting[0]
                record = record if result is None else await told(self._source, record, result)
                await self._enter(record)
                self._waiting.popleft()
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
        if record.moved:
            awaited = {agent for agent in self._fleet.alive if self._fleet.proven(agent) is not None}
            self._entries.append(_Entry(record, awaited=awaited))
            self._took(record.seen_at, record.applied_at, "applied")
            for agent in self._fleet.alive:
                self._reached(agent)
            await self._conclude()

    async def _save(self, record: PassRecord) -> None:
        """Write one entry, and delete those that are too many."""
        old: list[str] = []
        if record.id not in self._names:
            old = [self._names[i] for i in range(max(0, len(self._names) + 1 - self._keep))]
        deletions = (Delete(self._keyspace.logged(name)) for name in old[:100])
        put = Put(self._keyspace.logged(record.id), record.encode())
        await self._store.commit(Transaction((), (put, *deletions)))
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
            self._reached(self._fleet.happened(Event(kv)))
        self._show(read.ranges[2])
        await self._conclude()
        async with self._store.watch(*ranges, from_revision=read.revision + 1) as batches:
            async for batch in batches:
                if batch.resumed:
                    raise TransientError("it may be another store by now: everything is read again")
                for event in batch.events:
                    if event.kv.key == self._keyspace.applied:
                        self._show((event.kv,))
                    else:
                        self._reached(self._fleet.happened(event))
                if batch.events:
                    self._show()
                await self._conclude()
        raise AssertionError("a watch without an end has ended")

    def _show(self, applied: Sequence[KeyValue] | None = None) -> None:
        """Tell the metrics; ``applied``: that record has changed."""
        for kv in applied or ():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                self._applied = Applied.decode(kv.value).commit
        self._metrics.show(self._fleet.counts(self._applied), self._fleet.commits())

    def _lag(self) -> float:
        """Asked when the metrics are read."""
        waiting = [entry.record.applied_at for entry in self._entries if entry.awaited & self._fleet.alive]
        return max(0.0, (self._clock() - _at(waiting[0])).total_seconds()) if waiting else 0.0

    def _reached(self, agent: str) -> None:
        """Who proves a commit has followed every pass up to it."""
        proven = self._fleet.proven(agent)
        if proven is None:
            return
        counts = False
        for entry in reversed(self._entries):
            counts = counts or entry.record.commit == proven[0]
            if not counts or agent in entry.reached:
                continue
            entry.reached[agent] = proven[1]
            if agent in entry.awaited:
                entry.awaited.discard(agent)
                self._took(entry.record.seen_at, proven[1], "enforced")
                if not entry.awaited:
                    self._took(entry.record.seen_at, max(entry.reached.values()), "everywhere")

    def _took(self, start: str, end: str | None, to: str) -> None:
        seconds = between(start, end)
        if seconds is not None:
            self._metrics.propagation.labels(to).observe(seconds)

    async def _conclude(self) -> None:
        """Say of each entry how far the fleet is: once that is all the way, and now and then when it takes long."""
        async with self._concluding:
            for entry in list(self._entries):
                now = self._enforced(entry)
                if now is not None:
                    record = replace(entry.record, enforced=now)
                    if record.id in self._names:
                        await self._save(record)
                    if self._newest is not None and self._newest.id == record.id:
                        self._newest = record
                    entry.record, entry.told_at = record, self._clock()

    def _enforced(self, entry: _Entry) -> Enforced | None:
        """What the entry should say, ``None`` where it says so already or had better wait."""
        known = entry.record.enforced
        if not self._fleet.alive or (known is not None and known.complete):
            return None
        times = sorted(entry.reached.values())
        agents = self._fleet.alive | entry.reached.keys()
        now = Enforced(len(agents), len(times), times[0] if times else None, times[-1] if times else None)
        told_at = entry.told_at or _at(entry.record.applied_at)
        return now if now != known and (now.complete or self._clock() - told_at > _LATE) else None


def _decoded(kv: KeyValue) -> PassRecord | None:
    try:
        return PassRecord.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        log.warning("record cannot be read", extra={"key": kv.key})
        return None


def _at(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.max.replace(tzinfo=UTC)
