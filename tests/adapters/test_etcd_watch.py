"""A watch over members that die, lag, lose their quorum or come back as something else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.etcd import EtcdServer, eventually
from fixtures.proxy import Mode, proxy_to
from fixtures.scripted import Script, scripted_etcd

from reconciler.adapters.etcd import EtcdStore
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import mvcc_pb2 as mvcc
from reconciler.core.errors import DivergedError
from reconciler.core.ports import Put, Range, Transaction, WatchBatch

PATIENCE = 15


def put(value: bytes, key: str = "/k") -> Transaction:
    return Transaction((), (Put(key, value),))


@contextlib.asynccontextmanager
async def connected(*endpoints: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints)
    try:
        yield store
    finally:
        await store.aclose()


async def following(batches: AsyncIterator[WatchBatch], count: int) -> list[bytes]:
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += [event.kv.value for event in (await anext(batches)).events]
    return found


async def test_nothing_is_lost_or_repeated_over_many_reset_connections(etcd_server: EtcdServer, prefix: str) -> None:
    """Other clients resume from the header's revision, which is the store's and not that of the events delivered."""
    values = [b"%d" % number for number in range(300)]
    async with (
        proxy_to(etcd_server.port) as proxy,
        connected(proxy.endpoint) as store,
        connected(etcd_server.endpoint) as writer,
    ):
        start = (await writer.read(Range(prefix))).revision

        async def write() -> None:
            for number, value in enumerate(values):
                await writer.commit(put(value, prefix))
                if number % 30 == 15:
                    before = proxy.connections
                    proxy.cut()
                    await eventually(lambda before=before: proxy.connections > before)

        async with store.watch(Range(prefix), from_revision=start + 1) as batches, asyncio.TaskGroup() as group:
            group.create_task(write())
            assert await following(batches, len(values)) == values
        assert proxy.connections > 10


async def test_a_watch_resumes_after_what_was_delivered_and_not_at_the_header() -> None:
    """While a watch catches up the header already has the store's newest revision: clients that resumed from there lost
    2,000 of 3,000 events. And a revision whose events have not all arrived counts for nothing."""
    script = Script(revision=30, watch_revision=30)

    def events(*revisions: int, fragment: bool = False) -> object:
        changes = [mvcc.Event(kv=mvcc.KeyValue(key=b"/k", value=b"%d" % n, mod_revision=n)) for n in revisions]
        return pb.WatchResponse(header=script.header(30), events=changes, fragment=fragment)

    script.streams = [[events(11, 12)], [events(13, 14, fragment=True)], [events(13, 14, fragment=True), events(14)]]
    async with (
        scripted_etcd(script) as etcd,
        connected(etcd.endpoint) as store,
        store.watch(Range("/k"), from_revision=11) as batches,
    ):
        assert await following(batches, 5) == [b"11", b"12", b"13", b"14", b"14"]
        told = await asyncio.wait_for(anext(batches), PATIENCE)
        assert (told.resumed, told.revision) == (True, 14), "the last stream was another one again"
        assert (await asyncio.wait_for(anext(batches), PATIENCE)).revision == 30
    assert etcd.starts == [10, 12, 12, 14]  # each one revision early


async def test_a_watch_moves_on_from_a_member_that_hangs(etcd_server: EtcdServer, prefix: str) -> None:
    async with (
        proxy_to(etcd_server.port) as first,
        proxy_to(etcd_server.port) as second,
        connected(first.endpoint, second.endpoint) as store,
    ):
        start = (await store.commit(put(b"0", prefix))).revision
        async with store.watch(Range(prefix), from_revision=start) as batches:
            assert await following(batches, 1) == [b"0"]
            first.mode = Mode.HANG
            async with asyncio.timeout(6):
                await store.read(Range(prefix))
                await store.commit(put(b"1", prefix))
                assert await following(batches, 1) == [b"1"]


async def test_a_quiet_watch_that_met_a_compaction_lives_on_after_a_reconnect(etcd: EtcdServer) -> None:
    """It began one revision early, was refused there, and from then on began in the future after every reconnect,
    where etcd answers no progress request: it took the connection for lost every three seconds."""
    async with proxy_to(etcd.port) as proxy, connected(proxy.endpoint) as store:
        now = (await store.commit(put(b"1"))).revision
        await asyncio.to_thread(etcd.post, "kv/compaction", {"revision": now, "physical": True})
        async with store.watch(Range("/k"), from_revision=now) as batches:
            assert await following(batches, 1) == [b"1"]
            proxy.cut()
            assert (await asyncio.wait_for(anext(batches), PATIENCE)).events == ()
            connections = proxy.connections
            for _ in range(2):
                assert (await asyncio.wait_for(anext(batches), PATIENCE)).events == ()
            assert proxy.connections == connections


async def test_an_etcd_that_was_restored_and_has_gone_on_is_no_longer_the_same(etcd: EtcdServer) -> None:
    """Its revision may be higher than the last one seen: then only another cluster or a lower term tells."""
    async with proxy_to(etcd.port) as proxy, connected(proxy.endpoint) as store:
        last = (await store.commit(put(b"old"))).revision
        async with store.watch(Range("/k"), from_revision=last) as batches:
            assert await following(batches, 1) == [b"old"]
            proxy.mode = Mode.REFUSE
            proxy.cut()
            await asyncio.to_thread(etcd.stop)
            etcd.wipe()
            etcd.cluster_token = "another"
            await asyncio.to_thread(etcd.start)
            async with connected(etcd.endpoint) as writer:
                while (await writer.commit(put(b"new"))).revision < last + 5:
                    pass
            proxy.mode = Mode.PASS
            with pytest.raises(DivergedError):
                await following(batches, 1)


async def test_a_member_that_lags_is_not_a_store_that_went_back() -> None:
    """The watch began anew on a follower a moment behind, and everything was read again."""
    async with scripted_etcd(Script(revision=100, watch_revision=100)) as etcd, connected(etcd.endpoint) as store:
        await store.read(Range("/k"))
        async with store.watch(Range("/k"), from_revision=101) as batches:
            assert (await asyncio.wait_for(anext(batches), PATIENCE)).revision == 100
        etcd.watch_revision = 98
        async with store.watch(Range("/k"), from_revision=101) as batches:
            lagging = asyncio.ensure_future(anext(batches))
            await eventually(lambda: etcd.calls["watch"] >= 3)
            assert not lagging.done()
            etcd.watch_revision = 100
            assert (await asyncio.wait_for(lagging, PATIENCE)).revision == 100


@pytest.mark.parametrize("change", [{"cluster": 2}, {"term": 1}, {"revision": 50, "watch_revision": 50}])
async def test_what_went_back_is_told_by_cluster_term_and_revision(change: dict[str, int]) -> None:
    async with scripted_etcd(Script(revision=100, watch_revision=100)) as etcd, connected(etcd.endpoint) as store:
        await store.read(Range("/k"))
        for name, value in change.items():
            setattr(etcd, name, value)
        async with store.watch(Range("/k"), from_revision=101) as batches:
            with pytest.raises(DivergedError):
                await asyncio.wait_for(anext(batches), PATIENCE)
        with pytest.raises(DivergedError):
            await store.read(Range("/k"))
        await store.read(Range("/k"))  # told once: from here on this is the store


async def test_a_member_without_quorum_gives_no_sign_of_life_until_it_has_one(tmp_path: Path) -> None:
    """It would answer progress requests for ever, and never have an event: hence ``hasleader``."""
    members = [EtcdServer(tmp_path / name, name=name) for name in ("a", "b", "c")]
    for member in members:
        member.cluster = ",".join(f"{each.name}={each.peer}" for each in members)
    try:
        for member in members:
            member.launch()
        await asyncio.gather(*(asyncio.to_thread(member.wait_ready) for member in members))
        async with connected(members[0].endpoint) as store:
            start = (await store.commit(put(b"0"))).revision
            async with store.watch(Range("/k"), from_revision=start) as batches:
                assert await following(batches, 1) == [b"0"]
                for member in members[1:]:
                    await asyncio.to_thread(member.stop)
                waiting = await _silent(batches, 4)
                for member in members[1:]:
                    member.launch()
                await asyncio.gather(*(asyncio.to_thread(member.wait_ready) for member in members))
                assert (await asyncio.wait_for(waiting, PATIENCE)).events == ()
                await store.commit(put(b"1"))
                assert await following(batches, 1) == [b"1"]
    finally:
        for member in members:
            member.stop()


async def _silent(batches: AsyncIterator[WatchBatch], seconds: float) -> asyncio.Future[WatchBatch]:
    """The batch that did not come for that long, after those that were on their way."""
    async with asyncio.timeout(PATIENCE):
        while True:
            waiting = asyncio.ensure_future(anext(batches))
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                return waiting
            assert waiting.result().events == ()


async def test_a_watch_that_is_cancelled_ends_whatever_it_was_doing(etcd_server: EtcdServer) -> None:
    """A lost cancellation keeps a server from ending, so it is cancelled at each step of its way to the first event."""
    async with connected(etcd_server.endpoint) as store:
        await store.read(Range("watched"))

        async def follow() -> None:
            async with store.watch(Range("watched"), from_revision=1) as batches:
                async for _ in batches:
                    pass

        for steps in range(120):
            watching = asyncio.create_task(follow())
            for _ in range(steps):
                await asyncio.sleep(0)
            watching.cancel()
            _, left = await asyncio.wait({watching}, timeout=5)
            assert not left, f"cancelled after {steps} steps"
