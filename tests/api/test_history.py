"""What was: versions, differences, times, and the way back; with a record, and from Git alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from fixtures.etcd import EtcdServer, eventually
from fixtures.git import Remote
from fixtures.replicas import Replica, open_world, rego
from fixtures.tokens import token

from reconciler.settings import MongoSettings
from reconciler.version_history import NO_RECORD, RECORD_AWAY

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALPHA = token(sub="ann", project="alpha")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["record", "git"])
async def replica(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer
) -> AsyncIterator[Replica]:
    """A replica with a record and one without, that are to answer alike."""
    mongo: dict[str, Any] = {}
    if request.param == "record":
        uri = request.getfixturevalue("mongo_uri")
        mongo = {"mongo": MongoSettings(uri=uri, database=f"regops-{tmp_path_factory.getbasetemp().name}-history")}
    async with open_world(tmp_path_factory.mktemp("history"), etcd_server) as world, world.replica(**mongo) as replica:
        await replica.get("/policies", Policy_Min_Commit=world.remote.head)
        yield replica


def remote_of(replica: Replica) -> Remote:
    return Remote(Path(replica.settings.git.remote.removeprefix("file://")))


async def wrote(replica: Replica, name: str, *words: str | None, data: Any = None) -> list[str]:
    """Write these versions of a policy, ``None`` deletes it; wait until the newest is told as such. Its commits."""
    commits = []
    for word in words:
        current = await replica.get(f"/policies/{name}?ref=head")
        match = {"If_Match": current.etag} if current.status == 200 else {}
        if word is None:
            done = await replica.call("DELETE", f"/policies/{name}", **match)
        else:
            done = await replica.put(name, word, data=data, **match)
        assert done.status in {200, 201, 204}, done.body
        commits.append(done.commit)

    async def told() -> bool:
        found = await replica.get(f"/policies/{name}/versions?limit=1")
        return found.status == 200 and found.body["items"][0]["commit"] == commits[-1]

    await eventually(told)
    return commits


async def test_the_versions_of_a_policy_are_listed_page_by_page_and_newest_first(replica: Replica) -> None:
    commits = await wrote(replica, "pages", *(f"v{n}" for n in range(1, 9)), None, "again")
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        page = (await replica.get(f"/policies/pages/versions?limit=4{after}")).body
        found += page["items"]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [each["version"] for each in found] == list(range(10, 0, -1))
    assert [each["commit"] for each in reversed(found)] == commits
    assert [each["deleted"] for each in found] == [False, True] + [False] * 8
    assert [each["live"] for each in found] == [True] + [False] * 9
    assert {each["state"] for each in found} == {"applied"}
    assert found[0]["actor"] == "Root Admin <root@example.org>"
    assert found[0]["subject"] == "Create projects/pages"


async def test_a_version_is_read_to_the_byte_also_one_that_the_record_keeps_no_longer(replica: Replica) -> None:
    await wrote(replica, "read", *(f"v{n}" for n in range(1, 9)), data={"n": 1})
    first = await replica.get("/policies/read/versions/1")
    assert first.status == 200
    assert (first.body["rego"], first.body["data"]) == (rego("read", "v1"), {"n": 1})
    assert (first.body["version"], first.body["state"], first.body["policy"]) == (1, "applied", "projects/read")
    assert first.etag == first.body["etag"]
    assert first.commit == first.body["commit"]
    again = await replica.get("/policies/read/versions/1", If_None_Match=first.etag)
    assert (again.status, again.etag) == (304, first.etag)
    newest = await replica.get("/policies/read/versions/8")
    assert newest.etag == (await replica.get("/policies/read")).etag


async def test_what_there_never_was_is_not_found_and_what_is_no_number_is_named(replica: Replica) -> None:
    await wrote(replica, "few", "v1")
    for path in ("few/versions/2", "few/diff?from=1&to=7", "never/versions", "never/versions/1", "never/diff"):
        answer = await replica.get(f"/policies/{path}")
        assert (answer.status, answer.code) == (404, "not_found"), path
    for path in (
        "few/versions/0",
        "few/versions/x",
        f"few/versions/{'9' * 5000}",
        "few/versions?after=x",
        "few/versions?limit=101",
        "few/diff?from=x",
        "few?at=yesterday",
        "few?at=2026-01-01T00:00:00",
        "few?at=2999-01-01T00:00:00Z",
    ):
        answer = await replica.get(f"/policies/{path}")
        assert (answer.status, answer.code) == (400, "validation_error"), path


async def test_history_may_be_read_by_whom_the_policy_may_be_read(replica: Replica) -> None:
    for path in ("versions", "versions/1", "diff?from=1&to=1"):
        assert (await replica.get(f"/policies/alpha/{path}", bearer=ALPHA)).status == 200, path
        for other in ("beta", "platform", "never"):
            answer = await replica.get(f"/policies/{other}/{path}", bearer=ALPHA)
            assert (answer.status, answer.code) == (403, "forbidden"), (other, path)
    seen = (await replica.get("/versions", bearer=ALPHA)).body["items"]
    assert {each["policy"] for each in seen} == {"projects/alpha"}
    refused = await replica.call("POST", "/policies/alpha:rollback", {"version": 1}, bearer=ALPHA)
    assert refused.status == 403


async def test_the_latest_changes_of_all_policies_are_listed(replica: Replica) -> None:
    await wrote(replica, "latest-a", "v1")
    commits = await wrote(replica, "latest-b", "v1", "v2")
    page = (await replica.get("/versions?limit=2")).body
    assert [(each["policy"], each["version"]) for each in page["items"]] == [
        ("projects/latest-b", 2),
        ("projects/latest-b", 1),
    ]
    assert page["items"][0]["commit"] == commits[-1]
    rest = (await replica.get(f"/versions?limit=1&after={page['next']}")).body
    assert [each["policy"] for each in rest["items"]] == ["projects/latest-a"]
    assert (await replica.get("/versions?after=nonsense")).code == "validation_error"


async def test_a_difference_is_unified_for_rego_and_by_path_for_data(replica: Replica) -> None:
    await wrote(replica, "differ", "old", data={"limits": {"refund": 50, "a/b": 1}, "who": ["ann", "bob", "cy"]})
    await wrote(replica, "differ", "new", data={"limits": {"refund": 60}, "who": ["ann", "cy"], "x": 1.0})
    found = (await replica.get("/policies/differ/diff?from=1&to=2")).body
    assert '-mark := "old"\n+mark := "new"\n' in found["rego"]
    assert found["rego"].startswith("--- a/projects/differ/rego.rego\n+++ b/projects/differ/rego.rego\n@@ ")
    assert found["data"] == [
        {"path": "/limits/a~1b", "op": "remove", "from": 1},
        {"path": "/limits/refund", "op": "replace", "from": 50, "to": 60},
        {"path": "/who/1", "op": "remove", "from": "bob"},
        {"path": "/x", "op": "add", "to": 1.0},
    ]
    assert (found["from"]["version"], found["to"]["version"]) == (1, 2)
    plain = (await replica.get("/policies/differ/diff")).body
    assert (plain["rego"], plain["data"], plain["to"]["ref"]) == (found["rego"], found["data"], "live")
    same = (await replica.get("/policies/differ/diff?from=head&to=live")).body
    assert (same["rego"], same["data"]) == ("", [])
    first = (await replica.get("/policies/differ/diff?to=1")).body
    assert first["from"] == {"ref": "nothing"}
    assert first["rego"].startswith("--- /dev/null\n")


async def test_what_was_live_at_a_time_is_told_with_its_commit(replica: Replica) -> None:
    before = now()
    await asyncio.sleep(1.1)  # without a record Git's own times decide, and they are whole seconds
    first, *_ = await wrote(replica, "times", "v1", data={"n": 1})
    between = now()
    await asyncio.sleep(1.1)
    await wrote(replica, "times", "v2", None)
    then = await replica.get(f"/policies/times?at={between}")
    assert (then.status, then.commit, then.body["version"]) == (200, first, 1)
    assert (then.body["rego"], then.body["data"]) == (rego("times", "v1"), {"n": 1})
    for at in (before, now()):
        answer = await replica.get(f"/policies/times?at={at}")
        assert (answer.status, answer.code) == (404, "not_found")
    whole = (await replica.get(f"/policies?at={between}")).body
    assert {each["policy"]: each["version"] for each in whole["items"]}["projects/times"] == 1
    assert "projects/times" not in {
        each["policy"] for each in (await replica.get(f"/policies?at={before}")).body["items"]
    }
    offset = between.replace("Z", "+00:00")  # a plus that nobody has escaped is a space
    assert (await replica.get(f"/policies/times?at={offset}")).commit == first


async def test_a_rollback_is_a_new_commit_that_names_the_version_it_restores(replica: Replica) -> None:
    commits = await wrote(replica, "back", "v1", "v2", data={"n": 1})
    live = await replica.get("/policies/back")
    done = await replica.call("POST", "/policies/back:rollback", {"version": 1}, If_Match=live.etag)
    assert (done.status, done.headers["Policy-Sync"], done.body["version"]) == (200, "live", 1)
    assert done.commit not in commits
    now_ = await replica.get("/policies/back")
    assert (now_.body["rego"], now_.etag) == (rego("back", "v1"), done.etag)
    await wrote(replica, "other", "x")
    told = (await replica.get("/policies/back/versions?limit=1")).body["items"][0]
    assert (told["version"], told["subject"]) == (3, "Update projects/back: roll back to version 1")
    message = remote_of(replica).message(done.commit)
    assert f"Restores: 1 {commits[0]}" in message
    event = next(e for e in replica.audit() if e["commit"] == done.commit and e["action"] == "rollback")
    assert (event["action"], event["resource"], event["result"]) == ("rollback", "projects/back", "updated")
    assert (event["etag_before"], event["etag_after"]) == (live.etag, done.etag)


async def test_a_rollback_without_a_number_goes_to_the_last_applied_version_that_was_another(replica: Replica) -> None:
    await wrote(replica, "undo", "good", "bad")
    etag = (await replica.get("/policies/undo")).etag
    tried = await replica.call("POST", "/policies/undo:rollback?dry_run=true", If_Match=etag)
    assert (tried.status, tried.body["valid"], tried.body["version"]) == (200, True, 1)
    assert '-mark := "bad"\n+mark := "good"\n' in tried.body["diff"]
    assert (await replica.get("/policies/undo")).etag == etag
    done = await replica.call("POST", "/policies/undo:rollback", If_Match=etag, Idempotency_Key="undo-1")
    assert (done.status, done.body["version"]) == (200, 1)
    again = await replica.call("POST", "/policies/undo:rollback", If_Match=etag, Idempotency_Key="undo-1")
    assert (again.status, again.body, again.headers["Idempotent-Replay"]) == (200, done.body, "true")


async def test_a_rollback_keeps_to_the_preconditions_of_a_put(replica: Replica) -> None:
    await wrote(replica, "guarded", "v1", "v2")
    etag = (await replica.get("/policies/guarded")).etag
    path = "/policies/guarded:rollback"
    missing = await replica.call("POST", path, {"version": 1})
    assert (missing.status, missing.code, missing.etag) == (428, "precondition_required", etag)
    stale = await replica.call("POST", path, {"version": 1}, If_Match='"stale"')
    assert (stale.status, stale.code, stale.etag) == (409, "conflict", etag)
    unknown = await replica.call("POST", path, {"version": 9}, If_Match=etag)
    assert (unknown.status, unknown.code) == (404, "not_found")
    for body in ({"version": 0}, {"version": "1"}, {"versoin": 1}, {"version": 1.5}):
        refused = await replica.call("POST", path, body, If_Match=etag)
        assert (refused.status, refused.code) == (400, "validation_error"), body
    same = await replica.call("POST", path, {"version": 2}, If_Match=etag)
    assert (same.status, same.etag) == (200, etag)
    assert next(e for e in reversed(replica.audit()) if e["action"] == "rollback")["result"] == "unchanged"


async def test_a_deleted_policy_is_rolled_back_to_what_it_was(replica: Replica) -> None:
    await wrote(replica, "gone", "v1", None)
    tried = await replica.call("POST", "/policies/gone:rollback", {"version": 2})
    assert (tried.status, tried.code) == (400, "validation_error")
    assert "DELETE" in tried.body["detail"]
    done = await replica.call("POST", "/policies/gone:rollback")
    assert (done.status, done.body["version"]) == (201, 1)
    assert (await replica.get("/policies/gone")).body["rego"] == rego("gone", "v1")


async def test_a_version_that_is_valid_no_longer_is_refused_with_its_errors(replica: Replica) -> None:
    """It came by a push before the rules were what they are: held then, and refused now."""
    bad = rego("invalid", "x").replace(":=", ":= }")
    remote_of(replica).commit({"policies/projects/invalid/rego.rego": bad.encode()})
    await wrote_after_push(replica, "invalid")
    held = (await replica.get("/policies/invalid/versions/1")).body
    assert (held["state"], held["reason"], held["live"]) == ("held", "ValidationFailed", False)
    await wrote(replica, "invalid", "v2")
    etag = (await replica.get("/policies/invalid")).etag
    refused = await replica.call("POST", "/policies/invalid:rollback", {"version": 1}, If_Match=etag)
    assert (refused.status, refused.code) == (400, "validation_error")
    assert refused.body["errors"][0]["file"] == "projects/invalid/rego.rego"
    assert (await replica.get("/policies/invalid")).etag == etag


async def wrote_after_push(replica: Replica, name: str) -> None:
    async def told() -> bool:
        found = await replica.get(f"/policies/{name}/versions")
        return found.status == 200 and found.body["items"][0]["state"] == "held"

    await eventually(told)


async def test_a_record_that_is_away_is_said_and_git_answers(
    tmp_path: Path, etcd_server: EtcdServer, replica: Replica
) -> None:
    if replica.settings.mongo.uri:
        async with open_world(tmp_path, etcd_server) as world:
            away = MongoSettings(uri="mongodb://127.0.0.1:1/", timeout=0.2)
            async with world.replica(mongo=away) as other:
                await answers_from_git(other, RECORD_AWAY)
    else:
        await answers_from_git(replica, NO_RECORD)


async def answers_from_git(replica: Replica, why: str) -> None:
    await replica.get("/policies", Policy_Min_Commit=remote_of(replica).head)
    listed = (await replica.get("/policies/beta/versions")).body
    assert [(each["version"], each["inferred"]) for each in listed["items"]] == [(1, True)]
    assert listed["missing"] == why
    assert (await replica.get("/policies/beta/versions/1")).status == 200
    assert (await replica.get("/versions")).body["missing"] == why


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
