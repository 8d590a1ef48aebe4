"""The log of passes while etcd is slow, and after the lead was lost; on etcd in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fakes.source import InMemorySource
from fakes.store import InMemoryStore
from fixtures.etcd import eventually
from prometheus_client import CollectorRegistry

from reconciler.core.errors import TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.passes import PassRecord
from reconciler.core.ports import Fence
from reconciler.metrics import FleetMetrics
from reconciler.pass_log import PassLog
from reconciler.triggers import Kind, Trigger

KEYS = Keyspace("/p/", "/r/")
WAITING = 100


def log_of(store: InMemoryStore) -> PassLog:
    return PassLog(store, KEYS, InMemorySource(), leader="me", metrics=FleetMetrics(CollectorRegistry()))


def fence(store: InMemoryStore) -> Fence:
    return Fence(KEYS.leader, store.put(KEYS.leader, b"me"))


def fail(journal: PassLog, reason: str) -> None:
    journal.failed(TransientError("no", reason=reason), Trigger(Kind.POLL, datetime.now(UTC)))


@contextlib.asynccontextmanager
async def running(journal: PassLog, held: Fence) -> AsyncIterator[None]:
    task = asyncio.ensure_future(journal.run(held))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def reasons(store: InMemoryStore) -> list[str]:
    return [PassRecord.decode(value).reason for value in store.values(KEYS.passes).values()]


async def test_who_leads_no_more_writes_no_entry() -> None:
    """A leader that slept through its lease wrote into the log of the one after it, and deleted from it."""
    store = InMemoryStore()
    own = fence(store)
    store.delete(KEYS.leader)
    other = fence(store)
    deposed, leading = log_of(store), log_of(store)
    async with running(deposed, own), running(leading, other):
        fail(deposed, "Mine")
        commits = store.calls["commit"]
        await eventually(lambda: store.calls["commit"] > commits)
        fail(leading, "Theirs")
        await eventually(lambda: reasons(store))
        assert reasons(store) == ["Theirs"]


async def test_an_entry_that_overflows_while_another_is_written_takes_no_other_with_it() -> None:
    """The queue dropped the entry that was being written, and the next one was taken out in its place, unwritten."""
    store = InMemoryStore()
    journal = log_of(store)
    async with running(journal, fence(store)):
        slow = store.hold("commit")
        fail(journal, "First")
        await eventually(lambda: store.calls["commit"] == 1)
        for number in range(WAITING):
            fail(journal, f"R{number}")
        slow.set()
        await eventually(lambda: len(reasons(store)) == WAITING + 1)
        assert set(reasons(store)) == {"First", *(f"R{number}" for number in range(WAITING))}
