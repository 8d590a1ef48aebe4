"""A world for each test module of the API: its tests share remote, etcd and replica, each has projects of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fixtures.etcd import EtcdServer
from fixtures.replicas import Replica, World, open_world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer) -> AsyncIterator[World]:
    async with open_world(tmp_path_factory.mktemp("world"), etcd_server) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(world: World) -> AsyncIterator[Replica]:
    async with world.replica() as replica:
        await replica.get("/policies", Policy_Min_Commit=world.remote.head)
        yield replica
