"""Remotes that are slow, silent, gone, rewritten or that decline: the right answer, within bounded time, for each."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio
from fixtures.etcd import eventually
from fixtures.git import SEED, Remote
from fixtures.githttp import GitHost, Mood, git_host
from fixtures.hooks import gate, hook
from fixtures.replicas import Answer, Replica, World

from reconciler.core.ports import Delete, Range, Transaction
from reconciler.idempotency import Slot
from reconciler.settings import ApiSettings, GitSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENCE = 2.0
API = ApiSettings(writes_per_second=10_000, burst=10_000, patience=PATIENCE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host(world: World) -> AsyncIterator[GitHost]:
    async with git_host(world.remote) as host:
        yield host


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def near(world: World, host: GitHost) -> AsyncIterator[Replica]:
    """A replica whose remote is the host; the reconciler runs elsewhere."""
    git = GitSettings(remote=host.url, protocols=("http",), poll_interval=3600, push_timeout=PATIENCE)
    async with world.replica(reconciler=False, git=git, api=API) as replica:
        yield replica


def commits(world: World, project: str) -> list[str]:
    """The commits of the branch that write this project."""
    return git(world.remote.path, "log", "--format=%H", "main", "--", f"policies/projects/{project}").split()


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


async def put(replica: Replica, project: str, word: str = "first", **headers: str) -> Answer:
    return await replica.put(project, word, query="?wait=none", **headers)


# --- slow, silent, gone ----------------------------------------------------------------------------------------------


async def test_a_slow_hook_delays_the_answer_and_nothing_else(world: World, replica: Replica) -> None:
    with gate(world.remote, "pre-receive") as slow:
        task = asyncio.create_task(put(replica, "slow"))
        await eventually(lambda: slow.calls == 1)
        others = [asyncio.create_task(put(replica, f"slow-{i}")) for i in range(5)]
        read = await replica.get("/policies/alpha")
        assert read.status == 200
        assert not task.done()
        slow.open()
        answers = await asyncio.gather(task, *others)
        assert [answer.status for answer in answers] == [201] * 6
        assert slow.calls < 1 + len(others), "those who waited share a push"


async def test_a_remote_that_hangs_is_an_unknown_outcome_in_bounded_time_and_the_key_finds_it(
    world: World, near: Replica, host: GitHost
) -> None:
    await host.become(Mood.HOLD)
    began = monotonic()
    answer = await put(near, "hung", Idempotency_Key="hung")
    assert (answer.status, answer.code) == (504, "outcome_unknown")
    assert monotonic() - began < 3 * PATIENCE
    assert int(answer.headers["Retry-After"]) > 0
    (event,) = [event for event in near.audit() if event["resource"] == "projects/hung"]
    assert event["result"] == "outcome_unknown"
    assert event["commit"] in answer.body["detail"]
    await host.become(Mood.SERVE)
    await eventually(lambda: commits(world, "hung"))
    found = await put(near, "hung", Idempotency_Key="hung")
    assert found.status == 201
    assert commits(world, "hung") == [found.commit]


async def test_a_push_that_never_arrived_is_made_by_the_retry(world: World, near: Replica, host: GitHost) -> None:
    await host.become(Mood.DROP)
    answer = await put(near, "dropped", Idempotency_Key="dropped")
    assert (answer.status, answer.code) == (504, "outcome_unknown")
    await host.become(Mood.SERVE)
    assert not commits(world, "dropped")
    found = await put(near, "dropped", Idempotency_Key="dropped")
    assert (found.status, commits(world, "dropped")) == (201, [found.commit])


async def test_an_answer_that_is_lost_after_the_push_is_found_out(world: World, near: Replica, host: GitHost) -> None:
    """The host accepts and the connection breaks: sending the same once more shows that it is there."""
    await host.become(Mood.LOSE)
    before = host.pushes
    task = asyncio.create_task(put(near, "lost"))
    await host.pushed(before + 1)
    await eventually(lambda: commits(world, "lost"))
    await host.become(Mood.SERVE)
    answer = await task
    assert answer.status == 201, answer.body
    assert (answer.status, commits(world, "lost")) == (201, [answer.commit])


async def test_an_answer_that_is_lost_and_a_branch_that_goes_on_are_told_apart(
    world: World, near: Replica, host: GitHost
) -> None:
    """Somebody builds on the commit before its writer knows that it arrived."""
    await host.become(Mood.LOSE)
    before = host.pushes
    task = asyncio.create_task(put(near, "built-on"))
    await host.pushed(before + 1)
    await eventually(lambda: commits(world, "built-on"))
    world.remote.commit({"README.md": b"on top\n"})
    await host.become(Mood.SERVE)
    answer = await task
    assert (answer.status, commits(world, "built-on")) == (201, [answer.commit])


async def test_an_unanswered_push_whose_copy_is_declined_is_no_refusal(
    world: World, near: Replica, host: GitHost
) -> None:
    """The first copy may still arrive. It was once told as `remote_declined`, and then the commit was there."""
    await host.become(Mood.HOLD)
    before = host.pushes
    task = asyncio.create_task(put(near, "twofold", Idempotency_Key="twofold"))
    await host.pushed(before + 1)
    with hook(world.remote, "pre-receive", "echo not today >&2; exit 1\n"):
        await asyncio.sleep(0)
        await host.become(Mood.DROP)
        await host.pushed(before + 2)
        await host.become(Mood.SERVE)
        answer = await task
    assert (answer.status, answer.code) == (504, "outcome_unknown")
    assert (await put(near, "twofold", Idempotency_Key="twofold")).status == 201


async def test_a_remote_that_is_gone_is_unavailable_and_no_commit_follows(
    world: World, near: Replica, host: GitHost
) -> None:
    head = world.remote.head
    await host.stop()
    try:
        answer = await put(near, "gone")
    finally:
        await host.start()
    assert (answer.status, answer.code) == (503, "unavailable")
    assert "Retry-After" in answer.headers
    (after,) = [await put(near, "not-gone")]
    assert after.status == 201
    assert git(world.remote.path, "rev-parse", f"{after.commit}^").strip() == head
    assert not commits(world, "gone")


async def test_a_host_that_is_overloaded_is_no_refusal(world: World, near: Replica, host: GitHost) -> None:
    await host.become(Mood.REFUSE)
    answer = await put(near, "overloaded")
    await host.become(Mood.SERVE)
    assert answer.status in {503, 504}
    assert not commits(world, "overloaded")


async def test_a_repository_that_is_away_is_unavailable_and_no_commit_follows(world: World, replica: Replica) -> None:
    away = world.remote.path.with_name("away.git")
    world.remote.path.rename(away)
    try:
        answer = await put(replica, "away")
        assert (answer.status, answer.code) == (503, "unavailable")
    finally:
        away.rename(world.remote.path)
    assert not commits(world, "away")
    assert (await put(replica, "away")).status == 201


# --- rewritten -------------------------------------------------------------------------------------------------------


async def test_a_branch_that_was_reset_is_never_brought_back_by_a_write(world: World, replica: Replica) -> None:
    """Back to an ancestor: a plain fast-forward push of what builds on the dropped commit would be accepted."""
    kept = world.remote.head
    dropped = await put(replica, "dropped-by-reset")
    world.remote.force_push(kept)
    answer = await put(replica, "after-reset")
    assert answer.status == 201
    assert git(world.remote.path, "rev-parse", f"{answer.commit}^").strip() == kept
    assert dropped.commit not in git(world.remote.path, "log", "--format=%H", "main").split()


async def test_a_version_that_was_dropped_with_its_history_is_a_conflict(world: World, replica: Replica) -> None:
    first = await put(replica, "rewritten")
    kept = world.remote.head
    second = await put(replica, "rewritten", "second", If_Match=first.etag)
    world.remote.force_push(kept)
    stale = await put(replica, "rewritten", "third", If_Match=second.etag)
    assert (stale.status, stale.code, stale.etag) == (409, "conflict", first.etag)
    assert (await put(replica, "rewritten", "third", If_Match=first.etag)).status == 200


async def test_a_branch_that_is_reset_during_the_push_refuses_it_and_the_write_is_decided_again(
    world: World, replica: Replica
) -> None:
    kept = world.remote.head
    assert (await put(replica, "reset-under-way-before")).status == 201
    with gate(world.remote, "pre-receive") as slow:
        task = asyncio.create_task(put(replica, "reset-under-way"))
        await eventually(lambda: slow.calls == 1)
        world.remote.force_push(kept)
        slow.open()
        answer = await task
    assert answer.status == 201
    assert git(world.remote.path, "rev-parse", f"{answer.commit}^").strip() == kept


async def test_a_key_whose_commit_was_dropped_is_written_again_when_etcd_has_forgotten_it(world: World) -> None:
    """The mirror still has the commit with the key; answering from there once told of a policy that nobody has."""
    kept = world.remote.head
    async with world.replica(reconciler=False) as other:
        await put(other, "dropped-key", Idempotency_Key="dropped-key")
        world.remote.force_push(kept)
        assert not commits(world, "dropped-key")
        await forget(world)
        again = await put(other, "dropped-key", Idempotency_Key="dropped-key")
    assert again.status == 201
    assert commits(world, "dropped-key") == [again.commit]


async def forget(world: World) -> None:
    """What a rebuilt etcd knows of idempotency keys: nothing."""
    store = world.store()
    try:
        keys = (await store.read(Range(f"{world.keys.own}idempotency/", prefix=True, keys_only=True))).ranges[0]
        await store.commit(Transaction((), tuple(Delete(kv.key) for kv in keys)))
    finally:
        await store.aclose()


async def test_a_branch_that_was_deleted_is_unavailable_and_not_made_again(world: World, replica: Replica) -> None:
    head = world.remote.head
    world.remote.delete_branch()
    try:
        answer = await put(replica, "branchless")
        assert (answer.status, answer.code) == (503, "unavailable")
        assert "main" in answer.body["detail"]
        assert git(world.remote.path, "branch", "--format=%(refname)") == ""
    finally:
        world.remote.force_push(head)
    assert (await put(replica, "branchless")).status == 201


# --- declined --------------------------------------------------------------------------------------------------------

SAYS = 'echo "policy freeze: see the calendar" >&2; exit 1\n'


async def test_of_a_batch_the_declined_writes_are_told_why_and_the_others_are_made(
    world: World, replica: Replica
) -> None:
    names = ["wanted-1", "unwanted-2", "wanted-3", "unwanted-4", "wanted-5"]
    with gate(world.remote, "pre-receive") as slow:
        first = asyncio.create_task(put(replica, "before-the-batch"))
        await eventually(lambda: slow.calls == 1)
        batch = [asyncio.create_task(put(replica, name, Idempotency_Key=name)) for name in names]
        await eventually(lambda: all_claimed(world, len(names)))
        with hook(world.remote, "update", f"git diff --name-only $2 $3 | grep -q unwanted || exit 0\n{SAYS}"):
            slow.open()
            await first
            answers = await asyncio.gather(*batch)
        assert slow.calls <= 1 + 2 * len(names), "each at most once with others, and once alone"
    assert [answer.status for answer in answers] == [201, 422, 201, 422, 201]
    for answer in (answers[1], answers[3]):
        assert answer.code == "remote_declined"
        assert "policy freeze: see the calendar" in answer.body["detail"]
    assert [len(commits(world, name)) for name in names] == [1, 0, 1, 0, 1]
    found = {event["resource"]: event for event in replica.audit()}
    assert found["projects/unwanted-2"]["result"] == "remote_declined"
    assert found["projects/unwanted-2"]["commit"] is None


async def all_claimed(world: World, number: int) -> bool:
    """So many writes with a key have come as far as the queue."""
    store = world.store()
    try:
        kvs = (await store.read(Range(f"{world.keys.own}idempotency/", prefix=True))).ranges[0]
        return sum(Slot.decode(kv.value).answer is None for kv in kvs) == number
    finally:
        await store.aclose()


async def test_a_declined_write_is_kept_under_its_key(world: World, replica: Replica) -> None:
    with hook(world.remote, "pre-receive", SAYS):
        first = await put(replica, "frozen", Idempotency_Key="frozen")
    again = await put(replica, "frozen", Idempotency_Key="frozen")
    assert (first.status, again.status, again.body) == (422, 422, first.body)


async def test_a_deletion_is_declined_like_any_write(world: World, replica: Replica) -> None:
    first = await put(replica, "kept")
    with hook(world.remote, "pre-receive", SAYS):
        answer = await replica.call("DELETE", "/policies/kept", If_Match=first.etag)
    assert (answer.status, answer.code) == (422, "remote_declined")
    assert (await replica.get("/policies/kept?ref=head")).etag == first.etag


async def test_an_account_that_may_not_push_is_no_refusal_of_the_write(
    world: World, near: Replica, host: GitHost
) -> None:
    head = world.remote.head
    await host.become(Mood.FORBID)
    answer = await put(near, "forbidden-to-regops")
    await host.become(Mood.SERVE)
    assert (answer.status, answer.code) == (503, "unavailable")
    assert "does not let these credentials push" in answer.body["detail"]
    assert world.remote.head == head


async def test_a_branch_that_somebody_has_checked_out_refuses_in_gits_own_words(world: World, tmp_path: Path) -> None:
    """A working copy as the remote: it stays as it is."""
    remote = Remote(tmp_path / "bare.git")
    remote.commit(SEED)
    git(tmp_path, "clone", "-q", str(remote.path), "work")
    work = tmp_path / "work"
    other = World(tmp_path, world.etcd, remote, world.opa)
    async with other.replica(git=GitSettings(remote=str(work), poll_interval=1.0), api=API) as replica:
        answer = await put(replica, "checked-out")
        assert (answer.status, answer.code) == (422, "remote_declined")
        assert "refusing to update checked out branch" in answer.body["detail"]
        assert git(work, "status", "--porcelain") == ""
        assert git(work, "rev-parse", "HEAD").strip() == remote.head
        git(work, "checkout", "-q", "--detach")
        assert (await put(replica, "checked-out")).status == 201
