"""The audit trail in MongoDB follows the log, and never stands in its way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes.record import InMemoryAudit
from fixtures.etcd import eventually
from prometheus_client import CollectorRegistry

from reconciler.audit import AuditEvent
from reconciler.audit_projection import QUEUE, AuditProjection, Projected
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
    def __init__(self, limit: int = 100, folder: Path | None = None) -> None:
        self.store, self.log, self.registry = InMemoryAudit(), _Log(), CollectorRegistry()
        self.projection = AuditProjection(
            self.store,
            limit=limit,
            settings=LoopSettings(backoff_min=0.001, backoff_max=0.002),
            metrics=ProjectionMetrics(self.registry),
            folder=folder,
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
    assert world.registry.get_sample_value("regops_audit_dropped_total", {"of": "others"}) == 2
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


def on_disk(folder: Path) -> str:
    """The whole queue; nothing else may lie in the folder."""
    return "".join(file.read_text() for file in folder.iterdir())


def tear(folder: Path, text: str) -> None:
    (folder / QUEUE).write_text(text)


async def test_a_queue_on_disk_outlives_the_process(tmp_path: Path) -> None:
    """MongoDB is away for long, and the server is restarted meanwhile."""
    first = World(folder=tmp_path)
    first.store.away = AWAY
    for name in "abc":
        first.emit(name)
    await first.projection.aclose()
    second = World(folder=tmp_path)
    second.emit("d")
    await second.projection.flush()
    assert await second.requests() == ["a", "b", "c", "d"]
    await second.projection.aclose()
    assert not on_disk(tmp_path)
    assert await World(folder=tmp_path).requests() == []


async def test_a_line_that_a_crash_has_torn_costs_that_line_only(tmp_path: Path) -> None:
    first = World(folder=tmp_path)
    first.emit("a")
    first.emit("b")
    text = on_disk(tmp_path)
    tear(tmp_path, text[:-20])
    second = World(folder=tmp_path)
    await second.projection.flush()
    assert await second.requests() == ["a"]


async def test_the_queue_on_disk_grows_no_larger_than_what_waits(tmp_path: Path) -> None:
    world = World(limit=10, folder=tmp_path)
    world.store.away = AWAY
    for number in range(3000):
        world.emit(str(number))
    assert len(on_disk(tmp_path).splitlines()) < 600
    again = World(limit=10, folder=tmp_path)
    await again.projection.flush()
    assert await again.requests() == sorted(str(number) for number in range(2990, 3000))


async def test_a_disk_that_cannot_be_written_costs_no_event_of_a_process_that_lives(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    world = World(folder=tmp_path / "file")
    world.emit("a")
    await world.projection.flush()
    assert await world.requests() == ["a"]


async def test_a_lost_event_of_a_commit_has_the_branch_looked_through_again() -> None:
    world = World(limit=1)
    await world.store.verify("c" * 40)
    world.sink.emit(AuditEvent("ann", "put", "platform", "updated", "a", commit="a" * 40))
    world.emit("b")
    assert world.registry.get_sample_value("regops_audit_dropped_total", {"of": "commits"}) == 1
    await world.projection.flush()
    assert await world.store.verified() is None
