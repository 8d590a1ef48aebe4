"""The record of receipts: what each OPA enforced from when to when, followed in etcd and written to MongoDB behind it.

The leader follows; whatever happens to the record, nothing waits for it. What waits is one word for each interval, the
newest, so that hours without MongoDB cost no more than the intervals of these hours. Every word may be written again,
by this recorder or another: the later one counts (`Interval.seen`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final, NoReturn

from reconciler.core.enforcement import End, Enforcement, Interval, Told, milliseconds
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Event, KeyValue, KeyValueStore, Range
from reconciler.core.receipt_ports import ReceiptStore
from reconciler.core.records import Receipt
from reconciler.metrics import ReceiptMetrics
from reconciler.settings import LoopSettings

log = logging.getLogger(__name__)

MARK_EVERY: Final = 10.0
"""Seconds between two marks: that long, at most, is not known after a leader died unexpectedly."""
CHECK_EVERY: Final = 60.0
"""Seconds between two comparisons with what the store has open: it may have been emptied or restored."""
_BATCH: Final = 500
_RETRY_SECONDS: Final = 0.5

_Key = tuple[str, datetime, str]


class ReceiptRecorder:
    """`follow` runs in the leader, `run` in every replica that may lead: what was followed is written afterwards too.

    ``limit``: words that wait at most; the oldest is dropped, and what lasts is written anew later.
    """

    def __init__(
        self,
        store: KeyValueStore,
        keyspace: Keyspace,
        receipts: ReceiptStore,
        *,
        limit: int,
        metrics: ReceiptMetrics,
        settings: LoopSettings,
        mark_every: float = MARK_EVERY,
        check_every: float = CHECK_EVERY,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._ranges = Range(keyspace.receipts, prefix=True), Range(keyspace.alives, prefix=True)
        self._receipts = receipts
        self._limit = limit
        self._metrics = metrics
        self._settings = settings
        self._mark_every, self._check_every = mark_every, check_every
        self._clock = clock
        self._state: Enforcement | None = None
        self._known: datetime | None = None
        """Until when the state was followed."""
        self._pending: dict[_Key, Interval] = {}
        self._filled = asyncio.Event()
        self._adopted: set[str] = set()
        self._checked: datetime | None = None
        self._marked: datetime | None = None

    # --- etcd --------------------------------------------------------------------------------------------------------

    async def follow(self) -> NoReturn:
        """Follow receipts and signs of life until cancelled; after a gap everything is read again."""
        try:
            while True:
                try:
                    await self._follow()
                except RegopsError as error:
                    log.warning("receipts not followed", extra={"reason": error.reason, "error": str(error)})
                except Exception:  # a defect here must not end the process that applies policies
                    log.exception("receipts not followed, unexpectedly")
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._leave()

    async def _follow(self) -> None:
        found = await self._store.read(*self._ranges)
        receipts, alives = found.ranges
        told = {self._agent(kv): each for kv in receipts if (each := _told(kv)) is not None}
        alive = {self._agent(kv): kv.create_revision for kv in alives}
        if self._state is None:
            self._state = Enforcement()
        now = self._now()
        self._note(self._state.read(told, alive, now, self._known))
        self._known = now
        async with self._store.watch(*self._ranges, from_revision=found.revision + 1) as batches:
            async for batch in batches:
                if batch.resumed:
                    return  # it may be another store by now: everything is read again
                now = self._now()
                for event in batch.events:
                    self._note(self._happened(self._state, event, now))
                self._known = now

    def _happened(self, state: Enforcement, event: Event, now: datetime) -> list[Interval]:
        agent = self._agent(event.kv)
        if event.kv.key.startswith(self._keyspace.alives):
            return state.lives(agent, None if event.deleted else event.kv.create_revision, now)
        return state.told(agent, None if event.deleted else _told(event.kv), now)

    def _agent(self, kv: KeyValue) -> str:
        """``<datacentre>/<id>``."""
        return kv.key.removeprefix(self._keyspace.receipts).removeprefix(self._keyspace.alives)

    def _leave(self) -> None:
        """Another one follows from here on. What lasts and is not written yet is told as far as it is known: the other
        one may never have seen it, and would not end it."""
        known = self._known
        for key, word in self._pending.items():
            if word.until is None:
                end = max(known or word.seen, word.seen)
                self._pending[key] = word.ending(End.UNOBSERVED, end, end)
        self._state = self._known = self._checked = self._marked = None
        self._adopted.clear()

    def _note(self, words: Iterable[Interval]) -> None:
        for word in words:
            self._pending[word.key] = word
            self._filled.set()
        while len(self._pending) > self._limit:
            self._pending.pop(next(iter(self._pending)))
            self._metrics.dropped.inc()
            self._checked = None  # what lasts is compared with the store again
        self._metrics.pending.set(len(self._pending))

    def _now(self) -> datetime:
        return milliseconds(self._clock())

    # --- MongoDB -----------------------------------------------------------------------------------------------------

    async def run(self) -> NoReturn:
        """Write as it comes, until cancelled. What fails is tried again with growing pauses."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._mark_every):
                    await self._filled.wait()
            except TimeoutError:
                log.debug("receipts unchanged")
            try:
                await self.flush()
            except RegopsError as error:
                failures += 1
                self._failed(error, failures)
            except Exception as error:  # a defect here must not end the process that applies policies
                failures += 1
                log.exception("receipts not recorded, unexpectedly")
                self._failed(RegopsError(type(error).__name__, reason="InternalError"), failures)
            else:
                failures = 0
                continue
            pause = self._settings.backoff_min * 2 ** min(failures - 1, 16)
            await asyncio.sleep(min(pause, self._settings.backoff_max))

    async def flush(self) -> None:
        """Write everything that waits, in order, and while leading compare and mark. Raises what the store raises;
        nothing is lost then."""
        await self._write()
        await self._compare()
        await self._mark()

    async def _write(self) -> None:
        while self._pending:
            batch = list(islice(self._pending.values(), _BATCH))
            await self._receipts.write(batch)
            for word in batch:
                if self._pending.get(word.key) is word:  # else there is a newer one, or it was dropped
                    del self._pending[word.key]
            self._metrics.recorded.inc(len(batch))
            self._metrics.pending.set(len(self._pending))
        self._filled.clear()

    async def _compare(self) -> None:
        """End what the store has open and nobody enforces, and write again what it lacks."""
        state, now = self._state, self._now()
        if state is None or self._known is None:
            return
        new = state.datacentres - self._adopted
        late = self._checked is None or now - self._checked >= timedelta(seconds=self._check_every)
        if not new and not late:
            return
        names = state.datacentres
        stored, marks = await self._receipts.open(names), await self._receipts.marks()
        if self._state is not state or self._known is None:
            return
        for each in stored:
            # Another etcd may have agents of this name: what is not known here is ended once, and not for ever again.
            if each.key not in self._pending and (state.knows(each.agent) or each.datacentre in new):
                stray = state.stray(each, marks.get(each.datacentre), self._now())
                self._note([stray] if stray else [])
        there = {each.key for each in stored}
        lacking = (each for each in state.open.values() if each.key not in there and each.key not in self._pending)
        self._note([replace(each, seen=self._known) for each in lacking])
        self._adopted |= new
        self._checked = now
        await self._write()

    async def _mark(self) -> None:
        """Say until when everything that is open is known to last."""
        known = self._known
        if self._state is None or known is None or self._pending or self._checked is None:
            return
        if self._marked is None or known - self._marked >= timedelta(seconds=self._mark_every / 2):
            await self._receipts.mark(self._state.datacentres, known)
            self._marked = known

    def _failed(self, error: RegopsError, failures: int) -> None:
        self._metrics.failures.labels(error.reason).inc()
        if failures == 1:
            log.warning("receipts not recorded", extra={"reason": error.reason, "error": str(error)})


def _told(kv: KeyValue) -> Told | None:
    """The receipt; one that cannot be read counts as none."""
    try:
        return Told(Receipt.decode(kv.value), kv.mod_revision)
    except (ValueError, TypeError, KeyError):
        log.warning("record cannot be read", extra={"key": kv.key})
        return None
