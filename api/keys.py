"""What the handlers find in the application: typed keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry

from api.audited import Auditor
from api.auth import Authorizer, Verifier
from api.followed import Followed
from api.observing import Observer
from api.progress import Progress
from api.ratelimit import Gate
from api.rendered import Rendered
from api.requestlog import RequestLog
from reconciler.agent.mirror import Mirror
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Source
from reconciler.core.receipt_ports import ReceiptStore
from reconciler.core.record_ports import AuditStore
from reconciler.core.records import Held, Record
from reconciler.core.tracing import Tracer
from reconciler.idempotency import Ledger
from reconciler.metrics import ApiMetrics
from reconciler.operations import Operations
from reconciler.version_history import VersionHistory
from reconciler.writer import Writer

if TYPE_CHECKING:
    from api.events import Board  # they ask for their keys here
    from api.hooks import Hooks
    from api.ui.trying import Trial

RecordT = TypeVar("RecordT", bound=Record)

STORE: web.AppKey[KeyValueStore] = web.AppKey("store")
KEYSPACE = web.AppKey("keyspace", Keyspace)
MIRROR = web.AppKey("mirror", Mirror)
SOURCE: web.AppKey[Source] = web.AppKey("source")
PLACE: web.AppKey[Mapping[str, str]] = web.AppKey("place")
REGISTRY = web.AppKey("registry", CollectorRegistry)
METRICS = web.AppKey("metrics", ApiMetrics)
REQUEST_LOG = web.AppKey("request_log", RequestLog)
RENDERED = web.AppKey("rendered", Rendered)
OBSERVER = web.AppKey("observer", Observer)
WAITS_FOR: web.AppKey[Callable[[], Mapping[str, str]]] = web.AppKey("waits_for")
HELD: web.AppKey[Followed[Held]] = web.AppKey("held")
VERIFIER = web.AppKey("verifier", Verifier)
AUTHORIZER = web.AppKey("authorizer", Authorizer)
AUDITOR = web.AppKey("auditor", Auditor)
WRITER = web.AppKey("writer", Writer)
LEDGER = web.AppKey("ledger", Ledger)
GATE = web.AppKey("gate", Gate)
PROGRESS = web.AppKey("progress", Progress)
OPERATIONS = web.AppKey("operations", Operations)
HISTORY = web.AppKey("history", VersionHistory)
AUDIT_TRAIL: web.AppKey[AuditStore | None] = web.AppKey("audit_trail")
RECEIPTS: web.AppKey[ReceiptStore | None] = web.AppKey("receipts")
HOOKS: web.AppKey[Hooks] = web.AppKey("hooks")
BOARD: web.AppKey[Board] = web.AppKey("board")
TRACER: web.AppKey[Tracer] = web.AppKey("tracer")
TRIAL: web.AppKey[Trial] = web.AppKey("trial")
TICKETS: web.AppKey[Path | None] = web.AppKey("tickets")
