"""What every `KeyValueStore` keeps, on a real etcd."""

import asyncio

import pytest
from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.core.errors import (
    CompactedError,
    DivergedError,
    StalledError,
    StoreError,
    UnknownOutcomeError,
)
from reconciler.core.ports import Compare, Delete, Put, Range, Target, Transaction, WatchBatch


def put(*pairs: tuple[str, bytes]) -> Transaction:
    return Transaction((), tuple(Put(key, value) for key, value in pairs))


async def test_a_transaction_happens_whole_or_not_at_all(store: EtcdStore, prefix: str) -> None:
    key = f"{prefix}a"
    create = Transaction((Compare(key, Target.CREATE, 0),), (Put(key, b"1"), Put(f"{prefix}b", b"1")))
    assert (await store.commit(create)).succeeded
    assert not (await store.commit(create)).succeeded
    kvs = (await store.read(Range(prefix, prefix=True))).ranges[0]
    assert [kv.mod_revision for kv in kvs] == [kvs[0].mod_revision] * 2


async def test_all_ranges_are_read_at_one_revision_also_an_old_one(store: EtcdStore, prefix: str) -> None:
    first = await store.commit(put((f"{prefix}a", b"1"), (f"{prefix}b", b"1")))
    await store.commit(Transaction((), (Put(f"{prefix}a", b"2"), Delete(f"{prefix}b"))))
    old = await store.read(Range(f"{prefix}a"), Range(f"{prefix}b"), revision=first.revision)
    assert [kvs[0].value for kvs in old.ranges] == [b"1", b"1"]
    now = await store.read(Range(f"{prefix}a"), Range(prefix, prefix=True, keys_only=True))
    assert [kv.value for kvs in now.ranges for kv in kvs] == [b"2", b""]


async def test_a_watch_delivers_whole_revisions_in_order_without_gap_or_repeat(store: EtcdStore, prefix: str) -> None:
    start = (await store.read(Range(prefix))).revision
    written = [
        (await store.commit(put((f"{prefix}x/a", b"%d" % n), (f"{prefix}y", b"%d" % n)))).revision for n in range(20)
    ]
    async with store.watch(Range(f"{prefix}x/", prefix=True), Range(f"{prefix}y"), from_revision=start + 1) as batches:
        events = await _events(batches, 40)
    assert [revision for revision, _ in events] == [revision for revision in written for _ in range(2)]


async def test_a_watch_goes_on_over_a_restart_of_etcd(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    first = (await store.commit(put(("/k", b"0")))).revision
    async with store.watch(Range("/k"), from_revision=first) as batches:
        assert (await _events(batches, 1)) == [(first, b"0")]
        await asyncio.to_thread(etcd.stop)
        await asyncio.to_thread(etcd.start)
        second = (await store.commit(put(("/k", b"1")))).revision
        assert (await _events(batches, 1)) == [(second, b"1")]
    await store.aclose()


async def test_a_silent_etcd_is_noticed_and_the_watch_goes_on_when_it_wakes(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint], read_timeout=0.5, commit_timeout=0.5)
    first = (await store.commit(put(("/k", b"0")))).revision
    async with store.watch(Range("/k"), from_revision=first) as batches:
        await _events(batches, 1)
        etcd.pause()
        with pytest.raises(UnknownOutcomeError):
            await store.commit(put(("/k", b"1")))
        with pytest.raises(StoreError):
            await store.read(Range("/k"))
        etcd.resume()
        await asyncio.to_thread(etcd.wait_ready)
        last = (await store.commit(put(("/k", b"2")))).revision
        while (event := (await _events(batches, 1))[-1])[0] < last:
            assert event[1] == b"1"  # the unknown one did happen
        assert event == (last, b"2")
    await store.aclose()


async def test_what_is_compacted_is_said(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    for number in range(5):
        last = (await store.commit(put(("/k", b"%d" % number)))).revision
    await _compact(etcd, last)
    with pytest.raises(CompactedError):
        await store.read(Range("/k"), revision=2)
    async with store.watch(Range("/k"), from_revision=2) as batches:
        with pytest.raises(CompactedError):
            await anext(batches)
    await store.aclose()


async def test_an_etcd_that_went_back_is_noticed_once(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    for number in range(5):
        await store.commit(put(("/k", b"%d" % number)))
    await asyncio.to_thread(etcd.stop)
    etcd.wipe()
    await asyncio.to_thread(etcd.start)
    with pytest.raises(DivergedError):
        await store.read(Range("/k"))
    assert (await store.read(Range("/k"))).ranges == ((),)
    await store.aclose()


async def test_a_write_that_never_left_is_no_unknown_outcome(etcd: EtcdServer) -> None:
    await asyncio.to_thread(etcd.stop)
    store = EtcdStore([etcd.endpoint])
    with pytest.raises(StoreError):
        await store.commit(put(("/k", b"1")))
    await store.aclose()


async def test_too_much_for_one_request_is_refused_and_health_says_what_fits(store: EtcdStore, prefix: str) -> None:
    with pytest.raises(StalledError, match=r"too large|larger"):
        await store.commit(put((prefix, b"x" * 2_200_000)))
    health = await store.health()
    assert health.db_size > 0
    assert health.warnings == ()


async def test_a_deposed_leader_writes_nothing(store: EtcdStore, prefix: str) -> None:
    async with Election(store, f"{prefix}leader", "one").lead() as first:
        await store.commit(Transaction((), (Delete(f"{prefix}leader"),)))
        async with Election(store, f"{prefix}leader", "two").lead() as second:
            mine = Transaction((second.fence.compare(),), (Put(f"{prefix}k", b"two"),))
            late = Transaction((first.fence.compare(),), (Put(f"{prefix}k", b"one"),))
            assert (await store.commit(mine)).succeeded
            assert not (await store.commit(late)).succeeded


async def test_a_leader_that_resigns_is_followed_at_once(store: EtcdStore, prefix: str) -> None:
    elected = asyncio.Event()

    async def other() -> None:
        async with Election(store, f"{prefix}leader", "two").lead():
            elected.set()

    async with asyncio.TaskGroup() as group:
        async with Election(store, f"{prefix}leader", "one").lead() as first:
            assert first.valid()
            group.create_task(other())
        await asyncio.wait_for(elected.wait(), 2)
    assert not first.valid()


async def _events(batches: object, count: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while len(found) < count:
        batch: WatchBatch = await asyncio.wait_for(anext(batches), 15)  # type: ignore[call-overload]
        found += [(event.kv.mod_revision, event.kv.value) for event in batch.events]
    return found


async def _compact(etcd: EtcdServer, revision: int) -> None:
    import aiohttp  # noqa: PLC0415 etcd's own JSON gateway: regops itself never compacts

    async with aiohttp.ClientSession() as session:
        body = {"revision": revision, "physical": True}
        async with session.post(f"{etcd.endpoint}/v3/kv/compaction", json=body) as answer:
            assert answer.status == 200, await answer.text()
