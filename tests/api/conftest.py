"""A world for each test module of the API: its tests share remote, etcd and replica, each has projects of its own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fixtures.etcd import EtcdServer
from fixtures.replicas import Replica, World, open_world
from pymongo import AsyncMongoClient as MongoClient

from reconciler.settings import MongoSettings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer) -> AsyncIterator[World]:
    async with open_world(tmp_path_factory.mktemp("world"), etcd_server) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(world: World) -> AsyncIterator[Replica]:
    async with world.replica() as replica:
        await replica.get("/policies", Policy_Min_Commit=world.remote.head)
        yield replica


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def recorded(world: World, mongo_uri: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    """A replica with a record in MongoDB."""
    name = f"regops-{tmp_path_factory.mktemp('record').name}-{uuid.uuid4().hex[:8]}"
    async with world.replica(mongo=MongoSettings(uri=mongo_uri, database=name)) as replica:
        await replica.get("/policies", Policy_Min_Commit=world.remote.head)
        yield replica
    client: MongoClient[dict[str, object]]
    async with MongoClient(mongo_uri) as client:
        await client.drop_database(name)
