"""What the reconciler did, and who pushed past the API, stands in the audit trail: on real etcd, Git and OPA."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fakes.record import InMemoryAudit
from fixtures.engine import Engine
from fixtures.etcd import EtcdServer, eventually
from fixtures.git import SEED, Remote
from fixtures.opa import find_opa
from prometheus_client import CollectorRegistry

from reconciler.adapters.git import GitSource
from reconciler.adapters.opa import OpaCompiler
from reconciler.commit_audit import CommitAudit
from reconciler.core.model import project_policy
from reconciler.core.ports import Edit, Identity
from reconciler.core.record_ports import AuditQuery
from reconciler.metrics import ProjectionMetrics
from reconciler.pass_audit import MOST

ALPHA = project_policy("alpha")
REGO = "policies/projects/alpha/rego.rego"
BAD = b"package projects.alpha\n\nx := }\n"


class Trail:
    """An engine, and its audit log as somebody reads it."""

    def __init__(self, engine: Engine, remote: Remote, folder: Path) -> None:
        self.engine = engine
        self.remote = remote
        self._file = folder / "audit.log"

    def events(self, **wanted: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._file.read_text().splitlines()]
        return [each for each in found if all(each[name] == value for name, value in wanted.items())]

    async def until(self, count: int, **wanted: str) -> list[dict[str, Any]]:
        """Wait for so many events; more are a failure."""
        await self.engine.until(lambda: len(self.events(**wanted)) >= count)
        found = self.events(**wanted)
        assert len(found) == count, found
        return found

    async def push(self, files: dict[str, bytes | None], message: str = "change") -> str:
        commit = await asyncio.to_thread(self.remote.commit, files, message=message)
        self.engine.push()
        await self.engine.until_applied(commit)
        return commit


@pytest.fixture
async def compiler() -> AsyncIterator[OpaCompiler]:
    async with OpaCompiler(find_opa()) as compiler:
        yield compiler


@pytest.fixture
async def trail(tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler) -> AsyncIterator[Trail]:
    remote = Remote(tmp_path / "remote.git")
    head = remote.commit(SEED)
    engine = Engine(tmp_path, etcd_server.endpoint, prefix, compiler, remote.url)
    async with engine.running():
        await engine.until_applied(head)
        yield Trail(engine, remote, tmp_path)


async def test_what_went_live_is_told_with_its_author_and_both_versions(trail: Trail) -> None:
    first = await trail.until(3, action="apply")
    assert {(each["resource"], each["result"], each["etag_before"]) for each in first} == {
        ("platform", "created", None),
        ("projects/alpha", "created", None),
        ("projects/beta", "created", None),
    }
    commit = await trail.push({REGO: b"package projects.alpha\n\nn := 1\n"})
    (event,) = await trail.until(1, action="apply", result="updated")
    former = next(each for each in first if each["resource"] == "projects/alpha")
    assert (event["resource"], event["commit"], event["etag_before"]) == (ALPHA, commit, former["etag_after"])
    assert event["etag_after"] not in {None, former["etag_after"]}
    assert "@" in event["actor"]
    await trail.push({"policies/projects/beta": None})
    (gone,) = await trail.until(1, action="prune")
    assert (gone["resource"], gone["result"], gone["commit"]) == ("projects/beta", "deleted", trail.remote.head)


async def test_a_push_past_the_api_is_told_once_for_each_policy_that_it_changed(trail: Trail) -> None:
    two = {REGO: b"package projects.alpha\n\nn := 2\n", "policies/projects/new/rego.rego": b"package projects.new\n"}
    first = await asyncio.to_thread(trail.remote.commit, two, message="Two at once")
    second = await trail.push({"README.md": b"words"}, "No policy")
    told = await trail.until(3, action="push")
    assert [(each["commit"], each["resource"]) for each in told] == [
        (first, "projects/alpha"),
        (first, "projects/new"),
        (second, "repository"),
    ]
    assert told[0]["detail"].startswith("Two at once")
    assert {each["result"] for each in told} == {"pushed"}


async def test_a_hold_is_told_when_it_begins_and_when_it_ends(trail: Trail) -> None:
    live = (await trail.until(3, action="apply"))[1]["etag_after"]
    good = SEED[REGO]
    assert isinstance(good, bytes)
    commit = await trail.push({REGO: BAD})
    (held,) = await trail.until(1, action="hold")
    assert (held["resource"], held["result"], held["commit"]) == (ALPHA, "held", commit)
    assert held["detail"].startswith("ValidationFailed: projects/alpha/rego.rego:3:")
    await trail.push({"README.md": b"1"})
    await trail.push({REGO: good})
    told = await trail.until(2, action="hold")
    assert told[1]["result"] == "released"
    assert live == trail.events(action="apply", resource=ALPHA)[-1]["etag_after"]


async def test_a_hand_edit_is_told_with_what_differed(trail: Trail) -> None:
    await trail.engine.settled()
    await trail.engine.edit(ALPHA, b"package projects.alpha\n\nevil := true\n")
    (healed,) = await trail.until(1, action="heal")
    assert (healed["resource"], healed["result"], healed["actor"]) == (ALPHA, "healed", "reconciler")
    assert healed["detail"] == "by hand in etcd: rego.rego was edited"


async def test_deletions_that_wait_and_a_rewritten_branch_are_told(trail: Trail) -> None:
    before = await trail.until(3, action="apply")
    assert before
    await trail.push({"policies/platform": None})
    (blocked,) = await trail.until(1, action="prune")
    assert (blocked["resource"], blocked["result"]) == ("platform", "blocked")
    assert blocked["detail"].startswith("PruneBlocked")
    other = Remote(trail.remote.path)
    rewritten = await asyncio.to_thread(
        other.commit, {**SEED, REGO: b"package projects.alpha\n\nn := 9\n"}, message="anew", on=""
    )
    trail.engine.push()
    await trail.engine.until_applied(rewritten)
    (told,) = await trail.until(1, action="rewrite")
    assert (told["resource"], told["commit"]) == ("repository", rewritten)


async def test_very_many_changes_are_one_event_that_counts_them(trail: Trail) -> None:
    many = {f"policies/projects/m{n}/rego.rego": b"package projects.m%d\n" % n for n in range(MOST + 1)}
    await trail.push(dict(many))
    (event,) = await trail.until(1, action="apply", resource="repository")
    assert event["detail"] == f"policies: {MOST + 1} created"
    (push,) = await trail.until(1, action="push")
    assert push["detail"].endswith(f"{MOST + 1} policies")


# --- after a loss ----------------------------------------------------------------------------------------------------


class Loss:
    """A branch with commits of both kinds, and a trail in MongoDB that may lose what it has."""

    def __init__(self, source: GitSource, remote: Remote) -> None:
        self.source = source
        self.remote = remote
        self.store = InMemoryAudit()
        self.registry = CollectorRegistry()
        self.audit = CommitAudit(source, self.store, days=36500, metrics=ProjectionMetrics(self.registry), grace=0)

    async def write(self, request: str, text: bytes) -> str:
        """As the API does it."""
        edit = Edit(
            ALPHA,
            (await self.source.read((await self.source.tree(await self.source.fetch())).policies[ALPHA])).__class__(
                text
            ),
            Identity("Ann", "ann@example.org"),
            "Update projects/alpha",
            (("Request-ID", request), ("Actor", "ann")),
        )
        base = await self.source.fetch()
        (commit,) = await self.source.commit(base, [edit])
        await self.source.push(base, commit)
        return commit

    async def told(self) -> list[tuple[object, ...]]:
        events, _ = await self.store.events(AuditQuery())
        return sorted((e["commit"], e["action"], e["actor"], e["request_id"], e["recovered"]) for e in events)


@pytest.fixture
async def loss(source: GitSource, remote: Remote) -> Loss:
    await source.fetch()
    return Loss(source, remote)


async def test_events_of_commits_are_written_again_after_the_trail_was_emptied(loss: Loss) -> None:
    first = loss.remote.head
    ours = await loss.write("r1", b"package projects.alpha\n\nn := 1\n")
    theirs = await asyncio.to_thread(
        loss.remote.commit, {REGO: b"package projects.alpha\n\nn := 2\n"}, message="By hand"
    )
    assert await loss.audit.check(await loss.source.fetch()) == 5
    told = await loss.told()
    assert (ours, "write", "ann", "r1", True) in told
    assert [each[1] for each in told if each[0] == theirs] == ["push"]
    assert [each[1] for each in told if each[0] == first] == ["push"] * 3
    assert await loss.audit.check(theirs) == 0
    loss.store.stored.clear()
    assert await loss.audit.check(theirs) == 5
    assert await loss.told() == told
    assert loss.registry.get_sample_value("regops_audit_recovered_total") == 10


async def test_only_what_is_missing_is_written_again(loss: Loss) -> None:
    await loss.audit.check(loss.remote.head)
    before = len(loss.store.stored)
    one = await loss.write("r1", b"package projects.alpha\n\nn := 1\n")
    two = await loss.write("r2", b"package projects.alpha\n\nn := 2\n")
    usual = {"ts": "2026-01-01T00:00:00.000Z", "actor": "ann", "resource": ALPHA, "result": "updated"}
    await loss.store.append([{**usual, "action": "put", "commit": one, "request_id": "r1", "recovered": False}])
    await loss.store.append([{**usual, "action": "apply", "commit": two, "request_id": "", "recovered": False}])
    assert await loss.audit.check(two) == 1
    assert [each[1:] for each in await loss.told() if each[0] == two] == [
        ("apply", "ann", "", False),
        ("write", "ann", "r2", True),
    ]
    assert len(loss.store.stored) == before + 3


async def test_a_queue_that_lost_events_of_commits_has_the_branch_looked_through_again(loss: Loss) -> None:
    head = await loss.write("r1", b"package projects.alpha\n\nn := 1\n")
    await loss.audit.check(head)
    gone = next(key for key, each in loss.store.stored.items() if each["commit"] == head)
    del loss.store.stored[gone]
    assert await loss.audit.check(head) == 0
    await loss.store.verify(None)
    assert await loss.audit.check(head) == 1


async def test_the_trail_is_looked_through_when_the_branch_moves(loss: Loss) -> None:
    running = asyncio.ensure_future(loss.audit.run())

    class Passed:
        commit = loss.remote.head

    loss.audit.saw(Passed())  # type: ignore[arg-type]
    await eventually(lambda: len(loss.store.stored) == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
