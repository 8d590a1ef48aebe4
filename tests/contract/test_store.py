"""What every `KeyValueStore` promises, asked of the one in memory and of the gateway on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from fakes.store import InMemoryStore
from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.errors import CompactedError, DivergedError, StalledError, StoreError
from reconciler.core.ports import (
    Compare,
    Delete,
    Event,
    KeyValueStore,
    Put,
    Range,
    Target,
    Transaction,
    WatchBatch,
)

PATIENCE = 15.0


@dataclass
class World:
    """A store, and what others do to it."""

    store: KeyValueStore
    compact: Callable[[int], Awaitable[None]]
    pass_time: Callable[[float], Awaitable[None]]


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        fake = InMemoryStore()

        async def compact(revision: int) -> None:
            fake.compact(revision)

        async def pass_time(seconds: float) -> None:
            fake.advance(seconds)

        yield World(fake, compact, pass_time)
        return
    server: EtcdServer = request.getfixturevalue("etcd_server")
    store = EtcdStore([server.endpoint])

    async def really_compact(revision: int) -> None:
        await asyncio.to_thread(server.post, "kv/compaction", {"revision": revision, "physical": True})

    yield World(store, really_compact, asyncio.sleep)
    await store.aclose()


def put(*pairs: tuple[str, bytes]) -> Transaction:
    return Transaction((), tuple(Put(key, value) for key, value in pairs))


# --- transactions ----------------------------------------------------------------------------------------------------


async def test_a_transaction_happens_whole_or_not_at_all(world: World, prefix: str) -> None:
    key = f"{prefix}a"
    create = Transaction((Compare(key, Target.CREATE, 0),), (Put(key, b"1"), Put(f"{prefix}b", b"1")))
    done = await world.store.commit(create)
    assert done.succeeded
    again = await world.store.commit(create)
    assert not again.succeeded
    assert again.revision == done.revision
    kvs = (await world.store.read(Range(prefix, prefix=True))).ranges[0]
    assert [(kv.create_revision, kv.mod_revision) for kv in kvs] == [(done.revision, done.revision)] * 2


async def test_a_write_counts_the_key_s_mod_revision_and_keeps_its_create_revision(world: World, prefix: str) -> None:
    first = (await world.store.commit(put((prefix, b"1")))).revision
    second = (await world.store.commit(put((prefix, b"2")))).revision
    kv = (await world.store.read(Range(prefix))).ranges[0][0]
    assert (kv.create_revision, kv.mod_revision) == (first, second)
    assert (await world.store.commit(Transaction((Compare(prefix, Target.MOD, second),), ()))).succeeded
    assert not (await world.store.commit(Transaction((Compare(prefix, Target.MOD, first),), ()))).succeeded


async def test_a_key_that_was_deleted_is_created_anew(world: World, prefix: str) -> None:
    """A deposed leader's fence is its key's create_revision: it must never come back."""
    first = (await world.store.commit(put((prefix, b"1")))).revision
    gone = await world.store.commit(Transaction((), (Delete(prefix),)))
    assert (await world.store.commit(Transaction((Compare(prefix, Target.CREATE, 0),), ()))).succeeded
    again = (await world.store.commit(put((prefix, b"1")))).revision
    assert first < gone.revision < again
    assert (await world.store.read(Range(prefix))).ranges[0][0].create_revision == again
    assert not (await world.store.commit(Transaction((Compare(prefix, Target.CREATE, first),), ()))).succeeded


async def test_one_failing_compare_of_several_stops_everything(world: World, prefix: str) -> None:
    await world.store.commit(put((f"{prefix}a", b"1")))
    compares = (Compare(f"{prefix}b", Target.CREATE, 0), Compare(f"{prefix}a", Target.MOD, 1))
    done = await world.store.commit(Transaction(compares, (Put(f"{prefix}b", b"2"), Delete(f"{prefix}a"))))
    assert not done.succeeded
    kvs = (await world.store.read(Range(prefix, prefix=True))).ranges[0]
    assert [(kv.key, kv.value) for kv in kvs] == [(f"{prefix}a", b"1")]


async def test_deleting_what_is_absent_changes_no_revision(world: World, prefix: str) -> None:
    before = (await world.store.read(Range(prefix))).revision
    done = await world.store.commit(Transaction((), (Delete(prefix),)))
    assert (done.succeeded, done.revision) == (True, before)


@pytest.mark.parametrize("size", [2_200_000, 3_000_000])
async def test_too_many_bytes_for_one_request_are_refused(world: World, prefix: str, size: int) -> None:
    with pytest.raises(StalledError) as refused:
        await world.store.commit(put((prefix, b"x" * size)))
    assert refused.value.reason == "TooLarge"
    assert (await world.store.read(Range(prefix))).ranges == ((),)


async def test_too_many_operations_for_one_request_are_refused(world: World, prefix: str) -> None:
    assert (await world.store.commit(put(*((f"{prefix}{n}", b"") for n in range(128))))).succeeded
    with pytest.raises(StalledError) as refused:
        await world.store.commit(put(*((f"{prefix}{n}", b"") for n in range(129))))
    assert refused.value.reason == "TooLarge"


async def test_one_key_cannot_be_written_twice_at_once(world: World, prefix: str) -> None:
    with pytest.raises(StalledError) as refused:
        await world.store.commit(Transaction((), (Put(prefix, b"1"), Delete(prefix))))
    assert refused.value.reason == "StoreRefused"


# --- reads -----------------------------------------------------------------------------------------------------------


async def test_all_ranges_are_read_at_one_revision_also_a_past_one(world: World, prefix: str) -> None:
    a, b = f"{prefix}a", f"{prefix}b"
    first = await world.store.commit(put((a, b"1"), (b, b"1")))
    await world.store.commit(Transaction((), (Put(a, b"2"), Delete(b))))
    old = await world.store.read(Range(a), Range(b), Range(prefix, prefix=True), revision=first.revision)
    assert [[(kv.key, kv.value) for kv in kvs] for kvs in old.ranges] == [
        [(a, b"1")],
        [(b, b"1")],
        [(a, b"1"), (b, b"1")],
    ]
    assert old.revision > first.revision
    now = await world.store.read(Range(a), Range(b), Range(prefix, prefix=True, keys_only=True))
    assert [[kv.value for kv in kvs] for kvs in now.ranges] == [[b"2"], [], [b""]]


async def test_a_prefix_ends_where_its_slash_does(world: World, prefix: str) -> None:
    inside = [f"{prefix}policies/", f"{prefix}policies/a", f"{prefix}policies/\x7f", f"{prefix}policies/é\U0010ffff"]
    outside = [f"{prefix}policies", f"{prefix}policies.", f"{prefix}policies0", f"{prefix}policiesx"]
    await world.store.commit(put(*((key, b"") for key in inside + outside)))
    found = await world.store.read(Range(f"{prefix}policies/", prefix=True))
    assert [kv.key for kv in found.ranges[0]] == inside


async def test_values_are_bytes_of_any_kind(world: World, prefix: str) -> None:
    values = [b"", bytes(range(256)), b"\xff\xfe\x00", b"x" * 1_500_000]
    for number, value in enumerate(values):
        await world.store.commit(put((f"{prefix}{number}", value)))
    found = await world.store.read(Range(prefix, prefix=True))
    assert [kv.value for kv in found.ranges[0]] == values


async def test_what_is_compacted_is_said(world: World, prefix: str) -> None:
    written = [(await world.store.commit(put((prefix, b"%d" % number)))).revision for number in range(5)]
    await world.compact(written[3])
    with pytest.raises(CompactedError):
        await world.store.read(Range(prefix), revision=written[2])
    assert (await world.store.read(Range(prefix), revision=written[3])).ranges[0][0].value == b"3"
    async with world.store.watch(Range(prefix), from_revision=written[1]) as batches:
        with pytest.raises(CompactedError) as lost:
            await asyncio.wait_for(anext(batches), PATIENCE)
    assert lost.value.compact_revision == written[3]


async def test_a_revision_that_etcd_has_not_reached_means_that_it_went_back(world: World, prefix: str) -> None:
    """After a restore a mirror asks for a revision that it has seen, and that the store does not know."""
    now = (await world.store.read(Range(prefix))).revision
    with pytest.raises(DivergedError):
        await world.store.read(Range(prefix), revision=now + 100)
    async with world.store.watch(Range(prefix), from_revision=now + 100) as batches:
        with pytest.raises(DivergedError):
            await asyncio.wait_for(anext(batches), PATIENCE)


# --- watches ---------------------------------------------------------------------------------------------------------


async def test_a_watch_delivers_whole_revisions_in_order_without_gap_or_repeat(world: World, prefix: str) -> None:
    start = (await world.store.read(Range(prefix))).revision
    pairs = ((f"{prefix}x/a", f"{prefix}y") for _ in range(20))
    written = [(await world.store.commit(put((a, b"1"), (b, b"2")))).revision for a, b in pairs]
    ranges = (Range(f"{prefix}x/", prefix=True), Range(f"{prefix}y"))
    async with world.store.watch(*ranges, from_revision=start + 1) as batches:
        events = await collect(batches, 40)
    assert [event.kv.mod_revision for event in events] == [revision for revision in written for _ in range(2)]


async def test_a_watch_of_several_ranges_delivers_only_them(world: World, prefix: str) -> None:
    start = (await world.store.read(Range(prefix))).revision
    ranges = (Range(f"{prefix}a/", prefix=True), Range(f"{prefix}c"), Range(f"{prefix}e/", prefix=True))
    keys = [f"{prefix}{key}" for key in ("a/1", "a", "a0", "b", "c", "c/1", "d", "e/", "e/1", "ex", "f")]
    async with world.store.watch(*ranges, from_revision=start + 1) as batches:
        await world.store.commit(put(*((key, b"") for key in keys)))
        await world.store.commit(Transaction((), tuple(Delete(key) for key in reversed(keys))))
        events = await collect(batches, 8)
    wanted = [f"{prefix}{key}" for key in ("a/1", "c", "e/", "e/1")]
    assert sorted(event.kv.key for event in events[:4]) == wanted
    assert sorted(event.kv.key for event in events[4:]) == wanted
    assert [event.deleted for event in events] == [False] * 4 + [True] * 4


async def test_a_deletion_is_an_event_without_value(world: World, prefix: str) -> None:
    start = (await world.store.commit(put((prefix, b"1")))).revision
    gone = (await world.store.commit(Transaction((), (Delete(prefix),)))).revision
    async with world.store.watch(Range(prefix), from_revision=start + 1) as batches:
        (event,) = await collect(batches, 1)
    assert event.deleted
    assert (event.kv.value, event.kv.create_revision, event.kv.mod_revision) == (b"", 0, gone)


async def test_one_large_revision_arrives_as_one_batch(world: World, prefix: str) -> None:
    """etcd cuts what is larger than a request into fragments; a catch-up joins many revisions. A consumer sees
    neither: a batch has all events of its revisions."""
    start = (await world.store.read(Range(prefix))).revision
    for _ in range(4):
        await world.store.commit(put(*((f"{prefix}{n}", b"x" * 600_000) for n in range(3))))
    async with world.store.watch(Range(prefix, prefix=True), from_revision=start + 1) as batches:
        seen: list[WatchBatch] = []
        async with asyncio.timeout(PATIENCE):
            while sum(len(batch.events) for batch in seen) < 12:
                seen.append(await anext(batches))
    for batch in seen:
        revisions = [event.kv.mod_revision for event in batch.events]
        assert all(revisions.count(revision) == 3 for revision in revisions)
        assert not revisions or batch.revision == revisions[-1]
        assert all(len(event.kv.value) == 600_000 for event in batch.events)


@pytest.mark.parametrize("ahead", [0, 1])
async def test_a_quiet_watch_gives_signs_of_life(world: World, prefix: str, ahead: int) -> None:
    now = (await world.store.commit(put((prefix, b"1")))).revision
    async with world.store.watch(Range(prefix), from_revision=now + ahead) as batches:
        await collect(batches, 1 - ahead)
        for _ in range(2):
            batch = await asyncio.wait_for(anext(batches), 5)
            assert batch.events == ()
            assert batch.revision >= now


async def test_a_watch_that_begins_where_the_store_was_compacted_goes_on(world: World, prefix: str) -> None:
    """A watch begins one revision early, to be told of a quiet etcd; that one is refused here."""
    await world.store.commit(put((prefix, b"1")))
    now = (await world.store.commit(put((prefix, b"2")))).revision
    await world.compact(now)
    async with world.store.watch(Range(prefix), from_revision=now) as batches:
        assert [event.kv.value for event in await collect(batches, 1)] == [b"2"]
        assert (await asyncio.wait_for(anext(batches), 5)).events == ()


async def test_several_watches_see_the_same(world: World, prefix: str) -> None:
    start = (await world.store.read(Range(prefix))).revision

    async def follow() -> list[Event]:
        async with world.store.watch(Range(prefix, prefix=True), from_revision=start + 1) as batches:
            return await collect(batches, 30)

    async with asyncio.TaskGroup() as group:
        followers = [group.create_task(follow()) for _ in range(5)]
        for number in range(30):
            await world.store.commit(put((f"{prefix}{number % 3}", b"%d" % number)))
    assert all(follower.result() == followers[0].result() for follower in followers)
    assert [event.kv.value for event in followers[0].result()] == [b"%d" % number for number in range(30)]


# --- leases ----------------------------------------------------------------------------------------------------------


async def test_a_key_goes_with_its_lease_and_stays_while_it_is_renewed(world: World, prefix: str) -> None:
    kept, left = await world.store.grant(2), await world.store.grant(2)
    operations = (Put(f"{prefix}kept", b"", kept), Put(f"{prefix}left", b"", left), Put(f"{prefix}free", b""))
    start = (await world.store.commit(Transaction((), operations))).revision
    async with world.store.watch(Range(prefix, prefix=True), from_revision=start + 1) as batches:
        for _ in range(8):
            assert await world.store.keep_alive(kept) >= 1
            await world.pass_time(0.3)
        (event,) = await collect(batches, 1)
    assert (event.kv.key, event.deleted) == (f"{prefix}left", True)
    kvs = (await world.store.read(Range(prefix, prefix=True))).ranges[0]
    assert [(kv.key, kv.lease) for kv in kvs] == [(f"{prefix}free", 0), (f"{prefix}kept", kept)]
    assert await world.store.keep_alive(left) == 0


async def test_a_revoked_lease_takes_its_keys_along_at_once(world: World, prefix: str) -> None:
    lease = await world.store.grant(60)
    await world.store.commit(Transaction((), (Put(f"{prefix}a", b"", lease), Put(f"{prefix}b", b"", lease))))
    await world.store.revoke(lease)
    assert (await world.store.read(Range(prefix, prefix=True))).ranges == ((),)
    await world.store.revoke(lease)  # a lease that is gone already is no error
    assert await world.store.keep_alive(lease) == 0


async def test_a_write_under_a_lease_that_is_gone_surely_did_not_happen(world: World, prefix: str) -> None:
    lease = await world.store.grant(60)
    await world.store.revoke(lease)
    with pytest.raises(StoreError) as refused:
        await world.store.commit(Transaction((), (Put(f"{prefix}free", b""), Put(prefix, b"", lease))))
    assert refused.value.reason == "LeaseNotFound"
    assert (await world.store.read(Range(prefix, prefix=True))).ranges == ((),)


async def collect(batches: AsyncIterator[WatchBatch], count: int) -> list[Event]:
    """The first ``count`` events, and those of the same batch."""
    found: list[Event] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += (await anext(batches)).events
    return found
