"""The long-running processes: what runs side by side in a server and in an agent, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from api.app import create_app
from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.mirror import Mirror
from reconciler.agent.scope import ALL, Scope
from reconciler.core.errors import RegopsError
from reconciler.loop import Loop, StatusKeeper
from reconciler.metrics import LoopMetrics, StoreMetrics
from reconciler.settings import Settings
from reconciler.triggers import DriftWatch, Mailbox, watch_files
from regops import compose

log = logging.getLogger(__name__)

HEALTH_INTERVAL = 60.0
"""Seconds between two looks at etcd's size and alarms."""
RETRY_SECONDS = 1.0
"""Pause before campaigning again when etcd did not answer."""


async def until_signalled(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` until it ends or SIGTERM or SIGINT comes; the end is a cancellation, so that everything closes."""
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def serve(settings: Settings, *, api: bool, reconciler: bool) -> None:
    """A server: API and mirror, and the loop while this replica leads. Runs until cancelled."""
    registry = _registry()
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(compose.open_store(settings.etcd))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        group.create_task(_watch_health(store, StoreMetrics(registry)), name="etcd health")
        if api:
            mirror = Mirror(store, compose.keyspace(settings.etcd))
            group.create_task(mirror.run(), name="mirror")
            await stack.enter_async_context(_listening(settings, store, mirror, registry))
        if reconciler:
            group.create_task(_reconcile(settings, store, LoopMetrics(registry)), name="reconciler")
        await asyncio.Event().wait()


async def serve_agent(settings: Settings) -> None:
    """An agent. Runs until cancelled."""
    own = settings.agent
    config = AgentConfig(
        datacentre=own.datacentre,
        id=own.id,
        state_dir=own.state,
        host=own.host,
        port=own.port,
        scope=Scope.of_projects(own.projects) if own.projects else ALL,
        opa_url=own.opa or None,
        min_opa_version=own.min_opa_version or None,
    )
    async with compose.open_store(settings.etcd) as store:
        agent = Agent(store, config, keyspace=compose.keyspace(settings.etcd), registry=_registry())
        await agent.run()


async def _reconcile(settings: Settings, store: EtcdStore, metrics: LoopMetrics) -> None:
    """Compete for the lead for ever; while leading, run the loop."""
    keyspace = compose.keyspace(settings.etcd)
    election = Election(store, keyspace.leader, settings.server.id, settings.server.lease_ttl)
    settings.server.state.mkdir(parents=True, exist_ok=True)
    async with compose.open_source(settings) as source, compose.open_judge(settings, source) as judge:
        engine = compose.make_reconciler(settings, source, store, judge)
        mailbox = Mailbox()
        place = {"remote": settings.git.shown, "branch": settings.git.branch, "path": settings.git.path}
        status = StatusKeeper(store, keyspace, source=place, leader=settings.server.id)
        loop = Loop(engine, mailbox, status, git=settings.git, settings=settings.loop, metrics=metrics)
        drift = DriftWatch(store, keyspace, mailbox, engine, restarted=metrics.watch_restarts.inc)
        while True:
            try:
                async with election.lead() as leadership:
                    log.info("leading", extra={"replica": settings.server.id})
                    metrics.leader.set(1)
                    async with watch_files(settings.git.remote, mailbox):
                        await _first_of(loop.run(leadership), drift.run(), leadership.lost())
            except RegopsError as error:
                log.warning("no lead", extra={"reason": error.reason, "error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                metrics.leader.set(0)
            log.warning("leading no more", extra={"replica": settings.server.id})


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


@contextlib.asynccontextmanager
async def _listening(
    settings: Settings, store: EtcdStore, mirror: Mirror, registry: CollectorRegistry
) -> AsyncIterator[None]:
    """The API on its port, as long as the block runs."""
    app = create_app(
        store=store,
        keyspace=compose.keyspace(settings.etcd),
        mirror=mirror,
        source={"remote": settings.git.shown, "branch": settings.git.branch, "path": settings.git.path},
        registry=registry,
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.server.host, settings.server.port)
        await site.start()
        log.info("serving", extra={"addresses": [f"http://{a[0]}:{a[1]}" for a in runner.addresses]})
        yield
    finally:
        await runner.cleanup()


async def _watch_health(store: EtcdStore, metrics: StoreMetrics) -> None:
    """Look at etcd's version, size, quota, alarms and request limit at start and every minute after."""
    while True:
        try:
            health = await store.health()
        except RegopsError as error:
            log.warning("etcd not examined", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(RETRY_SECONDS)
            continue
        metrics.db_size.set(health.db_size)
        metrics.quota.set(health.quota)
        metrics.alarms.set(len(health.alarms))
        for warning in (*health.warnings, *health.alarms):
            log.warning("etcd needs attention", extra={"finding": warning})
        await asyncio.sleep(HEALTH_INTERVAL)


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
