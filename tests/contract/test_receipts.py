"""What every `ReceiptStore` promises, asked of the one in memory and of a MongoDB-compatible server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fakes.receipts import InMemoryReceipts

from reconciler.adapters.mongo import MongoDatabase, MongoReceipts
from reconciler.core.enforcement import End, Interval
from reconciler.core.receipt_ports import ReceiptStore

BEGIN = datetime(2026, 1, 1, 10, tzinfo=UTC)


@pytest.fixture(params=["memory", "mongo"])
def store(request: pytest.FixtureRequest) -> ReceiptStore:
    return InMemoryReceipts() if request.param == "memory" else MongoReceipts(request.getfixturevalue("mongo"))


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def interval(agent: str, commit: str, since: float, until: float | None = None) -> Interval:
    begun = Interval(agent, "all", commit, at(since), at(since), digest=f'"{commit}"', opa_version="1.4.2")
    return begun if until is None else begun.ending(End.MOVED, at(until), at(until))


async def known(store: ReceiptStore, minutes: float) -> dict[str, str]:
    return {each.agent: each.commit for each in await store.at(at(minutes))}


async def test_an_interval_is_read_as_it_was_written(store: ReceiptStore) -> None:
    written = [
        interval("east/a", "c1", 0, 5),
        replace(interval("west/b", "none", 1), error="refused", scope="projects:x"),
    ]
    await store.write(written)
    await store.write([])
    assert sorted(await store.at(at(2)), key=lambda each: each.agent) == written
    assert await store.begins() == at(0)


async def test_the_last_interval_that_began_counts_whether_it_has_ended_or_not(store: ReceiptStore) -> None:
    await store.write([interval("east/a", "c1", 0, 5), interval("east/a", "c2", 5, 7), interval("east/a", "c3", 9)])
    assert [await known(store, minute) for minute in (-1, 0, 4.9, 5, 8, 9, 10_000)] == [
        {},
        *[{"east/a": commit} for commit in ("c1", "c1", "c2", "c2", "c3", "c3")],
    ]


async def test_what_began_since_a_time_is_told_in_order_and_bounded(store: ReceiptStore) -> None:
    later, first, before = interval("east/a", "c2", 7), interval("east/b", "c2", 5, 6), interval("east/a", "c1", 4, 7)
    await store.write([later, first, before])
    assert await store.since(at(5), limit=10) == [first, later]
    assert await store.since(at(4), limit=2) == [before, first]
    assert await store.since(at(8), limit=10) == []


async def test_of_two_intervals_that_began_at_once_the_later_word_counts(store: ReceiptStore) -> None:
    empty = interval("east/a", "c1", 3, 3)
    await store.write([empty, replace(interval("east/a", "c2", 3), seen=at(4))])
    assert await known(store, 5) == {"east/a": "c2"}


async def test_who_proved_nothing_for_a_week_is_left_out_and_who_still_does_is_not(store: ReceiptStore) -> None:
    week = timedelta(days=7).total_seconds() / 60
    await store.write([interval("east/gone", "c1", 0, 10), interval("east/there", "c1", 0)])
    assert await known(store, week + 9) == {"east/gone": "c1", "east/there": "c1"}
    assert await known(store, week + 10) == {"east/there": "c1"}


async def test_a_later_word_replaces_an_earlier_one_in_whatever_order_they_come(store: ReceiptStore) -> None:
    begun, ended = interval("east/a", "c1", 0), interval("east/a", "c1", 0, 5)
    back = replace(begun, seen=at(6))
    for order in ([begun, ended, back], [back, ended, begun], [ended, back, begun, ended]):
        for word in order:
            await store.write([word])
        assert list(await store.at(at(5.5))) == [back]


async def test_what_is_open_is_told_for_the_datacentres_that_are_asked_for(store: ReceiptStore) -> None:
    there = [interval("east/a", "c2", 5), interval("west/b", "c1", 0), interval("east/c", "c1", 1)]
    await store.write([*there, interval("east/a", "c1", 0, 5)])
    assert {each.agent for each in await store.open({"east"})} == {"east/a", "east/c"}
    assert {each.agent for each in await store.open({"west", "north"})} == {"west/b"}
    assert list(await store.open(())) == []


async def test_marks_go_forward_only_each_for_its_datacentre(store: ReceiptStore) -> None:
    assert await store.marks() == {}
    assert await store.begins() is None
    await store.mark({"east", "west"}, at(5))
    await store.mark({"east"}, at(4))
    await store.mark({"west"}, at(6))
    await store.mark((), at(9))
    assert await store.marks() == {"east": at(5), "west": at(6)}


async def test_many_agents_are_found_at_once(store: ReceiptStore) -> None:
    """More that have ended than are asked for side by side."""
    await store.write([interval(f"east/{number}", "c1", 0, 5) for number in range(70)])
    await store.write([interval(f"east/{number}", "c2", 6) for number in range(30)])
    found = await known(store, 7)
    assert (len(found), sum(commit == "c2" for commit in found.values())) == (70, 30)


async def test_what_has_ended_goes_after_its_days_also_when_the_setting_changes(mongo: MongoDatabase) -> None:
    for days in (90, 30):
        await MongoReceipts(mongo, days=days).write([interval("east/a", "c1", 0)])
        indexes = await mongo.collection("receipts").index_information()
        found = [(each["key"], each["expireAfterSeconds"]) for each in indexes.values() if "expireAfterSeconds" in each]
        assert found == [([("to", 1)], days * 86400)]


async def test_what_lasts_has_no_date_that_could_expire(mongo: MongoDatabase) -> None:
    await MongoReceipts(mongo).write([interval("east/a", "c1", 0)])
    document = await mongo.collection("receipts").find_one({})
    assert document is not None
    assert document["to"] is None
    assert {"agent": "a", "commit": "c1", "digest": '"c1"', "from": at(0)}.items() <= document.items()
