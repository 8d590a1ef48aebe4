"""The application: what the handlers need, one middleware, ONE route table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from api import (
    admin,
    audit_trail,
    differences,
    documents,
    fleet_at,
    keys,
    passes,
    policies,
    policy_status,
    status,
    trace,
    versions,
    wire,
    writes,
)
from api.audited import Auditor
from api.auth import Authorizer, Verifier
from api.envelope import envelope
from api.events import Board, events
from api.followed import Followed
from api.hook_proofs import PROVIDERS
from api.hooks import Hooks, taking, unknown
from api.observing import Observer
from api.progress import Progress
from api.ratelimit import Gate
from api.rendered import Rendered
from api.requestlog import RequestLog
from api.ui import pages
from api.ui.frame import asset
from api.ui.trying import Trial
from reconciler.agent.mirror import Mirror
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Source
from reconciler.core.receipt_ports import ReceiptStore
from reconciler.core.record_ports import AuditStore
from reconciler.core.records import Held
from reconciler.core.tracing import NO_TRACER, Tracer
from reconciler.idempotency import Ledger
from reconciler.metrics import ApiMetrics
from reconciler.operations import Operations
from reconciler.version_history import VersionHistory
from reconciler.writer import Writer

DRAIN_SECONDS = 2.0
"""How long a push that is on its way is waited for when the replica ends."""
HEADER_BYTES = 20480
"""Longest header field: the longest token that is looked at fits, so that it gets the answer of the verifier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What one replica's HTTP face stands on. ``place`` is {remote, branch, path}, shown while no leader has told."""

    store: KeyValueStore
    keyspace: Keyspace
    mirror: Mirror
    source: Source
    place: Mapping[str, str]
    registry: CollectorRegistry
    metrics: ApiMetrics
    request_log: RequestLog
    held: Followed[Held]
    verifier: Verifier
    authorizer: Authorizer
    auditor: Auditor
    writer: Writer
    ledger: Ledger
    gate: Gate
    progress: Progress
    operations: Operations
    history: VersionHistory
    hooks: Hooks
    observer: Observer
    board: Board
    trial: Trial
    tickets: Path | None = None
    tracer: Tracer = NO_TRACER
    audit_trail: AuditStore | None = None
    receipts: ReceiptStore | None = None
    waits_for: Callable[[], Mapping[str, str]] = dict
    """What else keeps the replica from being ready, by outside system: see `api.status.readyz`."""
    serve_metrics: bool = True


def create_app(parts: Parts) -> web.Application:
    """The HTTP face of one replica."""
    app = web.Application(
        middlewares=[envelope],
        handler_args={"max_field_size": HEADER_BYTES, "auto_decompress": False, "logger": wire.LOG},
    )
    app[keys.STORE] = parts.store
    app[keys.KEYSPACE] = parts.keyspace
    app[keys.MIRROR] = parts.mirror
    app[keys.SOURCE] = parts.source
    app[keys.PLACE] = parts.place
    app[keys.REGISTRY] = parts.registry
    app[keys.METRICS] = parts.metrics
    app[keys.REQUEST_LOG] = parts.request_log
    app[keys.RENDERED] = Rendered()
    app[keys.OBSERVER] = parts.observer
    app[keys.BOARD] = parts.board
    app[keys.TRIAL] = parts.trial
    app[keys.TRACER] = parts.tracer
    app[keys.TICKETS] = parts.tickets
    app[keys.WAITS_FOR] = parts.waits_for
    app[keys.HELD] = parts.held
    app[keys.VERIFIER] = parts.verifier
    app[keys.AUTHORIZER] = parts.authorizer
    app[keys.AUDITOR] = parts.auditor
    app[keys.WRITER] = parts.writer
    app[keys.LEDGER] = parts.ledger
    app[keys.GATE] = parts.gate
    app[keys.PROGRESS] = parts.progress
    app[keys.OPERATIONS] = parts.operations
    app[keys.HISTORY] = parts.history
    app[keys.AUDIT_TRAIL] = parts.audit_trail
    app[keys.RECEIPTS] = parts.receipts
    app[keys.HOOKS] = parts.hooks
    app.on_shutdown.append(_answer_all)
    app.add_routes(
        web.RouteDef(route.method, route.path, route.handler, {**route.kwargs, "expect_handler": wire.expect})
        for route in (*routes(), *page_routes())
    )
    app.add_routes([web.post("/hooks/{provider}", unknown)])  # after the known ones
    if parts.serve_metrics:
        app.add_routes([web.get("/metrics", status.metrics)])
    return app


async def _answer_all(app: web.Application) -> None:
    """The replica ends: every write under way comes to its answer, before connections are closed."""
    app[keys.PROGRESS].close()
    app[keys.BOARD].close()
    await app[keys.WRITER].drain(DRAIN_SECONDS)


def routes() -> list[web.RouteDef]:
    """Every route but ``/metrics``, which may have a listener of its own."""
    return [
        web.get("/healthz", status.healthz),
        web.get("/readyz", status.readyz),
        web.get("/status", status.status),
        web.get("/status/policies", policy_status.list_policy_status),
        web.get("/status/policies/platform", policy_status.policy_status),
        web.get("/status/policies/{project}", policy_status.policy_status),
        web.get("/fleet", fleet_at.fleet),
        web.get("/history", passes.history),
        web.get("/events", events, allow_head=False),
        web.get("/trace", trace.trace),
        web.get("/openapi.json", documents.openapi),
        web.get("/docs", documents.page),
        web.get("/policies", policies.list_policies),
        web.get("/policies/{project}", policies.get_policy),  # first: the router tries one after the other
        web.post("/policies/platform:validate", writes.validate),
        web.post("/policies/{project}:validate", writes.validate),
        web.post("/policies/platform:rollback", writes.rollback),
        web.post("/policies/{project}:rollback", writes.rollback),
        web.get("/policies/platform", policies.get_policy),
        web.put("/policies/platform", writes.put),
        web.patch("/policies/platform", writes.patch),
        web.delete("/policies/platform", writes.delete_platform),
        web.put("/policies/{project}", writes.put),
        web.patch("/policies/{project}", writes.patch),
        web.delete("/policies/{project}", writes.delete),
        web.get("/versions", versions.recent_versions),
        web.get("/policies/platform/versions", versions.list_versions),
        web.get("/policies/{project}/versions", versions.list_versions),
        web.get("/policies/platform/versions/{version}", versions.get_version),
        web.get("/policies/{project}/versions/{version}", versions.get_version),
        web.get("/policies/platform/diff", differences.diff),
        web.get("/policies/{project}/diff", differences.diff),
        web.get("/audit", audit_trail.audit),
        *(web.post(f"/hooks/{name}", taking(name)) for name in PROVIDERS),
        web.post("/admin/sync", admin.sync),
        web.post("/admin/suspend", admin.suspend),
        web.post("/admin/resume", admin.resume),
        web.post("/admin/confirm", admin.confirm),
    ]


def page_routes() -> list[web.RouteDef]:
    """The pages for people, which `/docs` does not list."""
    return [
        web.get("/", pages.overview),
        web.get("/login", pages.login),
        web.post("/login", pages.log_in),
        web.post("/logout", pages.log_out),
        web.get("/ui/fleet", pages.fleet),
        web.get("/ui/history", pages.history),
        web.get("/ui/policies", pages.policies),
        web.get("/ui/policies/platform", pages.policy),
        web.post("/ui/policies/platform", pages.try_decision),
        web.get("/ui/policies/projects/{project}", pages.policy),
        web.post("/ui/policies/projects/{project}", pages.try_decision),
        web.get("/ui/assets/{name}", asset),
    ]
