"""Who leads, on a real etcd."""

import asyncio

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.core.ports import Delete, Put, Transaction


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
