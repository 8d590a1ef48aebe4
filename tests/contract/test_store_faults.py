"""What every `KeyValueStore` promises while etcd is away, silent or restored: in memory and on an etcd of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
from fakes.store import History, InMemoryStore
from fixtures.etcd import EtcdServer
from fixtures.proxy import Mode, Proxy, proxy_to

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.errors import CompactedError, DivergedError, StalledError, StoreError, UnknownOutcomeError
from reconciler.core.ports import Compare, Delete, KeyValueStore, Put, Range, Target, Transaction, WatchBatch

PATIENCE = 15.0


class Faults(Protocol):
    """A store, and what may happen to it. ``save`` keeps a state that ``restore`` brings back."""

    @property
    def store(self) -> KeyValueStore: ...

    async def away(self) -> None: ...

    async def back(self) -> None: ...

    async def save(self) -> None: ...

    async def restore(self) -> None: ...

    async def compact(self, revision: int) -> None: ...

    async def lose(self) -> None:
        """From now on answers are lost."""
        ...

    async def find(self) -> None:
        """Answers arrive again."""
        ...

    async def fill(self) -> None: ...

    async def make_room(self) -> None: ...


class Pretended:
    def __init__(self) -> None:
        self.store = self._fake = InMemoryStore()
        self._saved = History()

    async def away(self) -> None:
        self._fake.away = True

    async def back(self) -> None:
        self._fake.away = False

    async def save(self) -> None:
        self._saved = self._fake.save()

    async def restore(self) -> None:
        self._fake.restore(self._saved)

    async def compact(self, revision: int) -> None:
        self._fake.compact(revision)

    async def lose(self) -> None:
        self._fake.lose_answer()

    async def find(self) -> None:
        pass

    async def fill(self) -> None:
        self._fake.full = True

    async def make_room(self) -> None:
        self._fake.full = False


class Real:
    def __init__(self, server: EtcdServer, proxy: Proxy) -> None:
        self.store = EtcdStore([proxy.endpoint], read_timeout=1.0, commit_timeout=1.0)
        self._server = server
        self._proxy = proxy

    async def away(self) -> None:
        await asyncio.to_thread(self._server.stop)

    async def back(self) -> None:
        await asyncio.to_thread(self._server.start)

    async def save(self) -> None:
        await self.away()
        await asyncio.to_thread(self._server.save)
        await self.back()
        await self.store.read(Range("/"))

    async def restore(self) -> None:
        await self.away()
        await asyncio.to_thread(self._server.restore)
        await self.back()

    async def compact(self, revision: int) -> None:
        await asyncio.to_thread(self._server.post, "kv/compaction", {"revision": revision, "physical": True})

    async def lose(self) -> None:
        self._proxy.mode = Mode.LOSE_ANSWERS

    async def find(self) -> None:
        self._proxy.mode = Mode.PASS
        self._proxy.cut()

    async def fill(self) -> None:
        await self._alarm("ACTIVATE")

    async def make_room(self) -> None:
        await self._alarm("DEACTIVATE")

    async def _alarm(self, action: str) -> None:
        status = await asyncio.to_thread(self._server.post, "maintenance/status", {})
        body = {"action": action, "memberID": status["header"]["member_id"], "alarm": "NOSPACE"}
        await asyncio.to_thread(self._server.post, "maintenance/alarm", body)


@pytest.fixture(params=["memory", "etcd"])
async def faults(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Faults]:
    if request.param == "memory":
        yield Pretended()
        return
    server = EtcdServer(tmp_path / "etcd")
    try:
        await asyncio.to_thread(server.start)
        async with proxy_to(server.port) as proxy:
            real = Real(server, proxy)
            yield real
            await real.store.aclose()
    finally:
        server.stop()


def put(value: bytes, key: str = "/k") -> Transaction:
    return Transaction((), (Put(key, value),))


async def test_an_etcd_that_is_away_says_so_and_nothing_is_written(faults: Faults) -> None:
    await faults.store.commit(put(b"0"))
    await faults.away()
    with pytest.raises(StoreError):
        await faults.store.read(Range("/k"))
    with pytest.raises(StoreError):
        await faults.store.commit(put(b"1"))
    with pytest.raises(StoreError):
        await faults.store.grant(5)
    with pytest.raises(StoreError):
        await faults.store.keep_alive(1)
    await faults.back()
    assert (await faults.store.read(Range("/k"))).ranges[0][0].value == b"0"


async def test_a_watch_goes_on_over_a_restart_of_etcd_without_gap_or_repeat(faults: Faults) -> None:
    first = (await faults.store.commit(put(b"0"))).revision
    values = [b"%d" % number for number in range(6)]
    async with faults.store.watch(Range("/k"), from_revision=first) as batches:
        seen = await collect(batches, 1)
        for half in (values[1:3], values[3:]):
            for value in half[:-1]:
                await faults.store.commit(put(value))
            await faults.away()
            await faults.back()
            await faults.store.commit(put(half[-1]))
        assert seen + await collect(batches, 5) == values


async def test_a_watch_is_silent_while_etcd_is_away(faults: Faults) -> None:
    start = (await faults.store.commit(put(b"0"))).revision
    async with faults.store.watch(Range("/k"), from_revision=start + 1) as batches:
        await asyncio.wait_for(anext(batches), PATIENCE)
        await faults.away()
        waiting = asyncio.ensure_future(anext(batches))
        done, _ = await asyncio.wait({waiting}, timeout=2.0)
        assert not done
        await faults.back()
        assert (await asyncio.wait_for(waiting, PATIENCE)).events == ()


async def test_what_was_compacted_while_a_watch_was_cut_off_is_said(faults: Faults) -> None:
    start = (await faults.store.commit(put(b"0"))).revision
    async with faults.store.watch(Range("/k"), from_revision=start + 1) as batches:
        await asyncio.wait_for(anext(batches), PATIENCE)
        await faults.away()
        await faults.back()
        for number in range(5):
            last = (await faults.store.commit(put(b"%d" % number))).revision
        await faults.compact(last)
        # Whether the watch was back before the compaction is a matter of luck: then it has missed nothing.
        try:
            values = await collect(batches, 5)
        except CompactedError as error:
            assert error.compact_revision == last  # noqa: PT017 either is right
        else:
            assert values == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_lost_answer_is_an_unknown_outcome_and_is_never_sent_again(faults: Faults) -> None:
    await faults.store.commit(put(b"0"))
    before = (await faults.store.read(Range("/k"))).ranges[0][0]
    await faults.lose()
    change = Transaction((Compare("/k", Target.MOD, before.mod_revision),), (Put("/k", b"1"),))
    with pytest.raises(UnknownOutcomeError):
        await faults.store.commit(change)
    await faults.find()
    (after,) = (await faults.store.read(Range("/k"))).ranges[0]
    assert (after.value, after.mod_revision) == (b"1", before.mod_revision + 1)  # it did happen, once


async def test_an_etcd_that_went_back_is_told_to_the_watch_and_once_to_who_reads(faults: Faults) -> None:
    first = (await faults.store.commit(put(b"0"))).revision
    await faults.save()
    for number in range(1, 5):
        last = (await faults.store.commit(put(b"%d" % number))).revision
    async with faults.store.watch(Range("/k"), from_revision=last) as batches:
        assert await collect(batches, 1) == [b"4"]
        await faults.restore()
        with pytest.raises(DivergedError):
            await faults.store.read(Range("/k"))
        found = await faults.store.read(Range("/k"))
        assert [(kv.value, kv.mod_revision) for kv in found.ranges[0]] == [(b"0", first)]
        with pytest.raises(DivergedError):
            await collect(batches, 1)
    assert (await faults.store.commit(Transaction((Compare("/k", Target.MOD, first),), ()))).succeeded


async def test_a_full_etcd_refuses_puts_until_there_is_room(faults: Faults) -> None:
    """Reads, renewals and deletions work: a full etcd costs no leadership, and can be tidied."""
    lease = await faults.store.grant(60)
    await faults.store.commit(Transaction((), (Put("/k", b"0"), Put("/leased", b"", lease))))
    await faults.fill()
    with pytest.raises(StalledError) as refused:
        await faults.store.commit(put(b"1"))
    assert refused.value.reason == "NoSpace"
    with pytest.raises(StalledError):
        await faults.store.grant(5)
    assert (await faults.store.read(Range("/k"))).ranges[0][0].value == b"0"
    assert await faults.store.keep_alive(lease) > 1
    assert (await faults.store.commit(Transaction((), (Delete("/k"),)))).succeeded
    await faults.make_room()
    assert (await faults.store.commit(put(b"1"))).succeeded


async def collect(batches: AsyncIterator[WatchBatch], count: int) -> list[bytes]:
    """The values of the first ``count`` events."""
    found: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        while len(found) < count:
            found += [event.kv.value for event in (await anext(batches)).events]
    return found
