"""A server: what runs side by side in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from typing import Any, NoReturn

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.core.conditions import FETCH_FAILED, RECONCILING
from reconciler.core.errors import RegopsError
from reconciler.core.versions import Retention
from reconciler.loop import Loop
from reconciler.metrics import FleetMetrics, LoopMetrics, ReceiptMetrics, RecorderMetrics, StoreMetrics
from reconciler.pass_log import PassLog
from reconciler.progress import Works
from reconciler.proving import Prover
from reconciler.receipt_recorder import ReceiptRecorder
from reconciler.recorder import Recorder
from reconciler.settings import Settings
from reconciler.status_keeper import StatusKeeper
from reconciler.triggers import DriftWatch, Kind, Mailbox, watch_files
from regops import compose
from regops.api_side import Engine, open_api
from regops.auditing import open_audit
from regops.process import process_registry

log = logging.getLogger(__name__)

HEALTH_INTERVAL = 60.0
"""Seconds between two looks at etcd's size and alarms."""
RETRY_SECONDS = 1.0
"""Pause before trying again what could not be started, or to campaign when etcd did not answer."""


async def serve(settings: Settings, *, api: bool, reconciler: bool) -> None:
    """A server: API and mirror, and the loop while this replica leads. Runs until cancelled.

    An etcd, a Git remote or an OPA that is away is waited for; raises `RegopsError` only for wrong settings.
    """
    compose.check_source(settings)
    registry = process_registry()
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(compose.open_store(settings.etcd))
        source = await stack.enter_async_context(compose.open_source(settings))
        works = Works()
        judge = await stack.enter_async_context(
            compose.open_judge(settings, source, progress=works.passes, server=True)
        )
        record = await stack.enter_async_context(compose.open_record(settings.mongo))
        trail = open_audit(settings, source, record.audit if record else None, registry)
        audit = await stack.enter_async_context(trail)
        tracer = compose.open_tracer(settings.tracing, service="regops-server", instance=settings.server.id)
        engine = Engine(
            settings,
            store,
            source,
            judge,
            Mailbox(),
            registry,
            audit,
            record,
            await stack.enter_async_context(tracer),
        )
        if record is None:
            log.warning("no record of versions", extra={"remedy": "Set mongo.uri; until then history is Git's alone."})
        contender = Contender(engine, LoopMetrics(registry), works)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        group.create_task(_watch_health(store, StoreMetrics(registry)), name="etcd health")
        if api:
            await stack.enter_async_context(open_api(engine, group, contender if reconciler else None))
        if reconciler:
            group.create_task(contender.run(), name="reconciler")
        await asyncio.Event().wait()


class Contender:
    """Competes for the lead for ever; while leading, runs the loop. `waits_for` says what it lacks."""

    def __init__(self, engine: Engine, metrics: LoopMetrics, works: Works | None = None) -> None:
        settings = engine.settings
        self._works = works or Works()
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._fleet = FleetMetrics(engine.registry)
        self._keyspace = compose.keyspace(settings.etcd)
        place = {"remote": settings.git.shown, "branch": settings.git.branch, "path": settings.git.path}
        self._status = StatusKeeper(engine.store, self._keyspace, source=place, leader=settings.server.id)
        self._missing: str | None = "it was not started yet"
        self._recorder: Recorder | None = None
        self._receipts: ReceiptRecorder | None = None
        if engine.record is not None:
            self._receipts = ReceiptRecorder(
                engine.store,
                self._keyspace,
                engine.record.receipts,
                limit=settings.mongo.receipt_queue,
                metrics=ReceiptMetrics(engine.registry),
                settings=settings.loop,
            )
            self._recorder = Recorder(
                engine.source,
                engine.record.versions,
                keep=Retention(settings.mongo.keep_applied, settings.mongo.keep_others),
                metrics=RecorderMetrics(engine.registry),
                settings=settings.loop,
            )
        self.leads = False

    def waits_for(self) -> dict[str, str]:
        """``opa`` until the compiler was up once; ``git`` while this replica leads and never reached the remote."""
        found = {} if self._missing is None else {"opa": self._missing}
        conditions = {condition.type: condition for condition in self._status.record.conditions}
        if self.leads and not conditions:
            found["git"] = self._works.passes.says() or "the first pass has not ended yet"
        elif self.leads and FETCH_FAILED in conditions and RECONCILING in conditions:
            found["git"] = conditions[FETCH_FAILED].message
        return found

    async def run(self) -> NoReturn:
        """Try the compiler until it is there; then compete. Ends only by cancellation."""
        while self._missing is not None:
            try:
                await self._engine.judge.check()
                self._missing = None
            except RegopsError as error:
                self._missing = str(error)
                log.warning("reconciler cannot start", extra={"reason": error.reason, "error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)
        # What was followed while leading is written also when another replica leads.
        await _first_of(self._compete(), *([self._receipts.run()] if self._receipts else []))
        raise AssertionError("a task without an end has ended")

    async def _compete(self) -> NoReturn:
        """Campaign, lead, and again; an etcd that is away is asked again."""
        engine, own, git = self._engine, self._settings.server, self._settings.git
        election = Election(engine.store, self._keyspace.leader, own.id, own.lease_ttl)
        reconciler = compose.make_reconciler(self._settings, engine.source, engine.store, engine.judge, engine.tracer)
        journal = PassLog(
            engine.store,
            self._keyspace,
            engine.source,
            leader=own.id,
            metrics=self._fleet,
            forget_after=timedelta(seconds=own.forget_agents_after),
        )

        def proven() -> None:
            reconciler.reconsider()
            engine.mailbox.put(Kind.PROVEN)

        prover = Prover(engine.judge, proven, progress=self._works.beside, metrics=self._metrics)
        loop = Loop(
            reconciler,
            engine.mailbox,
            self._status,
            git=git,
            settings=self._settings.loop,
            metrics=self._metrics,
            branch=engine.source,
            recorder=self._recorder,
            watchers=[prover, engine.audit.passes, *([engine.audit.commits] if engine.audit.commits else [])],
            journal=journal,
            works=self._works,
        )
        restarted = self._metrics.watch_restarts.inc
        drift = DriftWatch(engine.store, self._keyspace, engine.mailbox, reconciler, restarted=restarted)
        while True:
            try:
                async with election.lead() as leadership, watch_files(git.remote, engine.mailbox):
                    with self._leading():
                        beside = [engine.audit.passes, self._recorder, engine.audit.commits]
                        recording = [
                            journal.run(leadership.fence),
                            prover.run(),
                            *(each.run() for each in beside if each is not None),
                        ]
                        recording += [self._receipts.follow()] if self._receipts else []
                        await _first_of(loop.run(leadership), drift.run(), leadership.lost(), *recording)
            except RegopsError as error:
                log.warning("no lead", extra={"reason": error.reason, "error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)

    @contextlib.contextmanager
    def _leading(self) -> Iterator[None]:
        log.info("leading", extra={"replica": self._settings.server.id})
        self._metrics.leader.set(1)
        self.leads = True
        try:
            yield
        finally:
            self.leads = False
            self._metrics.leader.set(0)
            log.warning("leading no more", extra={"replica": self._settings.server.id})


async def _first_of(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run side by side until one ends; the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch_health(store: EtcdStore, metrics: StoreMetrics) -> None:
    """Look at etcd's version, size, quota, alarms and request limit at start and every minute after."""
    told = ""
    while True:
        try:
            health = await store.health()
        except RegopsError as error:
            if told != error.reason:  # once: whoever needs etcd says so again and again
                told = error.reason
                log.warning("etcd not examined", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(RETRY_SECONDS)
            continue
        told = ""
        metrics.observe(health)
        for finding in (*(warning.text for warning in health.warnings), *health.alarms):
            log.warning("etcd needs attention", extra={"finding": finding})
        await asyncio.sleep(HEALTH_INTERVAL)
