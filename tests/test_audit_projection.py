"""The audit trail in MongoDB follows the log, and never stands in its way."""

from __future__ import annotations

import asyncio

import pytest
from fakes.record import InMemoryAudit
from fixtures.etcd import eventually
from prometheus_client import CollectorRegistry

from reconciler.audit import AuditEvent
from reconciler.audit_projection import AuditProjection, Projected
from reconciler.core.errors import TransientError
from reconciler.core.record_ports import AuditQuery
from reconciler.metrics import ProjectionMetrics
from reconciler.settings import LoopSettings

AWAY = TransientError("away", reason="RecordUnavailable")


class _Log:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.full = False

    def emit(self, event: AuditEvent) -> None:
        if self.full:
            raise TransientError("no room", reason="AuditFailed")
        self.events.append(event)

    def holds(self, attempt: str) -> bool:
        return any(event.id == attempt for event in self.events)


class World:
    def __init__(self, limit: int = 100) -> None:
        self.store, self.log, self.registry = InMemoryAudit(), _Log(), CollectorRegistry()
        self.projection = AuditProjection(
            self.store,
            limit=limit,
            settings=LoopSettings(backoff_min=0.001, backoff_max=0.002),
            metrics=ProjectionMetrics(self.registry),
        )
        self.sink = Projected(self.log, self.projection)

    def emit(self, request: str) -> None:
        self.sink.emit(AuditEvent("ann", "policy.put", "platform", "updated", request))

    async def requests(self) -> list[str]:
        events, _ = await self.store.events(AuditQuery())
        return sorted(str(event["request_id"]) for event in events)


async def test_what_is_logged_is_projected_once_even_when_an_answer_was_lost() -> None:
    world = World()
    running = asyncio.ensure_future(world.projection.run())
    world.emit("a")
    await eventually(lambda: len(world.store.stored) == 1)
    world.store.fail("append", AWAY)
    world.emit("b")
    world.emit("c")
    await eventually(lambda: len(world.store.stored) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await world.requests() == ["a", "b", "c"]
    assert world.registry.get_sample_value("regops_audit_projected_total") == 3
    assert world.registry.get_sample_value("regops_audit_pending") == 0


async def test_while_the_store_is_away_events_queue_up_to_the_limit_and_the_rest_is_counted() -> None:
    world = World(limit=3)
    world.store.away = AWAY
    running = asyncio.ensure_future(world.projection.run())
    for name in "abcde":
        world.emit(name)
    await eventually(lambda: world.store.calls["append"] >= 2)
    assert len(world.log.events) == 5
    assert world.registry.get_sample_value("regops_audit_dropped_total") == 2
    world.store.away = None
    await eventually(lambda: len(world.store.stored) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await world.requests() == ["c", "d", "e"]


async def test_what_the_log_does_not_have_is_not_projected_either() -> None:
    world = World()
    world.log.full = True
    with pytest.raises(TransientError):
        world.emit("a")
    await world.projection.aclose()
    assert await world.requests() == []


async def test_the_last_events_are_projected_at_the_end() -> None:
    world = World()
    world.emit("a")
    await world.projection.aclose()
    assert await world.requests() == ["a"]
    world.store.away = AWAY
    world.emit("b")
    await world.projection.aclose()
