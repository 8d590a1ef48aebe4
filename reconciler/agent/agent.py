"""The agent: mirror → bundle → disk → OPA, and receipts back, as one object."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NoReturn

from prometheus_client import CollectorRegistry

from reconciler.agent.bundle import NO_REVISION, Bundle, BundleBuilder
from reconciler.agent.disk import Disk, Saved
from reconciler.agent.latest import Pulse
from reconciler.agent.mirror import Backoff, Mirror
from reconciler.agent.publisher import Publisher
from reconciler.agent.scope import ALL, Scope
from reconciler.agent.server import BundleServer
from reconciler.agent.state import MirrorState
from reconciler.agent.witness import Identity, Offer, Witness, rfc3339_now
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore
from reconciler.core.records import Applied
from reconciler.core.tracing import NO_TRACER, Tracer, context_in
from reconciler.metrics import AgentMetrics

log = logging.getLogger(__name__)

_UNDER_WAY: Final = 300.0
"""Seconds after its apply in which a commit may still be on its way to this agent's OPA after a restart."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Who this agent is and where it serves. ``state_dir`` belongs to this agent alone; ``hold_seconds`` bounds a
    poll; ``opa_url`` is only shown; an OPA older than ``min_opa_version`` is reported as ``OpaTooOld``."""

    datacentre: str
    id: str
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 0
    scope: Scope = ALL
    opa_url: str | None = None
    min_opa_version: str | None = None
    hold_seconds: float = 30.0


class Agent:
    """``async with agent.running():`` serves until the block ends, `run` until it is cancelled. Use it once."""

    def __init__(
        self,
        store: KeyValueStore,
        config: AgentConfig,
        *,
        keyspace: Keyspace | None = None,
        registry: CollectorRegistry | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._store = store
        self._config = config
        self._keyspace = keyspace or Keyspace()
        registry = registry or CollectorRegistry()
        self._restored: str | None = None
        """The commit of the bundle that was on disk."""
        self._metrics = AgentMetrics(registry)
        self._metrics.stale.set_function(lambda: int(self.stale))
        self._disk = Disk(config.state_dir)
        self._builder = BundleBuilder(config.scope)
        self._mirror = Mirror(store, self._keyspace, config.scope, observer=_Observer(self._metrics, self._lost))
        changed = Pulse()
        identity = Identity(
            config.datacentre, config.id, str(config.scope), config.opa_url or None, config.min_opa_version or None
        )
        self._witness = Witness(
            identity,
            self._metrics,
            hold=config.hold_seconds,
            clock=time.monotonic,
            changed=changed.beat,
            stale=lambda: self.stale,
            tracer=tracer,
        )
        self._publisher = Publisher(store, self._keyspace, self._witness.receipt, changed, self._metrics)
        self._server = BundleServer(self._witness, registry, hold=config.hold_seconds, stale=lambda: self.stale)

    def _lost(self) -> None:
        """What comes back may be an older etcd, restored, that has an older receipt of ours."""
        self._publisher.repeat()

    @property
    def mirror(self) -> Mirror:
        """The mirror that the bundles are made from."""
        return self._mirror

    @property
    def stale(self) -> bool:
        """Whether etcd is out of reach, so that what is served may be old."""
        return self._mirror.stale_since is not None

    @property
    def url(self) -> str:
        """Where the OPA finds this agent, once it runs."""
        return f"http://{self._config.host}:{self._server.port}"

    async def run(self) -> NoReturn:
        """Serve until cancelled. `OSError` when the port is taken."""
        async with self.running():
            await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets was set")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        """Serve while the block runs; ending it takes at most about two seconds."""
        former = await self._restore()
        try:
            await self._server.start(self._config.host, self._config.port)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._mirror.run()),
                    group.create_task(self._offer_states(former)),
                    group.create_task(self._publisher.run_receipts()),
                    group.create_task(self._publisher.run_alive()),
                ]
                try:
                    yield self
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            await self._server.stop()

    async def _restore(self) -> Bundle | None:
        """Offer the copy on disk, if it is for this scope; its order is never gone below in any case."""
        try:
            saved = await asyncio.to_thread(self._disk.load)
        except (OSError, ValueError) as error:
            log.warning("the bundle on disk is not used", extra={"error": str(error)})
            return None
        if saved is None:
            return None
        self._mirror.never_below(saved.order)
        if saved.scope != self._config.scope:
            return None
        self._restored = saved.commit
        self._offered(Offer(saved.bundle, saved.commit, live_digest=saved.live_digest))
        return saved.bundle

    async def _offer_states(self, former: Bundle | None) -> NoReturn:
        """Offer each new state of the mirror; of several at once, the last."""
        state: MirrorState | None = None
        while True:
            first = state is None
            state = await self._mirror.wait_newer(state)
            mirrored_at, begun = rfc3339_now(), time.monotonic()
            former = await self._persist(state, former)
            self._metrics.build_seconds.observe(time.monotonic() - begun)
            self._metrics.policies.set(len(state.policies))
            applied = state.applied
            told = (applied.at, self._trace(applied, first=first), applied.digest) if applied else (None, None, None)
            self._offered(Offer(former, state.commit or NO_REVISION, mirrored_at, *told))

    def _trace(self, applied: Applied, *, first: bool) -> str | None:
        """The trace context of an apply, as far as this agent takes part in it. What it finds at its start was applied
        long ago as a rule, unless it is what the agent was about to serve when it was restarted."""
        if first and (applied.commit != self._restored or _seconds_since(applied.at) > _UNDER_WAY):
            return None
        return context_in(applied.trace) if isinstance(applied.trace, str) else None

    async def _persist(self, state: MirrorState, former: Bundle | None) -> Bundle:
        """The bundle of ``state``, on disk: what is served must survive a restart, so a full disk is waited for."""
        backoff = Backoff()
        while True:
            try:
                return await asyncio.to_thread(self._make, state, former)
            except OSError as error:
                self._metrics.disk_errors.inc()
                log.warning("the bundle cannot be written to disk", extra={"error": str(error)})
                await backoff.sleep()

    def _make(self, state: MirrorState, former: Bundle | None) -> Bundle:
        """Build and save: in a thread, as both block."""
        bundle = self._builder.build(state, former)
        order, digest = (state.applied.order, state.applied.digest) if state.applied else (None, None)
        self._disk.save(Saved(bundle, state.commit or NO_REVISION, order, self._config.scope, digest))
        return bundle

    def _offered(self, offer: Offer) -> None:
        self._server.set_offer(offer)
        self._metrics.bundle_bytes.set(len(offer.bundle.body))
        self._metrics.last_served.set_to_current_time()


class _Observer:
    """The mirror's doings as metrics. ``on_lost`` is called when etcd was lost sight of, or may be another one."""

    def __init__(self, metrics: AgentMetrics, on_lost: Callable[[], None]) -> None:
        self._metrics = metrics
        self._on_lost = on_lost

    def advanced(self, how: str, seconds: float, policies_read: int) -> None:
        del policies_read
        self._metrics.advances.labels(how).inc()
        self._metrics.read_seconds.labels(how).observe(seconds)
        if how == "snapshot":
            # The chain of applies had a gap: maybe a restored etcd, which has written so much since that its counters
            # do not tell, and which has an older receipt of ours.
            self._on_lost()

    def resumed(self) -> None:
        self._on_lost()

    def kept(self, reason: str) -> None:
        self._metrics.kept.labels(reason).inc()

    def lost(self, error: RegopsError) -> None:
        del error
        self._metrics.store_errors.labels("mirror").inc()
        self._on_lost()


def _seconds_since(at: str) -> float:
    """Infinitely many since what is no time."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")
