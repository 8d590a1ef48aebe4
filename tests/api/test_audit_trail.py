"""GET /audit: what was done, found again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from fixtures.etcd import eventually
from fixtures.replicas import Replica, World, rego
from fixtures.tokens import token

from reconciler.settings import MongoSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def replica(recorded: Replica) -> Replica:
    return recorded


async def results(replica: Replica, query: str, count: int) -> list[str]:
    """What the events say that fit, newest first, once there are so many."""
    found: list[str] = []

    async def there() -> bool:
        answer = await replica.get(f"/audit?{query}")
        assert answer.status == 200, answer.body
        found[:] = [event["result"] for event in answer.body["items"]]
        return len(found) >= count

    await eventually(there)
    return found


async def test_every_attempt_is_found_by_policy_actor_result_and_time(replica: Replica) -> None:
    began = datetime.now(UTC).isoformat()
    done = await replica.put("trail", "v1")
    await replica.put("trail", "v2", If_Match=done.etag)
    await replica.put("trail", "v3", If_Match=done.etag)
    eve = token(sub="eve", project="trail")
    await replica.call("PUT", "/policies/trail", {"rego": rego("trail")}, bearer=eve)
    assert await results(replica, "policy=trail&action=put", 4) == ["forbidden", "conflict", "updated", "created"]
    assert await results(replica, "policy=projects/trail&actor=eve", 1) == ["forbidden"]
    assert await results(replica, "policy=trail&result=updated&action=put", 1) == ["updated"]
    assert await results(replica, f"policy=trail&since={began.replace('+', '%2B')}&action=put", 4) != []
    assert await results(replica, f"policy=trail&until={began.replace('+', '%2B')}", 0) == []
    event = (await replica.get("/audit?policy=trail&result=created&action=put")).body["items"][0]
    assert (event["commit"], event["etag_after"], event["actor"]) == (done.commit, done.etag, "root")
    logged = next(each for each in replica.audit() if each["id"] == event["id"])
    assert {name: logged[name] for name in event} == event


async def test_events_are_paged(replica: Replica) -> None:
    for _ in range(3):
        await replica.call("POST", "/admin/resume")
    assert await results(replica, "action=resume", 3) == ["unchanged"] * 3
    seen = set()
    after = ""
    for _ in range(3):
        page = (await replica.get(f"/audit?action=resume&limit=1{after}")).body
        seen.add(page["items"][0]["id"])
        after = f"&after={page['next']}".replace("+", "%2B")
    assert (len(seen), page["next"]) == (3, None)


@pytest.mark.parametrize(
    "query",
    ["policy=Bad", "since=x", "until=2026-01-01", "limit=0", "limit=1001", "after=x", "actor=", "actr=ann", "result="],
)
async def test_a_filter_that_is_none_is_named(replica: Replica, query: str) -> None:
    answer = await replica.get(f"/audit?{query}")
    assert (answer.status, answer.code) == (400, "validation_error")
    assert query.partition("=")[0] in answer.body["detail"]


async def test_only_admins_read_it(replica: Replica) -> None:
    assert (await replica.get("/audit", bearer=token(sub="ann", project="alpha"))).status == 403
    assert (await replica.get("/audit", bearer="")).status == 401


async def test_without_mongodb_or_while_it_is_away_the_answer_says_so(world: World) -> None:
    for mongo in (MongoSettings(), MongoSettings(uri="mongodb://127.0.0.1:1/", timeout=0.2)):
        async with world.replica(mongo=mongo) as replica:
            answer = await replica.get("/audit")
            assert (answer.status, answer.code) == (503, "unavailable")
            assert "MongoDB" in answer.body["detail"]
            assert (await replica.call("POST", "/admin/resume")).status == 200
