"""A server with MongoDB, an agent and a real OPA: what the OPA enforced is known later, also after an outage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fixtures.etcd import EtcdServer, eventually
from fixtures.mongo import MongoServer
from fixtures.opa import OpaServer
from fixtures.replicas import Replica, World, open_world

from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.opa_config import opa_config
from reconciler.settings import MongoSettings

SECONDS = 30.0


@contextlib.asynccontextmanager
async def opa_with_agent(world: World) -> AsyncIterator[None]:
    """The fleet: one OPA and the agent beside it."""
    store = world.store()
    config = AgentConfig(datacentre="east", id="one", state_dir=world.folder / "agent", port=0)
    opa = OpaServer(world.folder / "enforcing")
    try:
        async with Agent(store, config, keyspace=world.keys).running() as agent:
            opa.config = opa_config(agent.url)
            await opa.start()
            yield
    finally:
        await opa.stop()
        await store.aclose()


async def enforced(replica: Replica, at: str) -> dict[str, Any]:
    """What is told of the one OPA; empty while nothing is."""
    answer = await replica.get(f"/fleet?at={at}")
    agents: list[dict[str, Any]] = answer.body["agents"] if answer.status == 200 else []
    return agents[0] if agents else {}


async def becomes(replica: Replica, at: str | None, commit: str | None, reason: str | None = None) -> str:
    """Wait until this is told of ``at`` (``None``: of the moment itself), and the moment."""
    moments = [""]

    async def so() -> bool:
        moments[0] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        found = await enforced(replica, at or moments[0])
        return bool(found) and (found["commit"], found["reason"]) == (commit, reason)

    await eventually(so, SECONDS)
    return moments[0]


async def test_what_an_opa_enforced_is_known_later_also_of_an_outage_of_mongodb_and_of_another_leader(
    tmp_path: Path, etcd_server: EtcdServer, mongo_server: MongoServer
) -> None:
    settings = MongoSettings(uri=mongo_server.uri, timeout=0.5)
    async with open_world(tmp_path, etcd_server) as world:
        async with world.replica(mongo=settings) as replica, opa_with_agent(world):
            first = world.remote.head
            began = await becomes(replica, None, first)
            await asyncio.to_thread(mongo_server.stop)
            put = await replica.put("gamma", "one", query="?wait=active&timeout=20")
            assert (put.status, put.headers["Policy-Sync"]) == (201, "active"), "nothing waits for the record"
            assert (await replica.get(f"/fleet?at={began}")).code == "unavailable"
            await asyncio.to_thread(mongo_server.start)
            moved = await becomes(replica, None, put.commit)
            before = await enforced(replica, began)
            assert (before["commit"], before["to"] is None) == (first, False)
            since = (await enforced(replica, moved))["since"]
        # The agent ended well: it took back its sign of life, and the leader ended before it could see that.
        async with world.replica(mongo=settings) as replica, opa_with_agent(world):
            later = await becomes(replica, None, put.commit)
            assert (await enforced(replica, moved))["since"] == since
            assert (await enforced(replica, later))["since"] > since
            assert (await enforced(replica, began))["commit"] == first
