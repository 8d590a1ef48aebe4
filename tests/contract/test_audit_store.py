"""What every `AuditStore` promises, asked of the one in memory and of a MongoDB-compatible server."""

from __future__ import annotations

from typing import Any

import pytest
from fakes.record import InMemoryAudit

from reconciler.adapters.mongo import MongoAudit, MongoDatabase
from reconciler.core.record_ports import AuditQuery, AuditStore


@pytest.fixture(params=["memory", "mongo"])
def store(request: pytest.FixtureRequest) -> AuditStore:
    return InMemoryAudit() if request.param == "memory" else MongoAudit(request.getfixturevalue("mongo"))


def event(second: int, **changed: Any) -> dict[str, Any]:
    usual = {"ts": f"2026-01-01T10:00:{second:02}.500Z", "actor": "ann", "action": "policy.put", "result": "updated"}
    return {**usual, "resource": "projects/alpha", "request_id": f"r{second}", "etag_before": None, **changed}


async def found(store: AuditStore, **query: str) -> list[str]:
    events, rest = await store.events(AuditQuery(**query))
    assert rest is None
    return [str(each["request_id"]) for each in events]


async def test_events_come_newest_first_and_as_they_were_written(store: AuditStore) -> None:
    await store.append([event(1), event(3), event(2)])
    events, rest = await store.events(AuditQuery())
    assert list(events) == [event(3), event(2), event(1)]
    assert rest is None


async def test_an_event_that_is_written_again_is_there_once(store: AuditStore) -> None:
    await store.append([event(1), event(2)])
    await store.append([event(2), event(3)])
    await store.append([])
    assert await found(store) == ["r3", "r2", "r1"]


async def test_events_are_found_by_what_they_say(store: AuditStore) -> None:
    await store.append([event(1), event(2, actor="bob"), event(3, resource="platform", result="forbidden")])
    assert await found(store, actor="bob") == ["r2"]
    assert await found(store, resource="projects/alpha", result="updated") == ["r2", "r1"]
    assert await found(store, action="nothing") == []
    assert await found(store, request_id="r1") == ["r1"]


async def test_commits_are_known_by_those_who_wrote_them_not_by_what_became_of_them(store: AuditStore) -> None:
    written = [event(1, commit="a" * 40), event(2, commit="b" * 40, action="apply"), event(3, commit="c" * 40)]
    await store.append(written)
    assert await store.known(["a" * 40, "b" * 40, "d" * 40]) == {"a" * 40}
    assert await store.known([]) == set()


async def test_what_was_verified_is_forgotten_with_the_events(store: AuditStore) -> None:
    assert await store.verified() is None
    await store.verify("a" * 40)
    assert await store.verified() is None, "without any event nothing can have been verified"
    await store.append([event(1)])
    assert await store.verified() == "a" * 40
    await store.verify(None)
    assert await store.verified() is None


async def test_a_span_of_time_has_its_beginning_and_not_its_end(store: AuditStore) -> None:
    await store.append([event(second) for second in range(5)])
    assert await found(store, since="2026-01-01T10:00:01.500Z", until="2026-01-01T11:00:03.500+01:00") == ["r2", "r1"]


async def test_pages_miss_and_repeat_nothing_also_within_one_instant(store: AuditStore) -> None:
    await store.append([event(7, request_id=f"r{number}") for number in range(10)])
    seen: list[object] = []
    before: str | None = None
    for _ in range(4):
        events, before = await store.events(AuditQuery(), before=before, limit=3)
        seen += [each["request_id"] for each in events]
    assert before is None
    assert sorted(map(str, seen)) == [f"r{number}" for number in range(10)]


@pytest.mark.parametrize("before", ["", "nowhere", "{}", "$where"])
async def test_a_place_that_no_answer_gave_is_refused(store: AuditStore, before: str) -> None:
    with pytest.raises(ValueError, match="no place"):
        await store.events(AuditQuery(), before=before)


async def test_events_end_after_their_days_also_when_the_setting_changes(mongo: MongoDatabase) -> None:
    for days in (90, 30):
        await MongoAudit(mongo, days=days).append([event(1)])
        indexes = await mongo.collection("audit_events").index_information()
        assert [each["expireAfterSeconds"] for each in indexes.values() if "expireAfterSeconds" in each] == [
            days * 86400
        ]
