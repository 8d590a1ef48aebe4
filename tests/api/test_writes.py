"""PUT, PATCH and DELETE: every write is a commit, and the answer says how far it has got."""

from __future__ import annotations

import subprocess

import pytest
from fixtures.etcd import eventually
from fixtures.replicas import Replica, World, rego

pytestmark = pytest.mark.asyncio(loop_scope="module")


def show(world: World, commit: str, *words: str) -> str:
    return subprocess.run(
        ["git", f"--git-dir={world.remote.path}", "show", *words, commit], capture_output=True, text=True, check=True
    ).stdout


async def test_a_created_policy_is_a_commit_of_its_author_and_live(replica: Replica, world: World) -> None:
    answer = await replica.put("created", data={"limit": 3}, X_Request_ID="req-1")
    assert answer.status == 201
    assert answer.headers["Policy-Sync"] == "live"
    assert answer.headers["X-Request-ID"] == "req-1"
    text = show(world, answer.commit, "-s", "--format=%an <%ae>|%cn <%ce>|%s|%(trailers:unfold)")
    author, committer, subject, trailers = text.strip().split("|")
    assert author == "Root Admin <root@example.org>"
    assert committer == "regops <regops@localhost>"
    assert subject == "Create projects/created"
    assert trailers.splitlines() == ["Request-ID: req-1", "Actor: root"]
    read = await replica.get("/policies/created")
    assert read.body == {"rego": rego("created"), "data": {"limit": 3}}
    assert (read.etag, read.commit) == (answer.etag, answer.commit)


async def test_the_object_of_the_specification_is_told_its_package_and_then_created_with_a_warning(
    replica: Replica,
) -> None:
    text = 'package project.authz\n\ndefault allow = false\n\nallow { input.user.role == "admin" }'
    body = {"rego": text, "data": {"valid_roles": ["admin", "viewer"]}}
    refused = await replica.call("PUT", "/policies/seed", body)
    assert (refused.status, refused.code) == (400, "validation_error")
    (error,) = refused.body["errors"]
    assert (error["file"], error["line"], error["column"]) == ("projects/seed/rego.rego", 1, 1)
    assert "write `package projects.seed.authz`" in error["message"]
    body["rego"] = text.replace("project.authz", "projects.seed.authz")
    created = await replica.call("PUT", "/policies/seed", body)
    assert created.status == 201
    (warning,) = created.body["warnings"]
    assert "Rego v0" in warning["message"]


async def test_an_update_names_the_version_that_it_changes(replica: Replica) -> None:
    first = await replica.put("named")
    without = await replica.put("named", "second")
    assert (without.status, without.code, without.etag) == (428, "precondition_required", first.etag)
    second = await replica.put("named", "second", If_Match=first.etag)
    assert second.status == 200
    stale = await replica.put("named", "third", If_Match=first.etag)
    assert (stale.status, stale.code, stale.etag) == (409, "conflict", second.etag)
    assert (await replica.get("/policies/named")).etag == second.etag


@pytest.mark.parametrize("header", ["", "*x", 'W/"{}"', "{}", '"unterminated'])
async def test_an_if_match_that_cannot_match_is_a_conflict(replica: Replica, header: str) -> None:
    first = await replica.put("headers")
    etag = first.etag if first.status == 201 else first.headers["ETag"]
    answer = await replica.put("headers", "second", If_Match=header.format(etag.strip('"')))
    assert (answer.status, answer.code) == (409, "conflict")


async def test_a_list_of_versions_matches_when_one_of_them_is_current(replica: Replica) -> None:
    first = await replica.put("listed")
    answer = await replica.put("listed", "second", If_Match=f'"other", {first.etag}')
    assert answer.status == 200


async def test_what_must_not_exist_is_created_once(replica: Replica) -> None:
    first = await replica.put("fresh", If_None_Match="*")
    assert first.status == 201
    again = await replica.put("fresh", "second", If_None_Match="*")
    assert (again.status, again.code) == (409, "conflict")
    missing = await replica.put("nobody", If_Match='"x"')
    assert (missing.status, missing.code) == (409, "conflict")


async def test_writing_what_is_there_already_makes_no_commit(replica: Replica, world: World) -> None:
    first = await replica.put("same", data={"b": 1.0, "a": [1, 2]})
    head = world.remote.head
    read = await replica.get("/policies/same")
    again = await replica.call("PUT", "/policies/same", read.body, If_Match=first.etag)
    assert (again.status, again.etag, again.commit) == (200, first.etag, first.commit)
    assert world.remote.head == head


async def test_a_merge_patch_changes_data_in_part_and_the_diff_stays_small(replica: Replica, world: World) -> None:
    first = await replica.put("merged", data={"z": 1, "limits": {"refund": 30, "days": 14}, "a": [1.0, 10]})
    body = b'{"data": {"limits": {"refund": 50, "days": null}, "new": 1e2}}'
    answer = await replica.patch("merged", body, If_Match=first.etag)
    assert answer.status == 200
    diff = show(world, answer.commit, "--format=")
    changed = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}]
    assert changed == ['-    "refund": 30,', '-    "days": 14', '+    "refund": 50', "-  ]", "+  ],", '+  "new": 1e2']


async def test_a_patch_replaces_a_part_whole_and_null_removes_the_data(replica: Replica) -> None:
    first = await replica.put("patched", data={"a": 1, "b": 2})
    second = await replica.patch("patched", {"data": {"c": 3}}, merge=False, If_Match=first.etag)
    assert (await replica.get("/policies/patched")).body["data"] == {"c": 3}
    third = await replica.patch("patched", {"data": None}, merge=False, If_Match=second.etag)
    assert third.status == 200
    assert "data" not in (await replica.get("/policies/patched")).body
    gone = await replica.patch("unknown", {"data": {}}, If_Match="*")
    assert (gone.status, gone.code) == (404, "not_found")


async def test_a_deleted_policy_is_gone_with_its_folder_and_can_be_created_again(
    replica: Replica, world: World
) -> None:
    first = await replica.put("doomed", data={})
    refused = await replica.call("DELETE", "/policies/doomed")
    assert refused.status == 428
    deleted = await replica.call("DELETE", "/policies/doomed", If_Match=first.etag)
    assert (deleted.status, deleted.body) == (204, None)
    assert deleted.headers["Policy-Sync"] == "live"
    assert (await replica.get("/policies/doomed")).status == 404
    assert "projects/doomed" not in show(world, f"{deleted.commit}^{{tree}}", "--name-only")
    assert (await replica.put("doomed", data={})).etag == first.etag


async def test_the_platform_is_written_and_never_deleted(replica: Replica) -> None:
    before = await replica.get("/policies/platform")
    text = "package platform\n\nimport rego.v1\n\nlimits := 1\n"
    answer = await replica.call("PUT", "/policies/platform", {"rego": text}, If_Match=before.etag)
    assert answer.status == 200
    deleted = await replica.call("DELETE", "/policies/platform", If_Match=answer.etag)
    assert (deleted.status, deleted.code) == (405, "method_not_allowed")
    assert "GET" in deleted.headers["Allow"]


async def test_a_platform_that_would_break_a_project_is_refused_naming_it(replica: Replica) -> None:
    before = await replica.get("/policies/platform")
    text = "package platform\n\nimport rego.v1\n\nf(x) := x\n"
    good = await replica.call("PUT", "/policies/platform", {"rego": text}, If_Match=before.etag)
    user = "package projects.leaning\n\nimport rego.v1\n\nn := data.platform.f(1)\n"
    assert (await replica.call("PUT", "/policies/leaning", {"rego": user})).status == 201
    answer = await replica.call("PUT", "/policies/platform", {"rego": "package platform\n"}, If_Match=good.etag)
    assert (answer.status, answer.code) == (400, "validation_error")
    assert "projects/leaning would break" in answer.body["errors"][0]["message"]


async def test_a_dry_run_gives_verdict_and_diff_and_writes_nothing(replica: Replica, world: World) -> None:
    first = await replica.put("dry", data={"a": 1})
    head = world.remote.head
    answer = await replica.put("dry", "second", data={"a": 2}, query="?dry_run=true", If_Match=first.etag)
    assert answer.status == 200
    assert answer.body["valid"] is True
    assert '-mark := "first"\n+mark := "second"\n' in answer.body["diff"]
    assert '-  "a": 1\n+  "a": 2\n' in answer.body["diff"]
    assert answer.body["etag_before"] == first.etag
    bad = await replica.call(
        "PUT", "/policies/dry?dry_run=true", {"rego": "package projects.dry\n\nx :="}, If_Match="*"
    )
    assert (bad.status, bad.body["valid"], bad.body["errors"][0]["line"]) == (200, False, 3)
    assert world.remote.head == head


async def test_validate_gives_the_verdict_of_a_put_without_preconditions(replica: Replica, world: World) -> None:
    head = world.remote.head
    good = await replica.call("POST", "/policies/asked:validate", {"rego": rego("asked")})
    assert (good.status, good.body) == (200, {"valid": True, "errors": [], "warnings": []})
    bad = await replica.call("POST", "/policies/asked:validate", {"rego": rego("other")})
    assert bad.body["valid"] is False
    assert "package projects.asked" in bad.body["errors"][0]["message"]
    assert world.remote.head == head


async def test_tests_beside_a_policy_survive_its_replacement(replica: Replica, world: World) -> None:
    world.remote.commit(
        {
            "policies/projects/tested/rego.rego": rego("tested").encode(),
            "policies/projects/tested/rego_test.rego": b"package projects.tested_test\n",
        }
    )
    head = await replica.get("/policies/tested?ref=head")
    answer = await replica.put("tested", "second", If_Match=head.etag)
    assert answer.status == 200
    names = show(world, f"{answer.commit}:policies/projects/tested")
    assert "rego_test.rego" in names


async def test_a_held_policy_is_read_as_it_is_live_and_can_be_overwritten_with_the_heads_etag(
    replica: Replica, world: World
) -> None:
    live = await replica.put("broken")
    world.remote.commit({"policies/projects/broken/rego.rego": b"package projects.broken\n\nx :="})

    async def held() -> bool:
        return "Policy-Held" in (await replica.get("/policies/broken")).headers

    await eventually(held, 10)
    read = await replica.get("/policies/broken")
    assert (read.etag, read.headers["Policy-Held"]) == (live.etag, "ValidationFailed")
    conflict = await replica.put("broken", "second", If_Match=read.etag)
    head = await replica.get("/policies/broken?ref=head")
    assert (conflict.status, conflict.etag) == (409, head.etag)
    assert head.body["rego"].endswith("x :=")
    repaired = await replica.put("broken", "second", If_Match=conflict.etag)
    assert (repaired.status, repaired.headers["Policy-Sync"]) == (200, "live")
    assert "Policy-Held" not in (await replica.get("/policies/broken")).headers


async def test_while_suspended_a_write_is_in_git_and_pending(replica: Replica) -> None:
    await replica.call("POST", "/admin/suspend", {"reason": "test"})
    try:
        answer = await replica.put("waiting", query="?timeout=0.3")
        assert (answer.status, answer.headers["Policy-Sync"]) == (201, "pending")
        none = await replica.put("waiting2", query="?wait=none")
        assert none.headers["Policy-Sync"] == "pending"
    finally:
        await replica.call("POST", "/admin/resume")
    read = await replica.get("/policies/waiting", Policy_Min_Commit=answer.commit)
    assert read.status == 200


@pytest.mark.parametrize("name", ["Upper", "a.b", "a_b", "-a", "a" * 64, "platform%2f..", "%C3%A4", "a:b"])
async def test_an_impossible_name_is_refused_with_the_rule(replica: Replica, name: str) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        body = {"rego": "package x"} if method in {"PUT", "PATCH"} else None
        answer = await replica.call(method, f"/policies/{name}", body)
        assert (answer.status, answer.code) == (400, "validation_error"), method
        assert "DNS label" in answer.body["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b"{", "body:1:2"),
        (b'{"rego": "package x", "rego": "package y"}', "stands twice"),
        (b'{"rego": "package x", "data": {"a": NaN}}', "body:1:"),
        (b'{"rego": "package x", "data": []}', "must be a JSON object, not an array"),
        (b'{"rego": "package x", "data": null}', "leave it out"),
        (b'{"data": {}}', "rego is missing"),
        (b'{"rego": 1}', "must be a string, not a number"),
        (b'{"rego": "package x", "dat": {}}', "did you mean 'data'"),
        (b'\xef\xbb\xbf{"rego": "package x"}', "body:1:1"),
        (b'{"rego": "\\ud800"}', "body:1:"),
        (b'["rego"]', "body:1:1"),
        (b'{"rego": "package x", "data": ' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}", "nested"),
    ],
)
async def test_a_body_that_is_wrong_is_refused_with_its_place(replica: Replica, body: bytes, words: str) -> None:
    answer = await replica.call("PUT", "/policies/bodies", body)
    assert (answer.status, answer.code) == (400, "validation_error")
    assert words in answer.body["detail"]


async def test_a_body_of_another_kind_or_size_is_refused_before_it_is_read(replica: Replica) -> None:
    kind = await replica.call("PUT", "/policies/kinds", b"rego", Content_Type="text/plain")
    assert (kind.status, kind.code) == (415, "unsupported_media_type")
    packed = await replica.call("PUT", "/policies/kinds", b"{}", Content_Encoding="gzip")
    assert packed.status == 415
    large = await replica.call("PUT", "/policies/kinds", b" " * (6 * 1024 * 1024))
    assert (large.status, large.code) == (413, "payload_too_large")
    text = await replica.call("PUT", "/policies/kinds", {"rego": "#" * (512 * 1024 + 1)})
    assert (text.status, text.code) == (413, "payload_too_large")


async def test_a_body_as_large_as_allowed_is_written(replica: Replica) -> None:
    filler = "# 0123456789\n" * ((512 * 1024 - 200) // 13)
    data = {f"key-{i:06}": "x" * 80 for i in range(9_000)}
    answer = await replica.call("PUT", "/policies/large", {"rego": rego("large") + filler, "data": data})
    assert answer.status == 201
    assert (await replica.get("/policies/large")).body["data"] == data
