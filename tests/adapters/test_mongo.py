"""What is MongoDB's alone: deadlines, and its errors in our words."""

from __future__ import annotations

import asyncio
import signal
from time import monotonic

import pytest
from fixtures.etcd import free_port
from fixtures.mongo import MongoServer

from reconciler.adapters.mongo import MongoAudit, MongoDatabase, MongoVersions
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import PLATFORM


@pytest.mark.parametrize("uri", ["mongodb://", "mongodb://user:secret@host:99999", "http://host"])
async def test_a_uri_that_is_none_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(StalledError) as refused:
        MongoDatabase(uri)
    assert refused.value.reason == "InvalidSettings"
    assert "secret" not in str(refused.value)


async def test_a_server_that_is_away_is_said_within_the_deadline() -> None:
    database = MongoDatabase(f"mongodb://127.0.0.1:{free_port()}", timeout=0.3)
    began = monotonic()
    with pytest.raises(TransientError) as away:
        await MongoVersions(database).bookmark()
    await database.aclose()
    assert away.value.reason == "RecordUnavailable"
    assert monotonic() - began < 2


async def test_a_server_that_hangs_costs_the_deadline_and_answers_again_afterwards(mongo_server: MongoServer) -> None:
    database = MongoDatabase(mongo_server.uri, timeout=0.5)
    store = MongoVersions(database)
    mark = await store.bookmark()
    mongo_server.signal(signal.SIGSTOP)
    began = monotonic()
    for call in (
        store.bookmark(),
        store.advance(mark.generation, 2),
        store.versions(PLATFORM),
        MongoAudit(database).append([]),
    ):
        with pytest.raises(TransientError):
            await call
    assert monotonic() - began < 10
    mongo_server.signal(signal.SIGCONT)
    assert await _patiently(store) == mark.generation
    await database.aclose()


async def test_a_server_that_died_is_found_again_when_it_is_back(mongo_server: MongoServer) -> None:
    database = MongoDatabase(mongo_server.uri, timeout=0.5)
    store = MongoVersions(database)
    mark = await store.bookmark()
    await asyncio.to_thread(mongo_server.stop)
    with pytest.raises(TransientError):
        await store.bookmark()
    await asyncio.to_thread(mongo_server.start)
    assert await _patiently(store) == mark.generation
    await database.aclose()


async def test_a_connection_that_was_closed_is_no_defect() -> None:
    database = MongoDatabase(f"mongodb://127.0.0.1:{free_port()}", timeout=0.3)
    await database.aclose()
    await database.aclose()
    with pytest.raises(StalledError):
        await MongoVersions(database).bookmark()


async def _patiently(store: MongoVersions) -> str:
    """The record's generation, as soon as the server answers."""
    async with asyncio.timeout(15):
        while True:
            try:
                return (await store.bookmark()).generation
            except TransientError:
                await asyncio.sleep(0.05)
