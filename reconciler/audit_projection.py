"""The projection of the audit log: events in the log are copied to MongoDB behind the answer, never in its way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Final, NoReturn

from reconciler.audit import AuditEvent, AuditSink
from reconciler.core.errors import RegopsError
from reconciler.core.record_ports import AuditDocument, AuditStore
from reconciler.metrics import ProjectionMetrics
from reconciler.settings import LoopSettings

log = logging.getLogger(__name__)

QUEUE: Final = "audit-queue.jsonl"
_BATCH: Final = 500
_FAREWELL: Final = 2.0
"""Seconds that the end of the process waits for the last events."""
_LONGEST_PAUSE: Final = 15.0
"""Seconds between two tries: shorter than `reconciler.commit_audit` waits for an event."""


class AuditProjection:
    """A bounded queue, on disk too where ``folder`` is given: what does not fit is dropped, oldest first, and counted;
    the log has it. What a former process left in the folder comes first."""

    def __init__(
        self,
        store: AuditStore,
        *,
        limit: int,
        settings: LoopSettings,
        metrics: ProjectionMetrics,
        folder: Path | None = None,
    ) -> None:
        self._store = store
        self._limit = limit
        self._settings = settings
        self._metrics = metrics
        self._spool = _Spool(folder / QUEUE) if folder else None
        self._events: deque[AuditDocument] = deque()
        self._lost_commits = False
        self._filled = asyncio.Event()
        for event in self._spool.left() if self._spool else ():
            self._keep(event)

    def offer(self, event: AuditDocument) -> None:
        """Copy this event when its turn comes. Neither waits nor raises."""
        self._keep(event)
        if self._spool:
            self._spool.add(event, self._events)

    def _keep(self, event: AuditDocument) -> None:
        if len(self._events) >= self._limit:
            dropped = self._events.popleft()
            self._lost_commits = self._lost_commits or bool(dropped.get("commit"))
            self._metrics.dropped.labels("commits" if dropped.get("commit") else "others").inc()
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
                await asyncio.sleep(min(pause, self._settings.backoff_max, _LONGEST_PAUSE))
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
        if self._lost_commits:
            await self._store.verify(None)
            self._lost_commits = False
        if not self._events:
            self._filled.clear()
            if self._spool:
                self._spool.empty()

    async def aclose(self) -> None:
        """Copy what still waits, for a moment; the rest stays on disk."""
        with contextlib.suppress(RegopsError, TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self.flush()
        if self._spool:
            self._spool.close()


class _Spool:
    """The queue as JSON lines in a file that may have more than what waits: an event that is copied again is there
    once. A disk that is full costs no event as long as the process lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0
        self._failed = False

    def left(self) -> list[AuditDocument]:
        """What a former process left; a line that was torn by its end is left out."""
        found: list[AuditDocument] = []
        with contextlib.suppress(OSError):
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    found += [event] if isinstance(event, dict) and "ts" in event else []
        self._lines = len(found)
        return found

    def add(self, event: AuditDocument, waiting: deque[AuditDocument]) -> None:
        """Append an event; a file with more than twice what waits is written anew."""
        self._lines += 1
        if self._failed or self._lines > 2 * len(waiting) + _BATCH:
            self._write("w", waiting)
            self._lines = len(waiting)
        else:
            self._write("a", [event])

    def empty(self) -> None:
        """Nothing waits."""
        if self._lines:
            self._write("w", ())
            self._lines = 0

    def close(self) -> None:
        """Leave no empty file behind."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_size == 0:
                self._path.unlink()

    def _write(self, mode: str, events: Iterable[AuditDocument]) -> None:
        """Not flushed to disk: it outlives the process, and a machine that dies loses a copy, not the log."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(event, ensure_ascii=True) + "\n" for event in events)
        except OSError as error:
            if not self._failed:
                log.warning("audit queue not on disk", extra={"file": str(self._path), "error": str(error.strerror)})
            self._failed = True
        else:
            self._failed = False


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
