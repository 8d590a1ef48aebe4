"""The fleet while etcd is away: what was known last, as not known now, and nobody is blamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.agents import Agent, ago
from fixtures.etcd import EtcdServer, eventually
from fixtures.replicas import World, open_world

from regops.commands.tables import fleet_now, status_page


@pytest.fixture
async def world(tmp_path: Path, etcd: EtcdServer) -> AsyncIterator[World]:
    async with open_world(tmp_path, etcd) as world:
        yield world


async def test_while_etcd_is_away_the_fleet_is_what_was_known_last_and_unknown(world: World, etcd: EtcdServer) -> None:
    """`GET /fleet` was 503, where its description promises agents that are not observed; `regops status` called each
    agent silent, and stale."""
    async with world.replica() as replica:
        store = world.store()
        agent = Agent(world, store, "one")
        await agent.live()
        await agent.tell(world.remote.head, ago(5))
        (known,) = (await replica.get("/fleet")).body["agents"]
        assert (known["state"], known["commit"]) == ("known", world.remote.head)
        await replica.get("/status")
        await store.aclose()
        etcd.stop()

        async def away() -> bool:
            return bool((await replica.get("/fleet")).body["missing"])

        await eventually(away, 20)
        answer = await replica.get("/fleet")
        (last,) = answer.body["agents"]
        assert answer.status == 200
        assert (last["state"], last["reason"], last["commit"]) == ("unknown", "unobserved", None)
        assert last["last_commit"] == world.remote.head
        assert last["since"] > known["since"], "since when it is not known"
        totals = answer.body["totals"]
        assert (totals["unknown"], totals["stale"], totals["behind"]) == (1, 0, 0)
        status = (await replica.get("/status")).body
        for page in (fleet_now(answer.body), status_page(status)):
            assert "etcd cannot be read" in page
            assert "silent" not in page
            assert "stale" not in page


async def test_a_replica_that_never_read_etcd_knows_of_no_agent_and_says_so() -> None:
    document = {"agents": [], "missing": "etcd cannot be read now, and no agent was seen in it before"}
    assert fleet_now(document) == f"Missing: {document['missing']}"
