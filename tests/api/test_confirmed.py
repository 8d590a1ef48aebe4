"""Deletions that a person confirms: one commit, applied twice. What is said of it, and from when on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio
from fixtures.agents import Agent, ago
from fixtures.etcd import eventually
from fixtures.replicas import Replica, World

from api.fleet import Fleet
from api.progress import Progress, Sync
from reconciler.adapters.etcd import EtcdStore
from reconciler.agent.mirror import Mirror
from reconciler.core.model import project_policy
from reconciler.core.ports import Range
from reconciler.core.records import Applied
from regops.commands.tables import passes_table, trace_page

pytestmark = pytest.mark.asyncio(loop_scope="module")
GONE = ("one", "two", "three")


@pytest_asyncio.fixture(loop_scope="module")
async def store(world: World) -> AsyncIterator[EtcdStore]:
    opened = world.store()
    yield opened
    await opened.aclose()


async def applied(world: World, store: EtcdStore) -> Applied:
    return Applied.decode((await store.read(Range(world.keys.applied))).ranges[0][0].value)


async def traced(replica: Replica, query: str) -> dict[str, Any]:
    answer = await replica.get(f"/trace?{query}")
    assert answer.status == 200, answer.body
    return dict(answer.body)


def stage(found: dict[str, Any], name: str) -> Any:
    return next(each["at"] for each in found["stages"] if each["stage"] == name)


async def test_nothing_is_claimed_of_deletions_before_somebody_confirmed_them(
    replica: Replica, world: World, store: EtcdStore
) -> None:
    """`regops trace` said of the commit, and of each policy, that it was applied and enforced by the pass that had
    blocked its deletions, and `regops passes` did not say who had confirmed them nor when they were enforced: the
    commit is the same before and after, and a receipt named nothing else."""
    for name in GONE:
        await replica.put(name, query="?wait=live")
    agent = Agent(world, store, "sole")
    await agent.live()
    before = await applied(world, store)
    await agent.tell(before.commit, ago(0), digest=before.digest)
    commit = world.remote.commit({f"policies/projects/{name}": None for name in GONE})

    async def blocked() -> bool:
        return len((await replica.get("/status")).body["blocked_deletions"]) == len(GONE)

    await eventually(blocked)
    first = await applied(world, store)
    await agent.tell(commit, ago(0), digest=first.digest)
    found = await traced(replica, f"commit={commit}")
    assert (found["state"], found["pass"], stage(found, "applied")) == ("held", None, None)
    assert [each["state"] for each in found["agents"]] == ["behind"]
    (came,) = found["passes"]
    assert (came["held"], sorted(came["holds"])) == (3, sorted(f"projects/{name}" for name in GONE))

    assert (await replica.call("POST", "/admin/confirm", {"commit": commit})).status == 200

    async def carried_out() -> bool:
        return not (await replica.get("/status")).body["blocked_deletions"]

    await eventually(carried_out)
    second = await applied(world, store)
    assert (second.commit, second.digest != first.digest) == (commit, True)
    assert (await replica.get("/status")).body["fleet"]["behind"] == 1, "its proof is of before"

    async def done() -> bool:
        return bool((await traced(replica, f"commit={commit}"))["pass"])

    await eventually(done)
    for query in (f"commit={commit}", "policy=two"):
        found = await traced(replica, query)
        assert (found["state"], found["pass"]["deleted"], found["pass"]["confirmed_by"]) == ("deleted", 3, "root")
        assert found["pass"]["trigger"] == "request"
        assert stage(found, "applied") == found["pass"]["applied_at"] > came["applied_at"]
        assert (stage(found, "enforced_first"), [each["state"] for each in found["agents"]]) == (None, ["behind"])
        assert [each["id"] for each in found["passes"]] == [came["id"], found["pass"]["id"]]
        assert "confirmed by root" in trace_page(found)
        assert trace_page(found).count("Pass: ") == 2

    await agent.tell(None, ago(0), digest=None)
    await agent.tell(commit, ago(0), digest=second.digest)
    found = await traced(replica, "policy=two")
    assert [each["state"] for each in found["agents"]] == ["enforced"]
    assert stage(found, "enforced_everywhere") >= found["pass"]["applied_at"]

    async def told() -> bool:
        newest = (await replica.get("/history")).body["items"][0]
        return bool(newest["enforced"] and newest["enforced"]["enforced"] == 1)

    await eventually(told)
    assert "root (confirmed)" in passes_table((await replica.get("/history")).body["items"])
    await agent.forget()


async def test_a_policy_is_not_active_by_a_proof_of_what_its_commit_was_before(world: World, store: EtcdStore) -> None:
    """Every OPA had proven the commit whose deletions were blocked, so `wait=active` was over as soon as they were
    carried out, while every OPA still had the policies."""
    async with world.replica() as replica:
        await replica.get("/status")
        now, policy = await applied(world, store), project_policy("alpha")
        agent = Agent(world, store, "sole")
        await agent.live()
        mirror, fleet = Mirror(store, world.keys), Fleet(store, world.keys)
        progress = Progress(store, world.keys, mirror, fleet, _Linear())  # type: ignore[arg-type]
        async with _running(mirror.run(), fleet.run()):
            for digest, reached in (("of before", Sync.LIVE), (now.digest, Sync.ACTIVE), (None, Sync.ACTIVE)):
                await agent.tell(now.commit, ago(0), digest=digest)
                await eventually(lambda d=digest: _says(fleet, d))
                seconds = 0.3 if reached is Sync.LIVE else 10
                assert await progress.reach(policy, now.commit, Sync.ACTIVE, seconds) is reached, digest
        await agent.forget()


def _says(fleet: Fleet, digest: str | None) -> bool:
    return any(each is not None and each.live_digest == digest for each in fleet.values.values())


@contextlib.asynccontextmanager
async def _running(*works: Coroutine[Any, Any, Any]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Linear:
    """A history in which nothing contains anything but itself."""

    async def contains(self, head: str, commit: str) -> bool:
        return head == commit

    async def fetch(self) -> str:
        return ""
