"""The HTTP face of a server: what it stands on, what runs beside it, and its listeners."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry

from api.app import Parts, create_app
from api.audited import Auditor
from api.auth import open_access
from api.events import Board
from api.fleet import Fleet
from api.followed import Followed
from api.hook_secrets import Secrets
from api.hooks import Hooks
from api.observing import Observer
from api.progress import Progress
from api.ratelimit import Gate
from api.requestlog import RequestLog
from api.status import metrics as serve_metrics
from api.ui.trying import open_trial
from reconciler.agent.mirror import Mirror
from reconciler.audit import Journal
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.model import PLATFORM, BlobIds, PolicyName, policy_name
from reconciler.core.ports import Branch, KeyValueStore, Range, Source
from reconciler.core.records import Held
from reconciler.core.tracing import NO_TRACER, Tracer
from reconciler.core.versions import Hold
from reconciler.edit_judge import EditJudge, LivePlatform
from reconciler.edits import Write
from reconciler.idempotency import Ledger
from reconciler.metrics import ApiMetrics, HookMetrics, WriterMetrics
from reconciler.operations import Operations
from reconciler.settings import Settings
from reconciler.triggers import Mailbox
from reconciler.validation import Judge
from reconciler.version_history import VersionHistory
from reconciler.writer import Writer
from regops import compose
from regops.auditing import Audit
from regops.recovery import recover
from regops.telling import Told

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 5.0


class Repository(Source, Branch, Protocol):
    """Both sides of the branch, on one mirror."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the API shares with the reconciler of the same process."""

    settings: Settings
    store: KeyValueStore
    source: Repository
    judge: Judge
    mailbox: Mailbox
    registry: CollectorRegistry
    audit: Audit
    record: compose.Record | None = None
    tracer: Tracer = NO_TRACER


class _Pushes:
    """Observes the writer: metrics, and the journal of what was sent."""

    def __init__(self, metrics: WriterMetrics, journal: Journal) -> None:
        self._metrics = metrics
        self._journal = journal

    def pushed(self, result: str, writes: int, seconds: float) -> None:
        self._metrics.pushes.labels(result).inc()
        self._metrics.push_seconds.observe(seconds)
        self._metrics.push_writes.observe(writes)

    def committed(self, commits: int) -> None:
        self._metrics.commits.inc(commits)

    async def intends(self, commits: Mapping[str, Write]) -> None:
        await self._journal.intends(commits)


class _Restarts:
    """Counts how often the mirror that the API answers by lost sight of etcd."""

    def __init__(self, metrics: ApiMetrics) -> None:
        self._metrics = metrics

    def advanced(self, how: str, seconds: float, policies_read: int) -> None:
        """No news here."""

    def kept(self, reason: str) -> None:
        """The same."""

    def lost(self, error: RegopsError) -> None:
        del error
        self._metrics.mirror_restarts.inc()

    def resumed(self) -> None:
        self._metrics.mirror_restarts.inc()


class Candidacy(Protocol):
    """What the API asks the part of this process that competes for the lead."""

    leads: bool

    def waits_for(self) -> Mapping[str, str]:
        """What it lacks, by outside system."""
        ...


@contextlib.asynccontextmanager
async def open_api(engine: Engine, group: asyncio.TaskGroup, candidacy: Candidacy | None) -> AsyncIterator[None]:
    """The API on its port, and its background tasks in ``group``, as long as the block runs."""
    settings, store = engine.settings, engine.store
    space = compose.keyspace(settings.etcd)
    forget_after = timedelta(seconds=settings.server.forget_agents_after)
    held = Followed(store, Range(space.helds, prefix=True), decode=lambda kv: Held.decode(kv.value))
    metrics, hook_metrics = ApiMetrics(engine.registry), HookMetrics(engine.registry)
    journal = Journal(settings.server.state)
    mirror, fleet = Mirror(store, space, observer=_Restarts(metrics)), Fleet(store, space, forget_after=forget_after)
    left = await asyncio.to_thread(journal.left)
    judge = EditJudge(engine.judge, _live_platform(mirror, lambda: space.held(PLATFORM) in held.values))
    leads = (lambda: candidacy.leads) if candidacy else (lambda: False)
    told = Told(store, space.pushed, engine.mailbox, leads=leads)
    writer = Writer(
        engine.source,
        engine.source,
        judge,
        pushed=told.pushed,
        observer=_Pushes(WriterMetrics(engine.registry), journal),
        patience=settings.api.patience,
    )
    ledger = Ledger(store, space, settings.server.id)
    place = {"remote": settings.git.shown, "branch": settings.git.branch, "path": settings.git.path}
    observer = Observer(store, space, mirror, forget_after=forget_after)
    board = Board(store, space, observer, place, metrics=metrics, most=settings.api.event_listeners)
    async with open_access(settings.auth, _platform_version(mirror)) as access, open_trial(settings.auth) as trial:
        parts = Parts(
            store=store,
            keyspace=space,
            mirror=mirror,
            source=engine.source,
            place=place,
            registry=engine.registry,
            metrics=metrics,
            request_log=RequestLog("regops-server"),
            held=held,
            verifier=access.verifier,
            authorizer=access.authorizer,
            auditor=Auditor(engine.audit.sink, journal, engine.audit.metrics),
            writer=writer,
            ledger=ledger,
            gate=Gate(settings.api.concurrent_writes, settings.api.writes_per_second, settings.api.burst),
            progress=Progress(store, space, mirror, fleet, engine.source),
            operations=Operations(store, space),
            history=VersionHistory(engine.source, engine.record.versions if engine.record else None, held=_holds(held)),
            hooks=Hooks(
                await asyncio.to_thread(
                    Secrets, settings.hooks.secrets_file, unusable=hook_metrics.secrets_unusable.inc
                ),
                repositories=(settings.git.remote, *settings.hooks.repositories),
                branch=settings.git.branch,
                look=told.hooked,
                metrics=hook_metrics,
            ),
            observer=observer,
            board=board,
            trial=trial,
            tickets=settings.page.tickets_file,
            tracer=engine.tracer,
            audit_trail=engine.record.audit if engine.record else None,
            receipts=engine.record.receipts if engine.record else None,
            waits_for=candidacy.waits_for if candidacy else dict,
            serve_metrics=settings.server.metrics_port is None,
        )
        for part in (mirror, fleet, held, ledger, writer, told, access.keys, board):
            group.create_task(part.run())
        if candidacy is None:
            group.create_task(_mirrored(engine.source))
        group.create_task(recover(journal, left, engine.audit.sink, engine.source))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(_listening(create_app(parts), settings.server.host, settings.server.port))
            if settings.server.metrics_port is not None:
                beside = web.Application()
                beside.add_routes([web.get("/metrics", serve_metrics)])
                await stack.enter_async_context(_listening(beside, settings.server.host, settings.server.metrics_port))
            yield


def _holds(held: Followed[Held]) -> Callable[[], Mapping[PolicyName, Hold]]:
    """Which policies' newest version is not live, as the history needs it."""

    def known() -> Mapping[PolicyName, Hold]:
        found: dict[PolicyName, Hold] = {}
        for key, word in held.values.items():
            with contextlib.suppress(ValueError):  # the raw path of an impossible name has no history
                message = str(word.errors[0]) if word.errors else ""
                found[policy_name(key.partition("/held/")[2])] = Hold(word.reason, message)
        return found

    return known


def _live_platform(mirror: Mirror, held: Callable[[], bool]) -> Callable[[], Awaitable[LivePlatform]]:
    async def live() -> LivePlatform:
        state = mirror.state
        if state is None:
            raise TransientError("etcd was not read yet", reason="StoreUnavailable")
        found = state.policies.get(PLATFORM)
        return LivePlatform(BlobIds(found.meta.rego, found.meta.data) if found else None, held())

    return live


def _platform_version(mirror: Mirror) -> Callable[[], str | None]:
    """What tells one platform's policy from another, ``None`` while it is not known which one is live."""

    def version() -> str | None:
        state = mirror.state
        if state is None:
            return None
        found = state.policies.get(PLATFORM)
        return found.meta.etag if found else "none"

    return version


async def _mirrored(source: Source) -> None:
    """A replica that never leads has its mirror before the first write asks for it."""
    while True:
        try:
            await source.fetch()
        except RegopsError as error:
            log.warning("git remote not mirrored yet", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return


@contextlib.asynccontextmanager
async def _listening(app: web.Application, host: str, port: int) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        log.info("serving", extra={"addresses": [f"http://{a[0]}:{a[1]}" for a in runner.addresses]})
        yield
    finally:
        await runner.cleanup()
