"""A replica that is killed at any step of a write: what was acknowledged is there, and the same key finds the outcome.

The replica is a process of its own and ends by SIGKILL. Each write is repeated with its idempotency key, on another
replica or on the restarted one, and must be in the branch once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from fixtures.etcd import eventually
from fixtures.githttp import Mood, git_host
from fixtures.hooks import gate
from fixtures.replicas import Answer, Replica, World
from fixtures.servers import ServerProcess, server

from reconciler.audit import Journal
from reconciler.core.model import Content, project_policy
from reconciler.core.ports import Identity, Range
from reconciler.edits import Current, Write
from reconciler.idempotency import Slot
from reconciler.settings import GitSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

_NUMBERS = itertools.count()


@pytest_asyncio.fixture(loop_scope="module")
async def doomed(world: World) -> AsyncIterator[ServerProcess]:
    """The replica that will be killed; it has written before, so that its private OPA runs."""
    number = next(_NUMBERS)
    async with server(world, f"doomed-{number}") as process:
        assert (await process.put(f"warm-{number}", query="?wait=none")).status == 201
        yield process


def begin(replica: Replica, project: str, *, query: str = "?wait=none") -> asyncio.Task[Answer]:
    """A write with a key; its request id is the project's name, the same key and request can be sent again."""
    return asyncio.create_task(
        replica.put(project, query=query, Idempotency_Key=f"key-{project}", X_Request_ID=f"first-{project}")
    )


async def lost(task: asyncio.Task[Answer]) -> None:
    """The client of a killed server gets no answer."""
    with pytest.raises(aiohttp.ClientError):
        await task


async def expire(world: World, replica: Replica) -> None:
    """What time does to the claims of a dead replica: their lease ends."""
    store = world.store()
    try:
        kvs = (await store.read(Range(f"{world.keys.own}idempotency/", prefix=True))).ranges[0]
        slots = [(kv, Slot.decode(kv.value)) for kv in kvs]
        mine = {kv.lease for kv, slot in slots if slot.answer is None and slot.replica == replica.settings.server.id}
        for lease in mine:
            await store.revoke(lease)
    finally:
        await store.aclose()


async def again(replica: Replica, project: str) -> Answer:
    return await replica.put(
        project, query="?wait=none", Idempotency_Key=f"key-{project}", X_Request_ID=f"again-{project}"
    )


def commits(world: World, project: str) -> list[str]:
    """The commits of the branch that write this project."""
    words = [
        "git",
        f"--git-dir={world.remote.path}",
        "log",
        "--format=%H",
        "main",
        "--",
        f"policies/projects/{project}",
    ]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def events(replica: Replica, project: str) -> list[dict[str, Any]]:
    return [event for event in replica.audit() if event["request_id"] == f"first-{project}"]


async def ended(process: ServerProcess) -> None:
    await eventually(lambda: not process.children(), 10)


async def restarted(process: ServerProcess) -> None:
    """Up again, and through with what it had left in its journal."""
    left = any(process.settings.server.state.glob("audit-journal.jsonl*"))
    await process.start()
    if left:
        await eventually(lambda: process.logged(message="audit journal recovered"), 20)


async def test_killed_before_the_commit_nothing_was_written_and_the_retry_writes_it(
    world: World, replica: Replica, doomed: ServerProcess
) -> None:
    """Its private OPA stands still, so that it never comes to a verdict."""
    head = world.remote.head
    os.kill(doomed.compiler(), signal.SIGSTOP)
    task = begin(doomed, "undecided")
    await eventually(lambda: claimed(world, doomed))
    await doomed.kill()
    await lost(task)
    await ended(doomed)
    assert world.remote.head == head
    await expire(world, doomed)
    answer = await again(replica, "undecided")
    assert answer.status == 201
    assert "Idempotent-Replay" not in answer.headers
    assert commits(world, "undecided") == [answer.commit]


async def claimed(world: World, replica: Replica) -> bool:
    store = world.store()
    try:
        kvs = (await store.read(Range(f"{world.keys.own}idempotency/", prefix=True))).ranges[0]
        return any(Slot.decode(kv.value).replica == replica.settings.server.id for kv in kvs)
    finally:
        await store.aclose()


async def test_killed_between_commit_and_push_the_retry_writes_it_once(world: World, replica: Replica) -> None:
    """The host has accepted the connection and looked at nothing: the commit exists in the mirror only."""
    async with git_host(world.remote) as host:
        git = GitSettings(remote=host.url, protocols=("http",), poll_interval=1.0)
        async with server(world, "unpushed", git=git) as doomed:
            await host.become(Mood.HOLD)
            head = world.remote.head
            task = begin(doomed, "unpushed")
            await host.pushed(1)
            await doomed.kill()
            await lost(task)
            await host.become(Mood.DROP)
            await ended(doomed)
            assert world.remote.head == head
            await expire(world, doomed)
            answer = await again(replica, "unpushed")
            assert answer.status == 201
            await host.become(Mood.SERVE)
            await restarted(doomed)
            assert commits(world, "unpushed") == [answer.commit]
            (event,) = events(doomed, "unpushed")
            assert (event["result"], event["commit"], event["recovered"]) == ("not_committed", None, True)


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_killed_during_the_push_one_of_push_and_retry_wins(
    world: World, replica: Replica, doomed: ServerProcess, elsewhere: bool
) -> None:
    """The remote has the pack and asks its hook; nobody waits for the answer any more, and the hook says yes."""
    project = f"half-{'elsewhere' if elsewhere else 'restarted'}"
    with gate(world.remote, "pre-receive") as hook:
        task = begin(doomed, project)
        await eventually(lambda: hook.calls == 1)
        await doomed.kill()
        await lost(task)
        await expire(world, doomed)
        if elsewhere:
            retry = asyncio.create_task(again(replica, project))
            await eventually(lambda: hook.calls == 2)
        hook.open()
        await ended(doomed)
    if elsewhere:
        answer = await retry
        await restarted(doomed)
    else:
        await eventually(lambda: commits(world, project))
        await restarted(doomed)
        answer = await again(doomed, project)
        assert answer.status == 201
    assert commits(world, project) == [answer.commit]
    (event,) = events(doomed, project)
    expected = ("committed", answer.commit) if event["commit"] else ("not_committed", None)
    assert (event["result"], event["commit"]) == expected
    assert elsewhere or event["commit"]


async def test_a_push_that_outlives_its_replica_is_audited_as_what_it_became(
    world: World, doomed: ServerProcess
) -> None:
    """The restarted replica once looked at the branch at once, saw no commit and wrote `not_committed`; then the hook
    ended and the commit was there after all."""
    with gate(world.remote, "pre-receive") as hook:
        task = begin(doomed, "outliving")
        await eventually(lambda: hook.calls == 1)
        await doomed.kill()
        await lost(task)
        await doomed.start()
        await doomed.get("/policies?ref=x", Policy_Min_Commit=world.remote.head)
        assert not events(doomed, "outliving")
        hook.open()
        await eventually(lambda: events(doomed, "outliving"), 20)
    (event,) = events(doomed, "outliving")
    assert (event["result"], [event["commit"]]) == ("committed", commits(world, "outliving"))


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_killed_after_the_push_the_retry_finds_the_commit(
    world: World, replica: Replica, doomed: ServerProcess, elsewhere: bool
) -> None:
    """The branch has moved and the remote has not said so yet."""
    project = f"pushed-{'elsewhere' if elsewhere else 'restarted'}"
    with gate(world.remote, "post-receive") as hook:
        task = begin(doomed, project)
        await eventually(lambda: hook.calls == 1)
        await doomed.kill()
        await lost(task)
    await ended(doomed)
    (commit,) = commits(world, project)
    await expire(world, doomed)
    await restarted(doomed)
    answer = await again(replica if elsewhere else doomed, project)
    assert (answer.status, answer.commit) == (201, commit)
    assert commits(world, project) == [commit]
    (event,) = events(doomed, project)
    assert (event["result"], event["commit"], event["recovered"]) == ("committed", commit, True)
    assert event["actor"] == "root"
    assert event["resource"] == f"projects/{project}"


async def test_killed_before_the_answer_the_retry_gets_the_kept_one(
    world: World, replica: Replica, doomed: ServerProcess
) -> None:
    """Reconciling is suspended, so that the answer waits; everything else is done."""
    await replica.call("POST", "/admin/suspend", {"reason": "test"})
    try:
        task = begin(doomed, "waiting", query="?timeout=60")
        await eventually(lambda: commits(world, "waiting"))
        await eventually(lambda: answered(world, "waiting"))
        await doomed.kill()
        await lost(task)
        answer = await again(replica, "waiting")
        assert answer.headers["Idempotent-Replay"] == "true"
        assert [answer.commit] == commits(world, "waiting")
        await restarted(doomed)
        (event,) = events(doomed, "waiting")
        assert (event["result"], event["commit"]) == ("committed", answer.commit)
    finally:
        await replica.call("POST", "/admin/resume")


async def answered(world: World, project: str) -> bool:
    store = world.store()
    try:
        kvs = (await store.read(Range(f"{world.keys.own}idempotency/", prefix=True))).ranges[0]
        slots = [Slot.decode(kv.value) for kv in kvs]
        return any(slot.answer is not None and project in slot.answer["body"] for slot in slots)
    finally:
        await store.aclose()


async def test_what_was_acknowledged_is_in_the_branch_and_has_one_event_whenever_the_replica_dies(
    world: World, replica: Replica, doomed: ServerProcess
) -> None:
    """Eight callers write without a pause while it is killed; what they were told is compared with the branch.

    Another one waits for its answer all the time. Events of writes that had been logged long before were once written
    a second time, since the journal was only emptied when nothing was under way.
    """
    told: dict[str, str] = {}

    async def caller(name: str) -> None:
        for i in range(1000):
            project = f"stream-{name}-{i}"
            answer = await replica_put(doomed, project)
            told[project] = answer.commit

    await replica.call("POST", "/admin/suspend", {"reason": "test"})
    try:
        callers: list[asyncio.Task[Any]] = [begin(doomed, "stream", query="?timeout=60")]
        callers += [asyncio.create_task(caller(str(i))) for i in range(8)]
        await eventually(lambda: len(told) >= 40, 30)
        await doomed.kill()
        for outcome in await asyncio.gather(*callers, return_exceptions=True):
            assert isinstance(outcome, aiohttp.ClientError), outcome
        # The branch goes on, so that a push which died with the replica is not waited for.
        world.remote.commit({"README.md": b"after the crash"})
        await restarted(doomed)
    finally:
        await replica.call("POST", "/admin/resume")
    there = log(world)
    assert not {project: commit for project, commit in told.items() if commit not in there}
    found = [event for event in doomed.audit() if event["request_id"].startswith("first-stream")]
    ids = [event["request_id"] for event in found]
    assert sorted(ids) == sorted(set(ids))
    assert {f"first-{project}" for project in (*told, "stream")} <= set(ids)
    made = {event["commit"] for event in found if event["commit"]}
    assert made == {commit for commit, subject in there.items() if "projects/stream" in subject}


async def replica_put(replica: Replica, project: str) -> Answer:
    answer = await replica.put(project, query="?wait=none", X_Request_ID=f"first-{project}")
    assert answer.status == 201, answer
    return answer


def log(world: World) -> dict[str, str]:
    words = ["git", f"--git-dir={world.remote.path}", "log", "--format=%H %s", "main"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.split(" ", 1) for line in lines)


# --- the journal of what was sent -----------------------------------------------------------------------------------


def written(request_id: str) -> Write:
    def decide(_: Current) -> Content:
        return Content(b"package projects.a\n")

    return Write(project_policy("a"), decide, Identity("Ann", "ann@example.org"), "ann", request_id)


async def test_attempts_are_told_apart_also_when_a_caller_repeats_its_request_id(tmp_path: Path) -> None:
    """Request ids are the caller's; the end of one attempt once closed the other one too."""
    journal = Journal(tmp_path)
    first, second = written("same"), written("same")
    await journal.intends({"1" * 40: first, "2" * 40: second})
    await journal.logged(first.attempt)
    assert [line["commit"] for line in Journal(tmp_path).left()[second.attempt]] == ["2" * 40]


async def test_a_journal_that_is_never_empty_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = Journal(tmp_path, compact_above=4096)
    waiting = written("waiting")
    await journal.intends({"0" * 40: waiting})
    for i in range(200):
        write = written(f"r{i}")
        await journal.intends({f"{i:040}": write})
        await journal.logged(write.attempt)
    assert (tmp_path / "audit-journal.jsonl").stat().st_size < 2 * 4096
    assert list(Journal(tmp_path).left()) == [waiting.attempt]


async def test_what_was_recovered_is_not_recovered_again_after_a_second_crash(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    first, second = written("r1"), written("r2")
    await journal.intends({"1" * 40: first, "2" * 40: second})
    restarted = Journal(tmp_path)
    assert list(restarted.left()) == [first.attempt, second.attempt]
    restarted.recovered(first.attempt)
    assert list(Journal(tmp_path).left()) == [second.attempt]
