"""What a replica that does not lead has seen reaches the leader, also when etcd is away just then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from fixtures.etcd import EtcdServer, eventually

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.ports import Range
from reconciler.triggers import Kind, Mailbox
from regops.telling import Told

KEY = "/regops/pushed"
TRACE = f"00-{'1' * 32}-{'2' * 16}-01"


class Replica:
    """One, that leads or not, at an etcd of the test's own."""

    def __init__(self, endpoint: str) -> None:
        self.store = EtcdStore([endpoint], commit_timeout=0.5)
        self.mailbox = Mailbox()
        self.leads = False
        self.told = Told(self.store, KEY, self.mailbox, leads=lambda: self.leads)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Replica]:
        task = asyncio.ensure_future(self.told.run())
        try:
            yield self
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.store.aclose()

    async def word(self) -> bytes:
        kvs = (await self.store.read(Range(KEY))).ranges[0]
        return kvs[0].value if kvs else b""

    async def says(self, word: bytes) -> bool:
        return await self.word() == word


@pytest.fixture
def replica(etcd: EtcdServer) -> Replica:
    return Replica(etcd.endpoint)


async def test_a_hook_that_came_while_etcd_was_away_is_passed_on_when_it_is_back(
    replica: Replica, etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It was answered 202, one write failed, and nobody heard of it: its commit went live with the next poll, which is
    ten minutes off while hooks come."""
    async with replica.running():
        await asyncio.to_thread(etcd.stop)
        replica.told.hooked(TRACE)
        await eventually(lambda: "not told" in caplog.text)
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: replica.says(b"hook " + TRACE.encode()))


async def test_a_push_right_after_a_hook_does_not_take_its_trace(replica: Replica) -> None:
    for number, taken in enumerate((["hook", "push"], ["push", "hook"], ["hook", "untraced", "push"])):
        trace = f"00-{f'{number + 1}' * 32}-{'2' * 16}-01"
        for what in taken:
            if what == "push":
                replica.told.pushed("1" * 40)
            else:
                replica.told.hooked(trace if what == "hook" else None)
        task = asyncio.ensure_future(replica.told.run())
        await eventually(lambda wanted=trace: replica.says(b"hook " + wanted.encode()))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await replica.store.aclose()


async def test_each_word_is_passed_on_once(replica: Replica) -> None:
    async with replica.running():
        for word in (b"1" * 40, b"2" * 40):
            replica.told.pushed(word.decode())
            await eventually(lambda wanted=word: replica.says(wanted))
        before = (await replica.store.read()).revision
        replica.told.hooked(None)
        await eventually(lambda: replica.says(b"hook"))
        assert (await replica.store.read()).revision == before + 1


async def test_whoever_leads_needs_no_key(replica: Replica) -> None:
    replica.leads = True
    async with replica.running():
        replica.told.hooked(TRACE)
        taken = await replica.mailbox.take(1)
        assert (taken.kind, taken.trace) == (Kind.HOOK, TRACE)
        replica.told.pushed("1" * 40)
        assert (await replica.mailbox.take(1)).kind is Kind.API
        assert await replica.word() == b""
