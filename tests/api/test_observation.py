"""GET /status, /status/policies, /history, /trace and /events: what people and programs look at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from fixtures.agents import Agent, ago
from fixtures.etcd import EtcdServer, eventually
from fixtures.replicas import Replica, World, open_world, rego
from fixtures.tokens import token

from api import schemas
from reconciler.adapters.etcd import EtcdStore
from reconciler.core.passes import PassRecord
from reconciler.core.ports import Put, Transaction
from reconciler.settings import ApiSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEMBER = {"bearer": token(sub="ann", project="mine")}


@pytest_asyncio.fixture(loop_scope="module")
async def store(world: World) -> AsyncIterator[EtcdStore]:
    opened = world.store()
    yield opened
    await opened.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(world: World, store: EtcdStore) -> AsyncIterator[dict[str, Agent]]:
    """Two agents for everything, one of them in the west, and one for a project."""
    agents = {
        "a": Agent(world, store, "a"),
        "b": Agent(world, store, "b", datacentre="west"),
        "p": Agent(world, store, "p", scope="projects:mine"),
    }
    for each in agents.values():
        await each.live()
    yield agents
    for each in agents.values():
        await each.forget()


async def applied(replica: Replica) -> str:
    return str((await replica.get("/status")).body["last_applied_revision"]).rpartition(":")[2]


async def live(replica: Replica, project: str, word: str = "first") -> str:
    """Written, and live: its commit."""
    before = await replica.get(f"/policies/{project}?ref=head")
    condition = {"If_Match": before.etag} if before.status == 200 else {}
    answer = await replica.put(project, word, query="?wait=live", **condition)
    assert answer.headers["Policy-Sync"] == "live", answer.body
    return answer.commit


async def held(replica: Replica, world: World, project: str) -> str:
    """A version that does not compile is pushed past the API: its commit, once it was looked at."""
    commit = world.remote.commit({f"policies/projects/{project}/rego.rego": b"package projects.x\noops("})

    async def seen() -> bool:
        return any(each["policy"] == f"projects/{project}" for each in (await replica.get("/status")).body["held"])

    await eventually(seen)
    return commit


# --- /status ---------------------------------------------------------------------------------------------------------


async def test_the_status_counts_the_opas_by_what_they_prove(replica: Replica, fleet: dict[str, Agent]) -> None:
    commit = await applied(replica)
    await fleet["a"].tell(commit, ago(9))
    await fleet["b"].tell("1" * 40, ago(9), error="refused")
    await fleet["p"].tell(None, ago(9))
    counts = (await replica.get("/status")).body["fleet"]
    assert {name: counts[name] for name in counts if name != "datacentres"} == {
        "agents": 3,
        "current": 1,
        "behind": 1,
        "unknown": 1,
        "stale": 0,
        "errors": 1,
    }
    assert (counts["datacentres"]["west"]["behind"], counts["datacentres"]["east"]["agents"]) == (1, 2)
    await fleet["a"].die()
    assert (await replica.get("/status")).body["fleet"]["datacentres"]["east"]["stale"] == 1


async def test_a_member_sees_its_own_project_and_the_totals(replica: Replica, fleet: dict[str, Agent]) -> None:
    commit = await live(replica, "mine")
    await live(replica, "secret")
    for each in fleet.values():
        await each.tell(commit, ago(9))
    mine, all_of_it = (await replica.get("/status", **MEMBER)).body, (await replica.get("/status")).body
    assert mine["fleet"] == all_of_it["fleet"]
    listed = (await replica.get("/status/policies", **MEMBER)).body["items"]
    assert [each["policy"] for each in listed] == ["projects/mine"]
    assert (await replica.get("/status/policies/mine", **MEMBER)).status == 200
    assert (await replica.get("/status/policies/secret", **MEMBER)).status == 403
    assert (await replica.get("/status/policies/platform", **MEMBER)).status == 403
    for path in ("/status", "/history", "/status/policies", "/fleet"):
        assert "secret" not in str((await replica.get(path, **MEMBER)).body), path
        assert (await replica.get(path, bearer="")).status == 401


@pytest.mark.parametrize("path", ["/status", "/status/policies", "/status/policies/alpha", "/fleet", "/history"])
async def test_what_has_not_changed_is_not_sent_again(
    replica: Replica, world: World, store: EtcdStore, path: str
) -> None:
    first = await replica.get(path)
    again = await replica.get(path, If_None_Match=first.etag)
    assert (again.status, again.body, again.etag) == (304, None, first.etag)
    await live(replica, "alpha", f"for {path}")
    agent = Agent(world, store, "etag")
    await agent.live()
    await agent.tell("1" * 40, ago(1))
    changed = await replica.get(path, If_None_Match=first.etag)
    assert (changed.status, changed.etag != first.etag) == (200, True)
    await agent.forget()


@pytest.mark.parametrize(
    "path", ["/status", "/status/policies", "/status/policies/alpha", "/fleet", "/history", "/trace?policy=alpha"]
)
async def test_a_cache_may_name_several_etags_or_any(replica: Replica, path: str) -> None:
    first = await replica.get(path)
    for had in (first.etag, f"W/{first.etag}", f'"other", {first.etag}', f'W/"other",{first.etag} , "third"', "*"):
        again = await replica.get(path, If_None_Match=had)
        assert (again.status, again.body, again.etag) == (304, None, first.etag), had
        assert again.headers["Vary"] == first.headers["Vary"]
    for had in ('"other"', f'"other", {first.etag[:-2]}"', "", first.etag.strip('"')):
        assert (await replica.get(path, If_None_Match=had)).status == 200, had


# --- /status/policies ------------------------------------------------------------------------------------------------


async def test_a_policy_says_what_is_live_and_how_many_opas_enforce_it(
    replica: Replica, fleet: dict[str, Agent]
) -> None:
    commit = await live(replica, "mine", "counted")
    await live(replica, "other")
    now = await applied(replica)
    await fleet["a"].tell(now, ago(3))
    await fleet["b"].tell(commit if commit != now else "1" * 40, ago(3))
    await fleet["p"].tell(None, ago(3))
    found = (await replica.get("/status/policies/mine")).body
    assert (found["policy"], found["commit"], found["held"]) == ("projects/mine", commit, None)
    assert found["etag"] == (await replica.get("/policies/mine")).etag
    assert (found["actor"], found["rego_version"]) == ("Root Admin <root@example.org>", 1)
    assert found["agents"] == {"total": 3, "current": 1, "behind": 1, "unknown": 1, "errors": 0}
    assert (found["sync"], found["health"]) == ({"status": "Synced"}, {"status": "Unknown"})
    assert sorted(each["id"] for each in found["enforced_by"]) == ["a", "b", "p"]
    other = (await replica.get("/status/policies/other")).body
    assert (other["agents"]["total"], other["health"]["status"]) == (2, "Progressing")
    assert (await replica.get("/status/policies/platform")).body["agents"]["total"] == 3
    assert (await replica.get("/status/policies/never-was")).status == 404
    assert (await replica.get("/status/policies/Bad")).status == 400


async def test_a_policy_is_enforced_by_the_opas_of_its_shard(replica: Replica, world: World, store: EtcdStore) -> None:
    """`mine` is in shard 1 of 2 and in shard 1 of 4, which run side by side while the number of shards changes."""
    await live(replica, "mine", "sharded")
    now = await applied(replica)
    scopes = ("shard:1/2", "shard:2/2", "shard:1/4", "shard:4/4", "shard:9/4")
    agents = [Agent(world, store, scope.replace(":", "-").replace("/", "-"), scope) for scope in scopes]
    for each in agents:
        await each.live()
        await each.tell(now if each.scope == "shard:1/2" else "1" * 40, ago(3))
    try:
        found = (await replica.get("/status/policies/mine")).body
        assert sorted(each["scope"] for each in found["enforced_by"]) == ["shard:1/2", "shard:1/4", "shard:9/4"]
        assert found["agents"] == {"total": 3, "current": 1, "behind": 2, "unknown": 0, "errors": 0}
        assert (await replica.get("/status/policies/platform")).body["agents"]["total"] == 5
        seen = (await replica.get("/fleet", **MEMBER)).body["agents"]
        assert {each["scope"] for each in seen} == set(scopes), "the number of a shard names nobody's project"
    finally:
        for each in agents:
            await each.forget()


async def test_a_write_is_active_when_its_own_shard_enforces_it(
    replica: Replica, world: World, store: EtcdStore
) -> None:
    """The other shard is behind, and nobody waits for it; where no agent serves the shard, nothing is active."""
    own, other = Agent(world, store, "own", "shard:1/2"), Agent(world, store, "other", "shard:2/2")
    await other.live()
    await other.tell("1" * 40, ago(3))
    etag = (await replica.get("/policies/mine?ref=head")).etag
    alone = await replica.put("mine", "a shard without agent", query="?wait=active&timeout=1", If_Match=etag)
    assert alone.headers["Policy-Sync"] == "live"
    await own.live()
    await own.tell(await applied(replica), ago(3))
    answer = await replica.put("mine", "a shard without agent", query="?wait=active&timeout=5", If_Match=alone.etag)
    assert answer.headers["Policy-Sync"] == "active"
    for each in (own, other):
        await each.forget()


async def test_a_held_policy_is_out_of_sync_with_its_errors_also_when_it_never_was_live(
    replica: Replica, world: World
) -> None:
    await live(replica, "halved")
    commit = await held(replica, world, "halved")
    await held(replica, world, "unborn")
    found = (await replica.get("/status/policies/halved")).body
    assert (found["sync"]["status"], found["health"]["status"]) == ("OutOfSync", "Degraded")
    assert (found["held"]["commit"], found["held"]["errors"][0]["line"]) == (commit, 2)
    never = (await replica.get("/status/policies/unborn")).body
    assert (never["etag"], never["commit"], never["held"]["reason"]) == (None, None, "ValidationFailed")
    names = [each["policy"] for each in (await replica.get("/status/policies")).body["items"]]
    assert names == sorted(names)
    assert {"projects/halved", "projects/unborn", "projects/alpha", "platform"} <= set(names)
    pages, after = [], ""
    while after is not None:
        page = (await replica.get(f"/status/policies?limit=2&after={after}")).body
        pages += [each["policy"] for each in page["items"]]
        after = page["next"]
    assert pages == names


# --- /history --------------------------------------------------------------------------------------------------------


async def entry_of(replica: Replica, commit: str, **more: Any) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        items = (await replica.get("/history?limit=200", **more)).body["items"]
        found[:] = [each for each in items if each["commit"] == commit]
        return bool(found)

    await eventually(there)
    return found[0]


async def test_a_pass_tells_who_changed_what_and_how_long_it_took(replica: Replica) -> None:
    commit = await live(replica, "told")
    entry = await entry_of(replica, commit)
    assert (entry["outcome"], entry["created"]) == ("applied", 1)
    assert entry["trigger"] in {"api", "push"}, "the files of the remote are watched too"
    (change,) = entry["changes"]
    assert change == {
        "policy": "projects/told",
        "operation": "create",
        "commit": commit,
        "actor": "Root Admin <root@example.org>",
    }
    assert [each["commit"] for each in entry["commits"]] == [commit]
    assert 0 <= entry["seconds"]["validate"] <= entry["seconds"]["total"] < 60


async def test_a_member_sees_of_a_pass_what_is_its_own(replica: Replica, world: World) -> None:
    both = {f"policies/projects/{name}/rego.rego": rego(name, "both").encode() for name in ("mine", "secret")}
    commit = world.remote.commit(both, message="about secret things")
    entry = await entry_of(replica, commit)
    mine = await entry_of(replica, commit, **MEMBER)
    assert len(entry["changes"]) == 2
    assert [each["policy"] for each in mine["changes"]] == ["projects/mine"]
    assert mine["changes_more"] == 1
    assert mine["seconds"] == entry["seconds"]


async def test_the_history_is_paged(replica: Replica) -> None:
    whole = (await replica.get("/history?limit=200")).body["items"]
    found, after = [], ""
    while True:
        page = (await replica.get(f"/history?limit=2{after}")).body
        found += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert found == [each["id"] for each in whole]
    assert (await replica.get("/history?after=nothing")).status == 400
    assert (await replica.get("/history?limit=0")).status == 400


async def test_an_entry_that_cannot_be_read_is_left_out(replica: Replica, world: World, store: EtcdStore) -> None:
    put = Put(world.keys.logged("99999999999999-x"), b'{"id": "half')
    await store.commit(Transaction((), (put,)))
    answer = await replica.get("/history")
    assert answer.status == 200
    assert all("half" not in each["id"] for each in answer.body["items"])


# --- /trace ----------------------------------------------------------------------------------------------------------


async def test_a_commit_is_traced_from_its_push_to_every_opa(replica: Replica, fleet: dict[str, Agent]) -> None:
    commit = await live(replica, "traced")
    await fleet["a"].tell(commit, ago(0))
    await fleet["b"].tell("1" * 40, ago(50))
    await fleet["p"].tell(None, ago(50))
    await entry_of(replica, commit)
    found = (await replica.get(f"/trace?commit={commit[:9]}")).body
    assert (found["commit"], found["state"], found["author"]) == (commit, "live", "Root Admin <root@example.org>")
    assert [(each["policy"], each["state"]) for each in found["policies"]] == [("projects/traced", "live")]
    stages = {each["stage"]: each["at"] for each in found["stages"]}
    known = ("pushed", "seen", "fetched", "validated", "applied", "enforced_first")
    times = [stages[name] for name in known]
    assert None not in times
    assert times[1:5] == sorted(times[1:5])
    assert stages["enforced_everywhere"] is None
    agents = {each["id"]: each for each in found["agents"]}
    assert {name: each["state"] for name, each in agents.items()} == {"a": "enforced", "b": "behind", "p": "unknown"}
    assert agents["a"]["seconds"] is not None
    assert found["pass"]["commit"] == commit
    for name in ("b", "p"):
        await fleet[name].tell(commit, ago(0))
    done = (await replica.get("/trace?policy=traced")).body
    assert {each["stage"]: each["at"] for each in done["stages"]}["enforced_everywhere"] is not None


async def test_an_opa_that_went_on_enforces_the_commit_before_and_what_is_not_known_is_said(
    replica: Replica, fleet: dict[str, Agent]
) -> None:
    first = await live(replica, "goes")
    second = await live(replica, "on")
    await fleet["a"].tell(second, ago(0))
    found = (await replica.get(f"/trace?commit={first}")).body
    (agent,) = [each for each in found["agents"] if each["id"] == "a"]
    assert (agent["state"], agent["at"]) == ("enforced", None)
    assert any("no MongoDB is configured" in note for note in found["missing"])


async def test_what_became_of_a_commit_is_said_in_a_word(replica: Replica, world: World) -> None:
    old = await live(replica, "word")
    new = await live(replica, "word", "second")
    bad = await held(replica, world, "word")
    readme = world.remote.commit({"README.md": b"hello"})
    await entry_of(replica, readme)
    states = {}
    for commit in (old, new, bad, readme):
        states[commit] = (await replica.get(f"/trace?commit={commit}")).body["state"]
    assert states == {old: "superseded", new: "live", bad: "held", readme: "applied"}
    found = (await replica.get("/trace?policy=word")).body
    assert (found["commit"], found["policies"][0]["reason"]) == (bad, "ValidationFailed")
    assert "rego.rego" in found["policies"][0]["errors"][0]


async def test_a_replica_that_does_not_lead_traces_what_others_applied(world: World, replica: Replica) -> None:
    """It fetches only when it is asked for what it has not: what was applied since was once called pending."""
    async with world.replica(reconciler=False) as other:
        assert (await other.get("/trace?policy=platform")).status == 200
        commit = await live(replica, "elsewhere")
        await other.get("/policies", Policy_Min_Commit=commit)
        again = await live(replica, "elsewhere-too")

        async def told() -> bool:
            answers = [await other.get(f"/trace?{query}") for query in (f"commit={again[:8]}", "policy=elsewhere-too")]
            return [each.body.get("state") for each in answers] == ["live", "live"]

        await eventually(told)


async def test_a_commit_that_waits_for_somebody_is_pending(replica: Replica, world: World) -> None:
    await replica.call("POST", "/admin/suspend", {"reason": "a test"})
    commit = world.remote.commit({"policies/projects/waits/rego.rego": rego("waits").encode()})

    async def pending() -> bool:
        answer = await replica.get(f"/trace?commit={commit}")
        return bool(answer.status == 200 and answer.body["state"] == "pending")

    try:
        await eventually(pending)
        found = (await replica.get(f"/trace?commit={commit}")).body
        assert found["pass"] is None
        assert [each["stage"] for each in found["stages"] if each["at"]] == ["pushed"]
    finally:
        await replica.call("POST", "/admin/resume")


async def test_a_member_traces_only_what_changes_its_own_policies(replica: Replica) -> None:
    other = await live(replica, "theirs")
    mine = await live(replica, "mine", "traced")
    assert (await replica.get(f"/trace?commit={mine}", **MEMBER)).status == 200
    refused = await replica.get(f"/trace?commit={other}", **MEMBER)
    unknown = await replica.get(f"/trace?commit={'9' * 40}", **MEMBER)
    assert (refused.status, unknown.status) == (404, 404), "what exists is not told"
    assert (await replica.get("/trace?policy=theirs", **MEMBER)).status == 403


@pytest.mark.parametrize(
    ("query", "status"),
    [
        *(
            ("", 400),
            ("commit=a&policy=b", 400),
            ("comit=1234567", 400),
            ("policy=Bad", 400),
            ("policy=never-was", 404),
        ),
        *(("commit=zz", 404), ("commit=", 404), ("commit=HEAD", 404), ("commit=main", 404)),
    ],
)
async def test_what_cannot_be_traced_is_refused(replica: Replica, query: str, status: int) -> None:
    assert (await replica.get(f"/trace?{query}")).status == status


# --- /events ---------------------------------------------------------------------------------------------------------


async def until(events: AsyncIterator[tuple[str, Any]], name: str, wanted: Any = lambda _: True) -> Any:
    async with asyncio.timeout(15):
        async for kind, data in events:
            if kind == name and wanted(data):
                return data
    raise AssertionError("the stream has ended")


async def test_who_connects_gets_the_whole_state_and_then_what_changes(
    replica: Replica, fleet: dict[str, Agent]
) -> None:
    await fleet["a"].tell("1" * 40, ago(5))
    before = await live(replica, "streamed")
    async with replica.events() as events:
        first = await until(events, "status")
        assert "agents" not in first
        assert first["last_applied_revision"] == f"main@sha1:{before}"
        agents = await until(events, "agents")
        assert "a" in {each["id"] for each in agents["agents"]}
        await until(events, "pass", lambda entry: entry["commit"] == before)
        commit = await live(replica, "streamed-too")
        await until(events, "status", lambda status: status["last_applied_revision"] == f"main@sha1:{commit}")
        await until(events, "pass", lambda entry: entry["commit"] == commit)
        await fleet["a"].tell(commit, ago(0))
        changed = await until(events, "agents", lambda news: any(each["id"] == "a" for each in news["agents"]))
        assert [each["enforced_revision"] for each in changed["agents"]] == [f"main@sha1:{commit}"]
        await fleet["a"].forget()
        gone = await until(events, "agents", lambda news: bool(news["removed"]))
        assert gone == {"agents": [], "removed": ["east/a"]}


async def test_a_member_hears_of_its_own_and_the_totals(replica: Replica) -> None:
    async with replica.events(**MEMBER) as events:
        counts = (await until(events, "status"))["policies"]["live"]
        await live(replica, "secret-stream")
        told = await until(events, "status", lambda status: status["policies"]["live"] == counts + 1)
        entry = await until(events, "pass", lambda entry: entry["created"] == 1)
        assert "secret-stream" not in str(told) + str(entry)


async def test_the_stream_ends_with_its_token(replica: Replica) -> None:
    async with replica.events(bearer=token(roles=["platform_admin"], sub="short", exp=time.time() + 2 - 30)) as events:
        assert await until(events, "end") == {"reason": "token_expired"}


async def test_no_more_listen_than_may(world: World) -> None:
    async with world.replica(reconciler=False, api=ApiSettings(event_listeners=1)) as small:
        async with small.events() as events:
            await until(events, "status")
            refused = await small.get("/events")
            assert (refused.status, refused.code, "Retry-After" in refused.headers) == (503, "unavailable", True)

        async def free() -> bool:
            try:
                async with small.events() as events:
                    await until(events, "status")
                    return True
            except AssertionError:
                return False

        await eventually(free)


async def test_an_end_of_the_server_ends_the_streams_at_once(world: World) -> None:
    async with world.replica(reconciler=False) as replica, replica.events() as events:
        await until(events, "status")
        stopping = asyncio.ensure_future(replica.stop())
        with pytest.raises((AssertionError, aiohttp.ClientError)):
            await until(events, "never")
        await stopping
        await replica.start(reconciler=False)


async def test_while_etcd_is_away_the_stream_says_unknown(
    etcd: EtcdServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_world(tmp_path_factory.mktemp("away"), etcd) as world, world.replica() as replica:
        await eventually(lambda: _synced(replica))
        async with replica.events() as events:
            await until(events, "status", lambda status: status["sync"]["status"] == "Synced")
            etcd.stop()
            told = await until(events, "status", lambda status: status["sync"]["status"] == "Unknown")
            assert told["health"]["status"] == "Unknown"
            assert told["fleet"]["current"] == 0
            assert (await replica.get("/fleet")).body["missing"].startswith("etcd cannot be read now")
            etcd.start()
            await until(events, "status", lambda status: status["sync"]["status"] == "Synced")


async def _synced(replica: Replica) -> bool:
    return bool((await replica.get("/status")).body["sync"]["status"] == "Synced")


async def test_an_entry_of_the_log_is_what_the_api_documents() -> None:
    record = PassRecord("1", "applied", "push", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "me")
    schemas.Pass.model_validate(record.document())
    assert set(schemas.Pass.model_fields) <= set(record.document()) | {"rewritten"}
