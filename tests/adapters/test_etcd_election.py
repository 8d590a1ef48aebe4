"""Who leads, on a real etcd and in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.store import InMemoryStore
from fixtures.etcd import EtcdServer, eventually

from reconciler.adapters.etcd import Election, EtcdStore, Leadership
from reconciler.core.errors import StoreError, UnknownOutcomeError
from reconciler.core.ports import Delete, KeyValueStore, Put, Range, Transaction

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "leader_script.py"


async def holder(store: KeyValueStore, key: str) -> str:
    (found,) = (await store.read(Range(key))).ranges
    return str(json.loads(found[0].value)["id"]) if found else ""


@contextlib.asynccontextmanager
async def candidate(
    store: KeyValueStore, key: str, name: str, ttl: int = 5
) -> AsyncIterator[asyncio.Future[Leadership]]:
    """Competes beside the test; the future is the leadership that it gets."""
    elected: asyncio.Future[Leadership] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with Election(store, key, name, ttl).lead() as leadership:
            elected.set_result(leadership)
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    try:
        yield elected
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_deposed_leader_writes_nothing(store: EtcdStore, prefix: str) -> None:
    async with Election(store, f"{prefix}leader", "one").lead() as first:
        await store.commit(Transaction((), (Delete(f"{prefix}leader"),)))
        async with Election(store, f"{prefix}leader", "two").lead() as second:
            mine = Transaction((second.fence.compare(),), (Put(f"{prefix}k", b"two"),))
            late = Transaction((first.fence.compare(),), (Put(f"{prefix}k", b"one"),))
            assert (await store.commit(mine)).succeeded
            assert not (await store.commit(late)).succeeded


async def test_a_leader_that_was_paused_beyond_its_lease_writes_nothing(
    etcd_server: EtcdServer, store: EtcdStore, prefix: str
) -> None:
    """A whole process is stopped, as by a hypervisor: it wakes up believing that it leads."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), etcd_server.endpoint, prefix, "2"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdin
    assert process.stdout
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"leading\n"
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20), Election(store, f"{prefix}leader", "next", 2).lead() as leadership:
            write = Transaction((leadership.fence.compare(),), (Put(f"{prefix}written", b"next"),))
            assert (await store.commit(write)).succeeded
            process.stdin.write(b"\n")
            process.send_signal(signal.SIGCONT)
            told = json.loads(await asyncio.wait_for(process.stdout.readline(), 10))
            assert told == {"valid": False, "written": False}
            assert leadership.valid()
        (kvs,) = (await store.read(Range(f"{prefix}written"))).ranges
        assert [kv.value for kv in kvs] == [b"next"]
    finally:
        process.kill()
        await process.communicate()


async def test_a_leader_that_resigns_is_followed_at_once(store: EtcdStore, prefix: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with Election(store, f"{prefix}leader", "one", 60).lead() as first:
            elected = await stack.enter_async_context(candidate(store, f"{prefix}leader", "two"))
            await asyncio.sleep(0)
            assert first.valid()
            assert not elected.done()
        started = time.monotonic()
        second = await asyncio.wait_for(elected, 5)
        assert time.monotonic() - started < 2
        assert second.valid()
        assert not first.valid()
        await asyncio.wait_for(first.lost(), 1)


async def test_a_cancelled_leader_resigns_too(store: EtcdStore, prefix: str) -> None:
    """A server that is told to stop is cancelled: the next one must not wait for the lease."""
    key = f"{prefix}leader"
    async with candidate(store, key, "one", 60) as elected:
        await asyncio.wait_for(elected, 5)
        assert await holder(store, key) == "one"
    assert await holder(store, key) == ""


async def test_a_candidate_that_gives_up_leaves_nothing_behind() -> None:
    fake = InMemoryStore()
    fake.fail("commit", UnknownOutcomeError("lost"))
    with pytest.raises(UnknownOutcomeError):
        async with Election(fake, "/leader", "one").lead():
            pass
    assert fake.save().leases == {}


async def test_an_election_whose_answer_is_lost_holds_nobody_up() -> None:
    """The key may have been taken by a lease that its owner does not know to be successful."""
    fake = InMemoryStore()
    fake.lose_answer()
    with pytest.raises(UnknownOutcomeError):
        async with Election(fake, "/leader", "one").lead():
            pass
    assert fake.values() == {}
    async with Election(fake, "/leader", "one").lead() as leadership:
        assert leadership.valid()


async def test_a_lease_that_is_gone_ends_the_lead() -> None:
    fake = InMemoryStore()
    async with Election(fake, "/leader", "one", 1).lead() as leadership:
        fake.advance(2)
        await asyncio.wait_for(leadership.lost(), 3)
        assert not leadership.valid()


@pytest.mark.parametrize("hand", ["deleted", "overwritten"])
async def test_a_leader_whose_key_somebody_removed_stops_leading(store: EtcdStore, prefix: str, hand: str) -> None:
    """The lease lived on and was renewed for ever, while the fence refused every write: with one replica, nobody led
    until it was restarted."""
    key = f"{prefix}leader"
    async with Election(store, key, "one", 1).lead() as leadership:
        await store.commit(Transaction((), (Delete(key),)))
        if hand == "overwritten":
            await store.commit(Transaction((), (Put(key, b'{"id": "somebody"}'),)))
        await asyncio.wait_for(leadership.lost(), 5)
        assert not leadership.valid()


async def test_a_store_that_went_back_ends_the_lead() -> None:
    """So that a new one begins, whose first pass writes everything that the restored store lacks."""
    fake = InMemoryStore()
    async with Election(fake, "/leader", "one", 1).lead() as leadership:
        fake.restore(fake.save())
        await asyncio.wait_for(leadership.lost(), 3)


async def test_a_short_outage_costs_no_lead() -> None:
    fake = InMemoryStore()
    fake.fail("keep_alive", *(StoreError("away") for _ in range(3)))
    async with Election(fake, "/leader", "one", 2).lead() as leadership:
        await eventually(lambda: fake.calls["keep_alive"] >= 5)
        assert leadership.valid()


async def test_a_long_outage_makes_the_leader_stop_writing_and_then_leading() -> None:
    fake = InMemoryStore()
    async with Election(fake, "/leader", "one", 2).lead() as leadership:
        assert leadership.valid()
        fake.away = True
        await eventually(lambda: not leadership.valid(), 3)
        assert not leadership._over.is_set()
        await asyncio.wait_for(leadership.lost(), 6)
        fake.away = False


async def test_a_renewal_that_breaks_in_an_unforeseen_way_ends_the_lead() -> None:
    """Its task died alone, and nobody was told."""

    class Broken(InMemoryStore):
        async def keep_alive(self, lease: int) -> int:
            raise ZeroDivisionError(lease)

    async with Election(Broken(), "/leader", "one", 1).lead() as leadership:
        await asyncio.wait_for(leadership.lost(), 3)


async def test_of_many_candidates_one_leads_at_a_time(store: EtcdStore, prefix: str) -> None:
    key = f"{prefix}leader"
    leading: list[int] = []
    terms: list[int] = []

    async def run(number: int) -> None:
        async with Election(store, key, str(number)).lead() as leadership:
            leading.append(number)
            assert len(leading) == 1
            terms.append(leadership.fence.create_revision)
            assert await holder(store, key) == str(number)
            leading.remove(number)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(run(number))
    assert terms == sorted(set(terms))
    assert len(terms) == 8
