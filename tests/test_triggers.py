"""What makes the loop look: the mailbox, pushes to a local remote, and whatever happens in etcd by another hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fixtures.dev import git
from fixtures.etcd import EtcdServer, eventually

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Delete, Put, Transaction
from reconciler.triggers import DriftWatch, Kind, Mailbox, watch_files

NEVER = 0.3
"""Seconds in which a trigger that is not to come would have come: those that do need a few milliseconds."""


# --- the mailbox -----------------------------------------------------------------------------------------------------


def _clock() -> Iterator[datetime]:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    while True:
        yield now
        now += timedelta(seconds=1)


async def test_triggers_that_wait_become_one_with_the_kind_and_time_of_the_first() -> None:
    times = _clock()
    mailbox = Mailbox(lambda: next(times))
    for kind in (Kind.PUSH, Kind.DRIFT, Kind.REQUEST):
        mailbox.put(kind)
    taken = await mailbox.take(60)
    assert (taken.kind, taken.seen_at) == (Kind.PUSH, datetime(2026, 1, 1, tzinfo=UTC))
    assert (await mailbox.take(0.01)).kind is Kind.POLL


async def test_after_a_trigger_the_next_wait_is_a_whole_one() -> None:
    mailbox = Mailbox()
    mailbox.put(Kind.PUSH)
    await mailbox.take(60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(mailbox.take(60), 0.05)


async def test_a_trigger_ends_the_wait_at_once() -> None:
    mailbox = Mailbox()
    taking = asyncio.ensure_future(mailbox.take(60))
    await asyncio.sleep(0)
    mailbox.put(Kind.PUSH)
    assert (await asyncio.wait_for(taking, 1)).kind is Kind.PUSH


async def test_without_a_trigger_a_wait_ends_as_a_poll_seen_at_its_end() -> None:
    times = _clock()
    mailbox = Mailbox(lambda: next(times))
    taken = await mailbox.take(0.01)
    assert (taken.kind, taken.seen_at) == (Kind.POLL, datetime(2026, 1, 1, tzinfo=UTC))


async def test_what_waited_before_a_look_at_everything_is_forgotten_but_for_its_trace() -> None:
    """A standby keeps seeing pushes: the first of them waited in its mailbox, and was measured as seen days ago."""
    mailbox = Mailbox()
    assert mailbox.emptied() is None
    mailbox.put(Kind.PUSH)
    mailbox.put(Kind.HOOK, "a trace")
    assert mailbox.emptied() == "a trace"
    assert (await mailbox.take(0.01)).kind is Kind.POLL
    mailbox.put(Kind.HOOK)
    assert (await mailbox.take(5)).kind is Kind.HOOK


async def test_a_cancelled_wait_loses_no_trigger() -> None:
    mailbox = Mailbox()
    taking = asyncio.ensure_future(mailbox.take(60))
    await asyncio.sleep(0)
    mailbox.put(Kind.PUSH)
    taking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await taking
    assert (await mailbox.take(0.01)).kind is Kind.PUSH


# --- pushes to a remote on this machine ------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the bare repository ``remote.git``, with one commit pushed to ``main``."""
    git("init", "-q", "--bare", str(tmp_path / "remote.git"), folder=tmp_path)
    git("clone", "-q", str(tmp_path / "remote.git"), str(tmp_path / "clone"), folder=tmp_path)
    _push(tmp_path / "clone")
    return tmp_path / "clone"


def _push(clone: Path, branch: str = "main") -> None:
    git("commit", "-q", "--allow-empty", "-m", "change", folder=clone)
    git("push", "-q", "origin", f"HEAD:refs/heads/{branch}", folder=clone)


async def _silent(mailbox: Mailbox) -> None:
    assert (await mailbox.take(NEVER)).kind is Kind.POLL


@pytest.mark.parametrize("form", ["path", "url", "url with spaces"])
async def test_a_push_to_a_local_remote_is_a_trigger(clone: Path, form: str) -> None:
    remote = clone.parent / "remote.git"
    if form == "url with spaces":
        remote = remote.rename(clone.parent / "my remote.git")
        git("remote", "set-url", "origin", str(remote), folder=clone)
    mailbox = Mailbox()
    async with watch_files(str(remote) if form == "path" else remote.as_uri(), mailbox) as watched:
        assert watched
        await asyncio.to_thread(_push, clone)
        assert (await mailbox.take(5)).kind is Kind.PUSH


async def test_a_commit_in_a_work_tree_that_is_the_remote_is_a_trigger(clone: Path) -> None:
    mailbox = Mailbox()
    async with watch_files(str(clone), mailbox) as watched:
        assert watched
        await asyncio.to_thread(git, "commit", "-q", "--allow-empty", "-m", "here", folder=clone)
        assert (await mailbox.take(5)).kind is Kind.PUSH


async def test_a_branch_in_a_new_folder_of_references_is_seen_too(clone: Path) -> None:
    mailbox = Mailbox()
    async with watch_files(str(clone.parent / "remote.git"), mailbox):
        await asyncio.to_thread(_push, clone, "team/release")
        assert (await mailbox.take(5)).kind is Kind.PUSH
        await _drained(mailbox)
        await asyncio.to_thread(_push, clone, "team/release")
        assert (await mailbox.take(5)).kind is Kind.PUSH


async def test_a_change_of_packed_references_alone_is_seen_too(clone: Path) -> None:
    remote = clone.parent / "remote.git"
    git("update-ref", "refs/heads/trunk", "main", folder=remote)
    git("pack-refs", "--all", folder=remote)
    mailbox = Mailbox()
    async with watch_files(str(remote), mailbox):
        await asyncio.to_thread(git, "update-ref", "-d", "refs/heads/trunk", folder=remote)
        assert (await mailbox.take(5)).kind is Kind.PUSH


async def _drained(mailbox: Mailbox) -> None:
    """Until nothing follows any more: one push changes more than one file."""
    while (await mailbox.take(NEVER)).kind is not Kind.POLL:
        pass


async def test_reading_a_remote_and_writing_objects_into_it_are_no_trigger(clone: Path, tmp_path: Path) -> None:
    mailbox = Mailbox()
    remote = clone.parent / "remote.git"
    async with watch_files(str(remote), mailbox):
        await asyncio.to_thread(git, "clone", "-q", str(remote), str(tmp_path / "other"), folder=tmp_path)
        (clone / "file").write_text("text")
        await asyncio.to_thread(git, "hash-object", "-w", str(clone / "file"), folder=remote)
        await _silent(mailbox)


@pytest.mark.parametrize(
    "remote",
    ["https://example.invalid/x.git", "ssh://git@example.invalid/x.git", "git@example.invalid:x.git", "/nowhere", ""],
)
async def test_any_other_remote_is_left_to_the_poll(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with watch_files(remote, Mailbox()) as watched:
        assert not watched


async def test_after_the_end_of_the_watch_nothing_follows(clone: Path) -> None:
    mailbox = Mailbox()
    async with watch_files(str(clone.parent / "remote.git"), mailbox):
        pass
    await asyncio.to_thread(_push, clone)
    await _silent(mailbox)


# --- etcd ------------------------------------------------------------------------------------------------------------


class Reconciler:
    """Knows its own writes, and counts how often it was told that etcd may have changed."""

    def __init__(self) -> None:
        self.own: set[int] = set()
        self.invalidated = 0

    def invalidate(self) -> None:
        self.invalidated += 1

    async def wrote(self, revision: int) -> bool:
        return revision in self.own


class Watched:
    """A drift watch at work, and somebody's hand in its etcd."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self.keys = Keyspace(f"{prefix}policies/", f"{prefix}regops/")
        self.store = EtcdStore([endpoint])
        self.mailbox = Mailbox()
        self.reconciler = Reconciler()
        self.restarts = 0
        self.watch = DriftWatch(self.store, self.keys, self.mailbox, self.reconciler, restarted=self._restarted)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Watched]:
        task = asyncio.ensure_future(self.watch.run())
        try:
            assert (await self.mailbox.take(5)).kind is Kind.DRIFT, "it looks where it begins"
            yield self
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.store.aclose()

    async def write(self, *operations: Put | Delete) -> int:
        return (await self.store.commit(Transaction((), operations))).revision

    def _restarted(self) -> None:
        self.restarts += 1


@pytest.fixture
async def watched(etcd_server: EtcdServer, prefix: str) -> AsyncIterator[Watched]:
    async with Watched(etcd_server.endpoint, prefix).running() as watched:
        yield watched


async def test_a_hand_edit_is_a_trigger_and_makes_the_reconciler_forget(watched: Watched) -> None:
    before = watched.reconciler.invalidated
    await watched.write(Put(f"{watched.keys.policies}projects/a/rego.rego", b"evil"))
    assert (await watched.mailbox.take(5)).kind is Kind.DRIFT
    assert watched.reconciler.invalidated == before + 1
    await watched.write(Delete(f"{watched.keys.policies}projects/a/rego.rego"))
    assert (await watched.mailbox.take(5)).kind is Kind.DRIFT


@pytest.mark.parametrize("word", ["requested", "confirmed", "suspended"])
async def test_a_persons_word_is_a_trigger_and_so_is_its_end(watched: Watched, word: str) -> None:
    key = getattr(watched.keys, word)
    await watched.write(Put(key, b"{}"))
    assert (await watched.mailbox.take(5)).kind is Kind.REQUEST
    await watched.write(Delete(key))
    assert (await watched.mailbox.take(5)).kind is Kind.REQUEST


@pytest.mark.parametrize(("word", "kind"), [(b"1" * 40, Kind.REQUEST), (b"hook", Kind.HOOK)])
async def test_a_push_or_hook_elsewhere_is_a_trigger_and_says_nothing_of_etcd(
    watched: Watched, word: bytes, kind: Kind
) -> None:
    """Each of them made the leader read all of etcd again, tens of megabytes of it."""
    before = watched.reconciler.invalidated
    await watched.write(Put(watched.keys.pushed, word))
    assert (await watched.mailbox.take(5)).kind is kind
    assert watched.reconciler.invalidated == before
    edit = Put(f"{watched.keys.policies}platform/rego.rego", b"evil")
    await watched.write(Put(watched.keys.pushed, word), edit)
    assert (await watched.mailbox.take(5)).kind is Kind.DRIFT
    assert watched.reconciler.invalidated == before + 1


async def test_own_writes_and_own_records_are_no_trigger(watched: Watched) -> None:
    # Revisions are consecutive, so the next one is known before it is written.
    now = await watched.write(Put(watched.keys.status, b"{}"))
    watched.reconciler.own = {now + 1}
    before = watched.reconciler.invalidated
    await watched.write(Put(f"{watched.keys.policies}platform/rego.rego", b"ours"))
    await watched.write(Put(watched.keys.applied, b"{}"), Put(watched.keys.receipt("dc", "agent"), b"{}"))
    await _silent(watched.mailbox)
    assert watched.reconciler.invalidated == before


async def test_an_edit_while_etcd_was_away_is_seen(etcd: EtcdServer) -> None:
    async with Watched(etcd.endpoint, "/").running() as watched:
        await watched.write(Put(f"{watched.keys.policies}platform/rego.rego", b"1"))
        assert (await watched.mailbox.take(5)).kind is Kind.DRIFT
        await asyncio.to_thread(etcd.stop)
        await asyncio.to_thread(etcd.start)
        other = EtcdStore([etcd.endpoint])
        await other.commit(Transaction((), (Put(f"{watched.keys.policies}platform/rego.rego", b"2"),)))
        await other.aclose()
        assert (await watched.mailbox.take(10)).kind is Kind.DRIFT


async def test_an_etcd_that_lost_everything_is_watched_anew_and_looked_at(etcd: EtcdServer) -> None:
    async with Watched(etcd.endpoint, "/").running() as watched:
        for number in range(20):
            await watched.write(Put(f"{watched.keys.policies}platform/rego.rego", b"%d" % number))
        await _drained(watched.mailbox)
        await asyncio.to_thread(etcd.stop)
        etcd.wipe()
        await asyncio.to_thread(etcd.start)
        assert (await watched.mailbox.take(15)).kind is Kind.DRIFT
        await eventually(lambda: watched.restarts >= 1)
        await _drained(watched.mailbox)
        await watched.write(Put(f"{watched.keys.policies}platform/rego.rego", b"again"))
        assert (await watched.mailbox.take(5)).kind is Kind.DRIFT
