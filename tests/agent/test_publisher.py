from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from time import monotonic

import pytest
from agent.leader import AT, keyspace_of
from fixtures.etcd import EtcdServer, eventually
from prometheus_client import CollectorRegistry

from reconciler.adapters.etcd import EtcdStore
from reconciler.agent import publisher
from reconciler.agent.latest import Pulse
from reconciler.agent.publisher import Publisher
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Delete, KeyValue, KeyValueStore, Range, Transaction
from reconciler.core.records import Receipt
from reconciler.metrics import AgentMetrics


class Desk:
    """A publisher at work, the receipt that it is asked for, and what etcd has."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace, repeat_every: float = 3600.0) -> None:
        self.store = store
        self.keys = keyspace
        self.receipt = Receipt("one", "east", "all", "none", AT)
        self.changed = Pulse()
        metrics = AgentMetrics(CollectorRegistry())
        publisher = Publisher(
            store, keyspace, lambda: self.receipt, self.changed, metrics, renew_every=0.05, repeat_every=repeat_every
        )
        self.tasks = [asyncio.create_task(publisher.run_receipts()), asyncio.create_task(publisher.run_alive())]

    def say(self, revision: str | None) -> None:
        """That this commit is enforced; it changed a policy, maybe somewhere else."""
        self.receipt = replace(self.receipt, enforced_revision=revision, live_digest=revision)
        self.changed.beat()

    async def get(self, key: str) -> KeyValue | None:
        (found,) = (await self.store.read(Range(key))).ranges
        return found[0] if found else None

    async def written(self) -> KeyValue | None:
        return await self.get(self.keys.receipt("east", "one"))

    async def alive(self) -> KeyValue | None:
        return await self.get(self.keys.alive("east", "one"))

    async def shows(self, revision: str | None) -> bool:
        found = await self.written()
        return found is not None and Receipt.decode(found.value).enforced_revision == revision

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_each_change_is_written_and_a_burst_becomes_few_writes(store: EtcdStore, prefix: str) -> None:
    desk = Desk(store, keyspace_of(prefix))
    await eventually(lambda: desk.shows("none"))
    before, began = await store.read(), monotonic()
    for number in range(200):
        desk.say(f"{number:040}")
        await asyncio.sleep(0)
    await eventually(lambda: desk.shows(f"{199:040}"))
    # Four at once, and one more for each gap that the 200 took: on a busy machine they take several.
    written = (await store.read()).revision - before.revision
    assert written <= 4 + (monotonic() - began) / 0.05
    await desk.stop()


async def test_a_receipt_that_only_moves_on_waits_for_the_next_and_a_new_proof_waits_for_nothing(
    store: EtcdStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 1,000 sidecars wrote at each commit of any project, at the same moment: etcd's history grew by all of
    them, and those that somebody waited for came in between."""
    monkeypatch.setattr(publisher, "_MOVES_ON_WITHIN", 3600.0)
    monkeypatch.setattr("random.uniform", lambda _least, most: most)
    desk = Desk(store, keyspace_of(prefix))
    desk.receipt = replace(desk.receipt, digest='"a"')
    await eventually(lambda: desk.shows("none"))
    desk.say(f"{1:040}")
    desk.receipt = replace(desk.receipt, digest='"b"', enforced_revision=f"{2:040}")
    desk.changed.beat()
    await eventually(lambda: desk.shows(f"{2:040}"))
    before = (await store.read()).revision
    desk.say(f"{3:040}")
    desk.say(f"{4:040}")
    desk.receipt = replace(desk.receipt, enforced_revision=None)
    desk.changed.beat()
    await eventually(lambda: desk.shows(None))
    assert (await store.read()).revision == before + 1
    await desk.stop()


async def test_a_receipt_that_only_moves_on_is_written_in_the_end(store: EtcdStore, prefix: str) -> None:
    desk = Desk(store, keyspace_of(prefix))
    desk.receipt = replace(desk.receipt, digest='"a"')
    await eventually(lambda: desk.shows("none"))
    desk.say(f"{1:040}")
    await eventually(lambda: desk.shows(f"{1:040}"))
    await desk.stop()


async def test_a_lost_lease_is_granted_anew_and_the_receipt_written_again(store: EtcdStore, prefix: str) -> None:
    desk = Desk(store, keyspace_of(prefix))
    await eventually(desk.alive)
    await eventually(desk.written)
    alive = await desk.alive()
    assert alive is not None
    await store.commit(Transaction((), (Delete(desk.keys.receipt("east", "one")),)))
    await store.revoke(alive.lease)
    await eventually(desk.alive)
    await eventually(desk.written)
    await desk.stop()
    assert await desk.alive() is None
    assert await desk.written() is not None


async def test_a_receipt_says_when_the_agent_was_seen_last_and_is_not_written_for_that_alone(
    store: EtcdStore, prefix: str
) -> None:
    desk = Desk(store, keyspace_of(prefix))
    await eventually(lambda: desk.shows("none"))
    await eventually(desk.alive)  # which repeats the receipt once
    desk.say("1" * 40)
    await eventually(lambda: desk.shows("1" * 40))
    before = (await store.read()).revision
    for _ in range(50):
        desk.changed.beat()
        await asyncio.sleep(0)
    desk.say("2" * 40)
    await eventually(lambda: desk.shows("2" * 40))
    assert (await store.read()).revision == before + 1
    await desk.stop()


async def test_an_unchanged_receipt_is_repeated_with_a_later_time(store: EtcdStore, prefix: str) -> None:
    desk = Desk(store, keyspace_of(prefix), repeat_every=0.05)
    times: set[datetime] = set()

    async def later() -> bool:
        found = await desk.written()
        seen_at = Receipt.decode(found.value).seen_at if found else None
        times.update([datetime.fromisoformat(seen_at)] if seen_at else [])
        return len(times) > 2

    await eventually(later)
    assert all(at.tzinfo for at in times)
    await desk.stop()


async def test_what_happened_while_etcd_was_away_is_written_when_it_is_back(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    desk = Desk(store, Keyspace())
    await eventually(lambda: desk.shows("none"))
    etcd.stop()
    desk.say(None)
    await asyncio.sleep(0.2)
    desk.say("1" * 40)
    etcd.start()
    await eventually(lambda: desk.shows("1" * 40))
    await eventually(desk.alive)
    await desk.stop()
    await store.aclose()
