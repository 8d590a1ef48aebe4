"""What each OPA enforced is recorded from its receipts, never more than was proven, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from fakes.receipts import InMemoryReceipts
from fakes.store import InMemoryStore
from fixtures.etcd import eventually
from prometheus_client import CollectorRegistry

from reconciler.adapters.etcd import EtcdStore
from reconciler.adapters.mongo import MongoDatabase, MongoReceipts
from reconciler.core.enforcement import Enforced, Interval, enforced_at
from reconciler.core.errors import StoreError, TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Delete, KeyValueStore, Put, Transaction
from reconciler.core.receipt_ports import ReceiptStore
from reconciler.core.records import Receipt
from reconciler.metrics import ReceiptMetrics
from reconciler.receipt_recorder import ReceiptRecorder
from reconciler.settings import LoopSettings

BEGIN = datetime(2026, 1, 1, 10, tzinfo=UTC)
AWAY = TransientError("away", reason="RecordUnavailable")
A = "east/a"


def at(minute: float) -> datetime:
    return BEGIN + timedelta(minutes=minute)


def minute(time: datetime | None) -> float | None:
    return None if time is None else (time - BEGIN).total_seconds() / 60


Line = tuple[str, float | None, float | None, str | None]


class World:
    """One etcd and one record; time stands at ``minute`` until a test moves it."""

    def __init__(
        self, etcd: KeyValueStore | None = None, store: ReceiptStore | None = None, prefix: str = "/regops/"
    ) -> None:
        self.memory, self.record = InMemoryStore(pulse=0.005), InMemoryReceipts()
        self.etcd, self.store = etcd or self.memory, store or self.record
        self.keys = Keyspace(own=prefix)
        self.minute = 0.0
        self.registry = CollectorRegistry()

    def recorder(self, *, limit: int = 100, check_every: float = 1e6) -> ReceiptRecorder:
        self.registry = CollectorRegistry()
        return ReceiptRecorder(
            self.etcd,
            self.keys,
            self.store,
            limit=limit,
            metrics=ReceiptMetrics(self.registry),
            settings=LoopSettings(backoff_min=0.001, backoff_max=0.002),
            mark_every=0.005,
            check_every=check_every,
            clock=lambda: at(self.minute),
        )

    @contextlib.asynccontextmanager
    async def leader(self, recorder: ReceiptRecorder | None = None) -> AsyncIterator[ReceiptRecorder]:
        """One follows, and has read what is there, until the block ends."""
        recorder = recorder or self.recorder()
        tasks = [asyncio.ensure_future(recorder.follow()), asyncio.ensure_future(recorder.run())]
        try:
            await eventually(lambda: recorder._known is not None)
            yield recorder
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def tell(self, commit: str | None, since: float, agent: str = A, **more: str) -> None:
        datacentre, name = agent.split("/")
        text = at(since).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        receipt = Receipt(name, datacentre, "all", commit, text, digest=commit and f'"{commit}"', **more)  # type: ignore[arg-type]
        await self._put(f"{self.keys.receipts}{agent}", receipt.encode())

    async def live(self, agent: str = A) -> None:
        await self._put(f"{self.keys.alives}{agent}", b"{}")

    async def die(self, agent: str = A) -> None:
        await self.etcd.commit(Transaction((), (Delete(f"{self.keys.alives}{agent}"),)))

    async def forget(self, agent: str = A) -> None:
        await self.etcd.commit(Transaction((), (Delete(f"{self.keys.receipts}{agent}"),)))

    async def _put(self, key: str, value: bytes) -> None:
        await self.etcd.commit(Transaction((), (Put(key, value),)))

    def lines(self, agent: str = A) -> list[Line]:
        """(commit, from, to, why it ended) of each interval, oldest first; times in minutes."""
        return [_line(each) for each in self.record.intervals(agent)]

    async def recorded(self, *lines: Line, agent: str = A) -> None:
        try:
            await eventually(lambda: self.lines(agent) == list(lines), 5)
        except AssertionError:
            assert self.lines(agent) == list(lines)

    async def marked(self, when: float, datacentre: str = "east") -> None:
        await eventually(lambda: self.record.marked.get(datacentre) == at(when), 5)

    async def seen_at(self, when: float) -> list[Enforced]:
        return enforced_at(at(when), await self.store.at(at(when)), await self.store.marks())

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(name) or 0.0


def _line(interval: Interval) -> Line:
    return (interval.commit, minute(interval.since), minute(interval.until), interval.ended)


async def test_an_interval_lasts_from_one_proof_to_the_next() -> None:
    world = World()
    async with world.leader():
        await world.live()
        await world.tell("c1", 1)
        await world.recorded(("c1", 1, None, None))
        await world.tell(None, 3)
        await world.tell("c2", 4)
        await world.tell("c3", 6)  # the content is the same: no proof is withdrawn
        await world.recorded(("c1", 1, 3, "withdrawn"), ("c2", 4, 6, "moved"), ("c3", 6, None, None))
    assert world.record.intervals(A)[0].digest == '"c1"'


async def test_an_agent_that_is_gone_ends_its_interval_and_goes_on_with_it_when_it_had_only_lost_etcd() -> None:
    world = World()
    async with world.leader():
        await world.live()
        await world.tell("c1", 1)
        await world.recorded(("c1", 1, None, None))
        world.minute = 5
        await world.die()
        await world.recorded(("c1", 1, 5, "silent"))
        world.minute = 7
        await world.live()
        await world.tell("c1", 1)
        await world.recorded(("c1", 1, None, None))


async def test_the_word_of_a_former_process_does_not_bridge_the_time_when_it_was_dead() -> None:
    """An agent starts again: its sign of life is there before its first receipt, and the receipt of the process that
    was killed still lies in etcd. Between both nothing enforced was proven."""
    world = World()
    async with world.leader():
        await world.live()
        await world.tell("c1", 1)
        await world.recorded(("c1", 1, None, None))
        world.minute = 5
        await world.die()
        await world.recorded(("c1", 1, 5, "silent"))
        world.minute = 9
        await world.live()
        await world.tell(None, 9)
        await world.tell("c1", 9.5)
        await world.recorded(("c1", 1, 5, "silent"), ("c1", 9.5, None, None))


async def test_a_forgotten_agent_is_listed_until_then_and_never_after() -> None:
    world = World()
    async with world.leader():
        await world.live()
        await world.tell("c1", 1)
        await world.recorded(("c1", 1, None, None))
        world.minute = 4
        await world.forget()
        await world.recorded(("c1", 1, 4, "forgotten"))
    assert [each.known for each in await world.seen_at(3.9)] == [True]
    assert await world.seen_at(4) == []


async def test_a_new_leader_goes_on_where_the_one_before_was() -> None:
    world = World()
    await world.live()
    await world.tell("c1", 1)
    async with world.leader():
        await world.recorded(("c1", 1, None, None))
        await world.marked(0)
    world.minute = 20
    async with world.leader():
        await world.marked(20)
        await world.recorded(("c1", 1, None, None))
        await world.tell(None, 21)
        await world.recorded(("c1", 1, 21, "withdrawn"))


async def test_what_ended_while_nobody_led_is_known_until_the_last_mark_only() -> None:
    world = World()
    for name in ("a", "b", "c"):
        await world.live(f"east/{name}")
        await world.tell("c1", 1, f"east/{name}")
    world.minute = 2
    async with world.leader():
        await world.marked(2)
        world.minute = 6
        await world.marked(6)
    await world.tell("c2", 9)
    await world.die("east/b")
    await world.die("east/c")
    await world.forget("east/c")
    world.minute = 30
    async with world.leader():
        await world.recorded(("c1", 1, 6, "unobserved"), ("c2", 9, None, None))
        await world.recorded(("c1", 1, 6, "silent"), agent="east/b")
        await world.recorded(("c1", 1, 6, "forgotten"), agent="east/c")
    assert [(each.interval.agent, each.known, each.reason) for each in await world.seen_at(7)] == [
        ("east/a", False, "unobserved"),
        ("east/b", False, "silent"),
    ]


async def test_an_interval_without_an_end_is_believed_a_minute_beyond_the_last_mark() -> None:
    world = World()
    await world.live()
    await world.tell("c1", 1)
    world.minute = 5
    async with world.leader():
        await world.marked(5)
    assert [(each.known, each.reason) for each in await world.seen_at(6)] == [(True, None)]
    assert [(each.known, each.reason) for each in await world.seen_at(6.1)] == [(False, "unobserved")]
    assert await world.seen_at(6 + 7 * 24 * 60) == []


async def test_a_change_that_a_gap_of_etcd_hid_ends_at_the_last_contact() -> None:
    world = World()
    await world.live()
    await world.tell("c1", 1)
    world.minute = 5
    async with world.leader():
        await world.marked(5)
        world.memory.fail("read", *[StoreError("away", reason="StoreUnavailable")] * 2)
        saved = world.memory.save()
        saved.change([Put(f"{world.keys.receipts}{A}", _encoded("c2", 7))])
        world.memory.restore(saved)
        world.minute = 8
        await world.recorded(("c1", 1, 5, "unobserved"), ("c2", 7, None, None))


async def test_hours_without_mongodb_are_caught_up_and_nothing_waits_for_them() -> None:
    world = World()
    world.record.away = AWAY
    async with world.leader():
        await world.live()
        for number in range(10):
            world.minute = number
            await world.tell(f"c{number}", number)
        await eventually(lambda: world.metric("regops_receipts_pending") == 10)
        await eventually(lambda: (world.registry.get_sample_value(*_FAILURES) or 0) > 1)
        world.record.away = None
        ended: list[Line] = [(f"c{number}", number, number + 1, "moved") for number in range(9)]
        await world.recorded(*ended, ("c9", 9, None, None))
        await eventually(lambda: world.metric("regops_receipts_pending") == 0)
        assert world.metric("regops_receipts_recorded_total") == 10


async def test_what_a_full_queue_dropped_is_counted_and_what_lasts_is_recorded_all_the_same() -> None:
    world = World()
    await world.live("east/first")
    await world.tell("c0", 0, "east/first")
    async with world.leader(world.recorder(limit=3)):
        await world.marked(0)  # what the store has was compared, and would not be again for long
        world.record.away = AWAY
        await world.live("east/long")
        await world.tell("c0", 0, "east/long")
        await world.live()
        for number in range(10):
            world.minute = number
            await world.tell(f"c{number}", number)
        await eventually(lambda: world.metric("regops_receipts_dropped_total") == 8)
        world.record.away = None
        await world.recorded(("c7", 7, 8, "moved"), ("c8", 8, 9, "moved"), ("c9", 9, None, None))
        await world.recorded(("c0", 0, None, None), agent="east/long")


async def test_what_was_followed_is_written_after_the_lead_is_lost_and_claims_no_more() -> None:
    """MongoDB is away while the lead is lost, and the next leader never sees this agent: its interval gets an end."""
    world = World()
    world.record.away = AWAY
    recorder = world.recorder()
    await world.live()
    await world.tell("c1", 1)
    world.minute = 4
    writing = asyncio.ensure_future(recorder.run())
    following = asyncio.ensure_future(recorder.follow())
    await eventually(lambda: recorder._known == at(4))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await world.die()
    world.record.away = None
    await world.recorded(("c1", 1, 4, "unobserved"))
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)


async def test_a_record_that_was_emptied_has_what_lasts_again_and_loses_what_nobody_enforces() -> None:
    world = World()
    await world.live()
    await world.tell("c2", 3)
    world.minute = 4
    async with world.leader(world.recorder(check_every=60)):
        await world.marked(4)
        world.record.stored.clear()
        stray = Interval(A, "all", "c1", at(1), at(2))
        await world.record.write([stray])
        world.minute = 6
        await world.recorded(("c1", 1, 3, "unobserved"), ("c2", 3, None, None))


async def test_two_recorders_of_one_etcd_write_what_one_would() -> None:
    world = World()
    async with world.leader(), world.leader():
        await world.live()
        for number in range(5):
            world.minute = number
            await world.tell(f"c{number}", number)
        world.minute = 7
        await world.die()
        ended: list[Line] = [(f"c{number}", number, number + 1, "moved") for number in range(4)]
        await world.recorded(*ended, ("c4", 4, 7, "silent"))


async def test_two_datacentres_with_an_etcd_each_do_not_end_what_the_other_has() -> None:
    world, other = World(), World()
    other.store = other.record = world.record
    await world.live()
    await world.tell("c1", 1)
    await other.live("west/b")
    await other.tell("c1", 2, "west/b")
    async with world.leader(world.recorder(check_every=0)), other.leader(other.recorder(check_every=0)):
        await world.marked(0)
        await world.marked(0, "west")
        world.minute = other.minute = 3
        await world.marked(3)
        await world.marked(3, "west")
        assert world.lines() == [("c1", 1, None, None)]
        assert world.lines("west/b") == [("c1", 2, None, None)]


async def test_two_etcds_whose_datacentres_have_one_name_do_not_fight_over_the_record() -> None:
    """A mistake of settings: each leader knows nothing of the other's agents, and looks again and again."""
    world = World()
    await world.live()
    await world.tell("c1", 1)
    async with world.leader(world.recorder(check_every=0)):
        await world.marked(0)
        theirs = Interval("east/b", "all", "c1", at(1), at(0))
        await world.record.write([theirs])
        looks = world.record.calls["open"]
        await eventually(lambda: world.record.calls["open"] > looks + 3)
        assert world.lines("east/b") == [("c1", 1, None, None)]


async def test_a_receipt_that_cannot_be_read_is_none_and_one_without_a_time_counts_from_when_it_was_seen() -> None:
    world = World()
    async with world.leader():
        await world.live()
        await world.live("east/b")
        world.memory.put(f"{world.keys.receipts}{A}", b"[]")
        world.minute = 2
        broken = Receipt("b", "east", "all", "c1", "yesterday")
        world.memory.put(f"{world.keys.receipts}east/b", broken.encode())
        world.minute = 3
        world.memory.put(f"{world.keys.receipts}east/b", broken.encode())
        await eventually(lambda: len(world.lines("east/b")) == 1)
        assert world.lines() == []


async def test_with_a_real_etcd_and_mongodb_it_is_the_same(store: EtcdStore, prefix: str, mongo: MongoDatabase) -> None:
    world = World(store, MongoReceipts(mongo), prefix)

    async def lines() -> set[Line]:
        found = [await world.store.at(at(when)) for when in (1.5, 4.5)]
        return {_line(each) for part in found for each in part}

    async def recorded(*expected: Line) -> None:
        async def same() -> bool:
            return await lines() == set(expected)

        await eventually(same)

    async with world.leader():
        await world.live()
        await world.tell("c1", 1)
        await recorded(("c1", 1, None, None))
        world.minute = 4
        await world.tell("c2", 4, error="one of many")
        await recorded(("c1", 1, 4, "moved"), ("c2", 4, None, None))
    world.minute = 6
    async with world.leader():
        await world.die()
        await recorded(("c1", 1, 4, "moved"), ("c2", 4, 6, "silent"))
    (there,) = await world.seen_at(5)
    assert (there.known, there.interval.error) == (True, "one of many")


_FAILURES = ("regops_receipts_failures_total", {"reason": "RecordUnavailable"})


def _encoded(commit: str, since: float) -> bytes:
    text = at(since).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Receipt("a", "east", "all", commit, text).encode()
