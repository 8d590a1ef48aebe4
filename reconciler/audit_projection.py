"""The projection of the audit log: events in the log are copied to MongoDB behind the answer, never in its way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import asdict
from itertools import islice
from typing import Final, NoReturn

from reconciler.audit import AuditEvent, AuditSink
from reconciler.core.errors import RegopsError
from reconciler.core.record_ports import AuditDocument, AuditStore
from reconciler.metrics import ProjectionMetrics
from reconciler.settings import LoopSettings

log = logging.getLogger(__name__)

_BATCH: Final = 500
_FAREWELL: Final = 2.0
"""Seconds that the end of the process waits for the last events."""


class AuditProjection:
    """A bounded queue: what does not fit is dropped, oldest first, and counted; the log has it."""

    def __init__(self, store: AuditStore, *, limit: int, settings: LoopSettings, metrics: ProjectionMetrics) -> None:
        self._store = store
        self._limit = limit
        self._settings = settings
        self._metrics = metrics
        self._events: deque[AuditDocument] = deque()
        self._filled = asyncio.Event()

    def offer(self, event: AuditDocument) -> None:
        """Copy this event when its turn comes. Neither waits nor raises."""
        if len(self._events) >= self._limit:
            self._events.popleft()
            self._metrics.dropped.inc()
        self._events.append(event)
        self._metrics.pending.set(len(self._events))
        self._filled.set()

    async def run(self) -> NoReturn:
        """Copy events as they come, until cancelled; what fails is tried again with growing pauses."""
        failures = 0
        while True:
            await self._filled.wait()
            try:
                await self.flush()
            except RegopsError as error:
                failures += 1
                self._metrics.failures.labels(error.reason).inc()
                if failures == 1:
                    log.warning("audit events not projected", extra={"reason": error.reason, "error": str(error)})
                pause = self._settings.backoff_min * 2 ** min(failures - 1, 16)
                await asyncio.sleep(min(pause, self._settings.backoff_max))
            else:
                failures = 0

    async def flush(self) -> None:
        """Copy everything that waits. Raises what the store raises; nothing is lost then, and nothing copied twice."""
        while self._events:
            batch = list(islice(self._events, _BATCH))
            await self._store.append(batch)
            for event in batch:
                if self._events and self._events[0] is event:  # else it was dropped meanwhile
                    self._events.popleft()
            self._metrics.projected.inc(len(batch))
            self._metrics.pending.set(len(self._events))
        self._filled.clear()

    async def aclose(self) -> None:
        """Copy what still waits, for a moment."""
        with contextlib.suppress(RegopsError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self.flush()


class Projected:
    """An `AuditSink`: the log, which is the record, and then the projection."""

    def __init__(self, record: AuditSink, projection: AuditProjection) -> None:
        self._record = record
        self._projection = projection

    def emit(self, event: AuditEvent) -> None:
        """See `AuditSink`."""
        self._record.emit(event)
        self._projection.offer(asdict(event))

    def holds(self, attempt: str) -> bool:
        """See `AuditSink`. The log alone knows."""
        return self._record.holds(attempt)
