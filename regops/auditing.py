"""The audit trail of one server: its log, and the copy in MongoDB."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from reconciler.audit import AuditEvent, AuditLog, AuditSink
from reconciler.audit_projection import AuditProjection, Projected
from reconciler.commit_audit import CommitAudit
from reconciler.core.ports import Source
from reconciler.core.record_ports import AuditStore
from reconciler.metrics import AuditMetrics, ProjectionMetrics
from reconciler.pass_audit import PassAudit
from reconciler.settings import Settings


@dataclass(frozen=True, slots=True)
class Audit:
    """Where events go. ``commits`` is ``None`` where there is no MongoDB."""

    sink: AuditSink
    metrics: AuditMetrics
    passes: PassAudit
    commits: CommitAudit | None


@contextlib.asynccontextmanager
async def open_audit(
    settings: Settings, source: Source, store: AuditStore | None, registry: CollectorRegistry
) -> AsyncIterator[Audit]:
    """Open as long as the block runs; what could not be copied until its end waits on disk for the next start."""
    record, metrics = AuditLog(settings.audit.file), AuditMetrics(registry)

    def counted(event: AuditEvent) -> None:
        metrics.events.labels(event.action, event.result).inc()

    try:
        if store is None:
            yield Audit(record, metrics, PassAudit(source, record, counted=counted), None)
            return
        projecting = ProjectionMetrics(registry)
        projection = await asyncio.to_thread(
            AuditProjection,
            store,
            limit=settings.mongo.audit_queue,
            settings=settings.loop,
            metrics=projecting,
            folder=settings.server.state,
        )
        sink = Projected(record, projection)
        commits = CommitAudit(source, store, days=settings.mongo.audit_days, metrics=projecting)
        running = asyncio.ensure_future(projection.run())
        try:
            yield Audit(sink, metrics, PassAudit(source, sink, counted=counted), commits)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await projection.aclose()
    finally:
        record.close()
