"""GET /fleet: what each OPA enforces, and what it enforced at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from fixtures.agents import Agent, ago
from fixtures.etcd import eventually
from fixtures.replicas import Answer, Replica, World
from fixtures.tokens import token

from reconciler.adapters.etcd import EtcdStore
from reconciler.settings import MongoSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

C1, C2 = "1" * 40, "2" * 40


@pytest.fixture
async def store(world: World) -> AsyncIterator[EtcdStore]:
    opened = world.store()
    yield opened
    await opened.aclose()


async def at(replica: Replica, time: str, **more: str) -> Answer:
    return await replica.get(f"/fleet?at={time}", **more)


async def shown(replica: Replica, time: str, name: str) -> tuple[str, str | None, str | None]:
    """State, commit and reason of one agent."""
    answer = await at(replica, time)
    assert answer.status == 200, answer.body
    found = next((each for each in answer.body["agents"] if each["id"] == name), None)
    return (found["state"], found["commit"], found["reason"]) if found else ("absent", None, None)


async def becomes(replica: Replica, time: str, name: str, *expected: str | None) -> None:
    async def so() -> bool:
        return await shown(replica, time, name) == expected

    await eventually(so)


async def test_what_each_opa_enforced_at_a_time(recorded: Replica, world: World, store: EtcdStore) -> None:
    agent = Agent(world, store, "a")
    first, lost, second = ago(300), ago(200), ago(100)
    await agent.live()
    await agent.tell(C1, first)
    await becomes(recorded, ago(250), "a", "known", C1, None)
    await agent.tell(None, lost)
    await agent.tell(C2, second)
    await becomes(recorded, ago(50), "a", "known", C2, None)
    assert await shown(recorded, ago(150), "a") == ("unknown", None, "withdrawn")
    assert await shown(recorded, ago(400), "a") == ("absent", None, None)
    (then,) = [each for each in (await at(recorded, ago(250))).body["agents"] if each["id"] == "a"]
    assert then == {
        "id": "a",
        "datacentre": "east",
        "scope": "all",
        "commit": C1,
        "enforced_revision": f"main@sha1:{C1}",
        "since": first,
        "to": lost,
        "state": "known",
        "reason": None,
        "last_commit": C1,
        "opa_version": "1.4.2",
        "error": None,
    }
    (between,) = [each for each in (await at(recorded, ago(150))).body["agents"] if each["id"] == "a"]
    assert (between["since"], between["to"], between["last_commit"]) == (lost, None, C1)


async def test_what_each_opa_enforces_now_is_what_the_status_says(
    replica: Replica, world: World, store: EtcdStore
) -> None:
    alive, silent, starting = (Agent(world, store, name) for name in ("now", "silent", "starting"))
    await alive.live()
    await alive.tell(C1, ago(60))
    await silent.tell(C1, ago(60))
    await starting.live()
    await starting.tell(None, ago(5))
    answer = await replica.get("/fleet")
    agents = {each["id"]: each for each in answer.body["agents"]}
    assert (answer.status, answer.body["missing"]) == (200, None)
    assert (agents["now"]["state"], agents["now"]["commit"]) == ("known", C1)
    assert (agents["silent"]["state"], agents["silent"]["reason"], agents["silent"]["last_commit"]) == (
        "unknown",
        "silent",
        C1,
    )
    assert (agents["starting"]["state"], agents["starting"]["reason"]) == ("unknown", "withdrawn")
    for each in (await replica.get("/status")).body["agents"]:
        assert each.items() <= agents[each["id"]].items()


async def test_a_time_before_the_record_says_where_it_begins(recorded: Replica, world: World, store: EtcdStore) -> None:
    agent = Agent(world, store, "b")
    await agent.live()
    await agent.tell(C1, ago(30))
    await becomes(recorded, ago(10), "b", "known", C1, None)
    answer = await at(recorded, "2020-01-01T00:00:00Z")
    assert (answer.status, answer.body["agents"]) == (200, [])
    assert "the record begins at " in answer.body["missing"]


@pytest.mark.parametrize("time", ["", "yesterday", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"])
async def test_what_is_no_time_is_refused(recorded: Replica, time: str) -> None:
    answer = await at(recorded, time)
    assert (answer.status, answer.code) == (400, "validation_error")
    assert "RFC 3339" in answer.body["detail"]


async def test_the_future_is_refused(recorded: Replica) -> None:
    answer = await at(recorded, ago(-3600))
    assert (answer.status, answer.code) == (400, "validation_error")
    assert "still to come" in answer.body["detail"]


async def test_without_mongodb_or_while_it_is_away_the_answer_says_so_and_now_is_still_known(world: World) -> None:
    for mongo in (MongoSettings(), MongoSettings(uri="mongodb://127.0.0.1:1/", timeout=0.2)):
        async with world.replica(mongo=mongo) as replica:
            answer = await at(replica, ago(60))
            assert (answer.status, answer.code) == (503, "unavailable")
            assert "MongoDB" in answer.body["detail"]
            assert (await replica.get("/fleet")).status == 200


async def test_a_project_sees_neither_other_projects_nor_the_words_of_an_opa(
    recorded: Replica, world: World, store: EtcdStore
) -> None:
    """The status showed both: the scopes of all agents, and OPA's errors, which name files of any project."""
    everything, two, other = (
        Agent(world, store, name, scope)
        for name, scope in (("all", "all"), ("two", "projects:alpha,secret"), ("other", "projects:secret"))
    )
    for agent in (everything, two, other):
        await agent.live()
        await agent.tell(C1, ago(30), error="projects/secret/rego.rego:1: no")
    await becomes(recorded, ago(10), "other", "known", C1, None)
    member = token(sub="ann", project="alpha")
    for path in ("/fleet", f"/fleet?at={ago(10)}", "/status"):
        answer = await recorded.get(path, bearer=member)
        agents = {each["id"]: each for each in answer.body["agents"]}
        assert "secret" not in str(answer.body["agents"])
        assert "other" not in agents
        assert (agents["two"]["scope"], agents["all"]["scope"]) == ("projects:alpha", "all")
        assert agents["all"]["error"] is not None
        admin = await recorded.get(path)
        assert "projects/secret/rego.rego" in str(admin.body["agents"])
    assert (await recorded.get("/fleet", bearer="")).status == 401


async def test_an_agent_that_dies_is_unknown_from_then_on(recorded: Replica, world: World, store: EtcdStore) -> None:
    agent = Agent(world, store, "dies")
    await agent.live()
    await agent.tell(C1, ago(30))
    await becomes(recorded, ago(10), "dies", "known", C1, None)
    await agent.die()
    died = datetime.now(UTC)

    async def ended() -> bool:
        return await shown(recorded, ago(0), "dies") == ("unknown", None, "silent")

    await eventually(ended)
    before = (died - timedelta(seconds=5)).isoformat().replace("+00:00", "Z")
    assert await shown(recorded, before, "dies") == ("known", C1, None)


async def test_with_a_record_it_is_known_when_an_opa_that_went_on_had_enforced_it(
    recorded: Replica, world: World, store: EtcdStore
) -> None:
    agent = Agent(world, store, "recorded")
    await agent.live()
    first = (await recorded.put("kept", query="?wait=live")).commit
    since = ago(0)
    await agent.tell(first, since)

    async def there() -> bool:
        answer = await recorded.get(f"/fleet?at={since}")
        return any(each["commit"] == first for each in answer.body["agents"])

    await eventually(there)
    second = (await recorded.put("later", query="?wait=live")).commit
    await agent.tell(second, ago(0))

    async def moved() -> bool:
        found = (await recorded.get(f"/trace?commit={first}")).body
        (each,) = [each for each in found["agents"] if each["id"] == "recorded"]
        return (each["state"], each["at"]) == ("enforced", since) and found["missing"] == []

    await eventually(moved)
    await agent.forget()
