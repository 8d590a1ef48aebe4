"""An etcd that is stopped, or accepts and never answers: every call ends by its deadline."""

import asyncio

import pytest
from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.errors import StoreError, UnknownOutcomeError
from reconciler.core.ports import Event, Put, Range, Transaction


def put(value: bytes) -> Transaction:
    return Transaction((), (Put("/k", value),))


async def test_a_silent_etcd_is_noticed_and_the_watch_goes_on_when_it_wakes(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint], read_timeout=0.5, commit_timeout=0.5)
    first = (await store.commit(put(b"0"))).revision
    async with store.watch(Range("/k"), from_revision=first) as batches:
        assert [event.kv.value for event in (await anext(batches)).events] == [b"0"]
        etcd.pause()
        with pytest.raises(UnknownOutcomeError):
            await store.commit(put(b"1"))
        with pytest.raises(StoreError):
            await store.read(Range("/k"))
        etcd.resume()
        await asyncio.to_thread(etcd.wait_ready)
        last = (await store.commit(put(b"2"))).revision
        seen: list[Event] = []
        async with asyncio.timeout(15):
            while not seen or seen[-1].kv.mod_revision < last:
                seen += (await anext(batches)).events
        assert [event.kv.value for event in seen][-1] == b"2"
        assert {event.kv.value for event in seen} <= {b"1", b"2"}  # the unknown one may have happened
    await store.aclose()


async def test_a_write_that_never_left_is_no_unknown_outcome(etcd: EtcdServer) -> None:
    await asyncio.to_thread(etcd.stop)
    store = EtcdStore([etcd.endpoint])
    with pytest.raises(StoreError):
        await store.commit(put(b"1"))
    await store.aclose()
