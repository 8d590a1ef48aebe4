"""What every `VersionStore` promises, asked of the one in memory and of a MongoDB-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from fakes.record import InMemoryVersions

from reconciler.adapters.mongo import MongoDatabase, MongoVersions
from reconciler.adapters.mongo.documents import to_document
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.ledger import Entry, Page
from reconciler.core.model import PLATFORM, CommitInfo, Content, PolicyName, project_policy
from reconciler.core.record_ports import Place, VersionStore
from reconciler.core.versions import COMMIT_GONE, Retention, State, StoredVersion, Version

ALPHA, BETA = project_policy("alpha"), project_policy("beta")
APPLIED, HELD, SUPERSEDED = State.APPLIED, State.HELD, State.SUPERSEDED
NOON = "2026-01-01T12:00:00.000Z"


@pytest.fixture(params=["memory", "mongo"])
def store(request: pytest.FixtureRequest) -> VersionStore:
    return InMemoryVersions() if request.param == "memory" else MongoVersions(request.getfixturevalue("mongo"))


def version(number: int, state: State = APPLIED, **changed: object) -> StoredVersion:
    content = Content(f"package projects.alpha # {number}\n".encode(), b'{"owners": ["ann"], "n": 1.5}')
    usual = Version(
        policy=ALPHA,
        version=number,
        position=number,
        info=CommitInfo(f"{number:040x}", "Ann <ann@example.org>", "2026-01-01T10:00:00Z", "Change it (#12)"),
        blobs=content.blob_ids(),
        state=state,
        applied_at=(NOON,) if state is APPLIED else (),
    )
    return StoredVersion(replace(usual, **changed), content)  # type: ignore[arg-type]


async def states(store: VersionStore) -> dict[int, State]:
    return {each.version: each.state for each in await store.versions(ALPHA)}


async def record(store: VersionStore, *versions: StoredVersion) -> str:
    generation = (await store.bookmark()).generation
    assert await store.add(generation, versions) == len(versions)
    return generation


async def test_a_new_record_begins_at_the_first_position(store: VersionStore) -> None:
    first = await store.bookmark()
    assert first.position == 1
    assert await store.bookmark() == first
    assert list(await store.pages(first.generation, 1)) == []
    assert list(await store.versions(ALPHA)) == []
    assert await store.version(ALPHA, 1) is None


async def test_two_that_begin_a_record_begin_the_same(store: VersionStore) -> None:
    one, two = await asyncio.gather(store.bookmark(), store.bookmark())
    assert one == two


async def test_the_bookmark_never_goes_back(store: VersionStore) -> None:
    generation = (await store.bookmark()).generation
    await store.advance(generation, 7)
    await store.advance(generation, 3)
    assert (await store.bookmark()).position == 7
    await store.advance("another", 9)
    assert (await store.bookmark()).position == 7


async def test_who_claims_a_place_second_gets_the_page_that_is_there(store: VersionStore) -> None:
    generation = (await store.bookmark()).generation
    mine = Page(1, (Entry("a" * 40, {ALPHA: 1, PLATFORM: 1}), Entry("b" * 40, {})))
    theirs = Page(1, (Entry("c" * 40, {ALPHA: 1}),))
    assert await store.claim(generation, mine) == mine
    assert await store.claim(generation, theirs) == mine
    last = Page(3, (Entry("d" * 40, {ALPHA: 2}),))
    assert await store.claim(generation, last) == last
    assert list(await store.pages(generation, 1)) == [mine, last]
    assert list(await store.pages(generation, 3)) == [last]
    assert list(await store.pages(generation, 4)) == []
    assert await store.commit_of(ALPHA, 2) == "d" * 40
    assert await store.commit_of(BETA, 1) is None


async def test_a_version_comes_back_as_it_was_written(store: VersionStore) -> None:
    written = [
        version(1),
        version(2, HELD, reason="ValidationFailed", message="a.rego:1: no"),
        replace(version(3, blobs=None, deleted=True), content=None),
        version(4, SUPERSEDED, inferred=True),
    ]
    await record(store, *written)
    for each in written:
        assert await store.version(ALPHA, each.version.version) == each
    assert list(await store.versions(ALPHA)) == [each.version for each in reversed(written)]
    assert [each.version for each in await store.versions(ALPHA, before=4, limit=2)] == [3, 2]
    assert (await store.versions(ALPHA))[0].pull_request == 12


@pytest.mark.parametrize(
    "data",
    [
        b'{"a.b": 1, "$where": {"$gt": ""}}',
        b'{"": {"": 1}, "nul": "\\u0000", "\\u0000": 1}',
        b'{"a": 1, "a": 2}',
        b'{"big": 123456789012345678901234567890, "small": -9223372036854775809}',
        b'{"f": 1e400, "g": 0.1000000000000000055511151231257827}',
        b'{"half": "\\ud800"}',
        b"[" * 500 + b"]" * 500,
        b"\xff\xfe not UTF-8",
        b"no JSON",
        b' { "spaced" : [ 1 , 2.0 ] }\r\n',
        b"",
    ],
)
async def test_any_data_is_kept_to_the_byte(store: VersionStore, data: bytes) -> None:
    odd = Content(b"package projects.alpha\n\xc3\x28", data)
    await record(store, replace(version(1, HELD, blobs=odd.blob_ids()), content=odd))
    stored = await store.version(ALPHA, 1)
    assert stored is not None
    assert stored.content == odd


async def test_the_largest_policy_is_kept_and_several_at_once(store: VersionStore) -> None:
    large = Content(b"#" * 524_288, b'{"a":[' + b"0," * 520_000 + b"0]}")
    await record(store, *(replace(version(number), content=large) for number in (1, 2, 3)))
    stored = await store.version(ALPHA, 3)
    assert stored is not None
    assert stored.content == large


async def test_writing_again_changes_nothing(store: VersionStore) -> None:
    generation = await record(store, version(1), version(2, HELD, reason="Why"))
    before = await store.versions(ALPHA)
    assert await store.add(generation, [version(1), version(2, HELD, reason="Other"), version(3)]) == 1
    assert (await store.versions(ALPHA))[1:] == before


@pytest.mark.parametrize(
    ("there", "new", "left"),
    [
        (SUPERSEDED, HELD, HELD),
        (SUPERSEDED, APPLIED, APPLIED),
        (HELD, APPLIED, APPLIED),
        (HELD, SUPERSEDED, HELD),
        (APPLIED, HELD, APPLIED),
        (APPLIED, SUPERSEDED, APPLIED),
    ],
)
async def test_what_was_live_anywhere_stays_applied(store: VersionStore, there: State, new: State, left: State) -> None:
    generation = await record(store, version(1, there))
    await store.add(generation, [version(1, new)])
    assert await states(store) == {1: left}


async def test_what_a_pass_told_replaces_what_was_inferred_and_never_the_other_way(store: VersionStore) -> None:
    generation = await record(store, version(1, inferred=True, applied_at=()), version(2, SUPERSEDED))
    await store.add(generation, [version(1), version(2, inferred=True)])
    assert await states(store) == {1: APPLIED, 2: SUPERSEDED}
    stored = await store.version(ALPHA, 1)
    assert stored == version(1)


async def test_a_version_whose_commit_was_gone_is_filled_in_by_who_has_it(store: VersionStore) -> None:
    gone = version(
        1, SUPERSEDED, blobs=None, reason=COMMIT_GONE, inferred=True, info=CommitInfo(f"{1:040x}", "", "", "")
    )
    generation = await record(store, replace(gone, content=None))
    await store.add(generation, [replace(gone, content=None)])
    await store.add(generation, [version(1, SUPERSEDED)])
    assert await store.version(ALPHA, 1) == version(1, SUPERSEDED)
    await store.add(generation, [replace(gone, content=None)])
    assert await store.version(ALPHA, 1) == version(1, SUPERSEDED)


async def test_no_commit_makes_two_versions_of_a_policy_and_no_number_is_given_twice(store: VersionStore) -> None:
    generation = await record(store, version(1))
    again = version(2, info=version(1).version.info)
    other = version(1, info=version(9).version.info)
    assert await store.add(generation, [again, other]) == 0
    assert await store.version(ALPHA, 1) == version(1)
    assert await store.version(ALPHA, 2) is None


async def test_an_older_version_that_becomes_live_again_is_applied_now(store: VersionStore) -> None:
    held = version(2, HELD, reason="ValidationFailed", message="no")
    await record(store, version(1), held)
    await store.settle({ALPHA: held.version.etag, BETA: '"nowhere"'}, at="2026-01-02T00:00:00.000Z", until=9)
    (now, _) = await store.versions(ALPHA)
    assert (now.state, now.reason, now.message) == (APPLIED, "", "")
    assert now.applied_at == ("2026-01-02T00:00:00.000Z",)
    await store.settle({ALPHA: version(1).version.etag}, at="2026-01-03T00:00:00.000Z", until=9)
    await store.settle({ALPHA: version(1).version.etag}, at="2026-01-04T00:00:00.000Z", until=9)
    stored = await store.version(ALPHA, 1)
    assert stored is not None
    assert stored.version.applied_at == (NOON, "2026-01-03T00:00:00.000Z")


async def test_a_deletion_that_was_held_is_applied_when_it_is_done(store: VersionStore) -> None:
    deletion = replace(version(2, HELD, blobs=None, deleted=True, reason="PruneBlocked"), content=None)
    await record(store, version(1), deletion)
    await store.settle({ALPHA: None}, at="2026-01-02T00:00:00.000Z", until=9)
    assert await states(store) == {1: APPLIED, 2: APPLIED}


async def test_pruning_keeps_the_newest_of_each_kind(store: VersionStore) -> None:
    kinds = [APPLIED, APPLIED, HELD, APPLIED, SUPERSEDED, HELD, APPLIED, SUPERSEDED]
    numbered: Sequence[StoredVersion] = [version(number, state) for number, state in enumerate(kinds, 1)]
    await record(store, *numbered)
    other = replace(version(1), version=replace(version(1).version, policy=BETA))
    await store.add((await store.bookmark()).generation, [other])
    assert await store.prune(Retention(2, 2), [BETA]) == 0
    assert await store.prune(Retention(2, 2), [ALPHA]) == 4
    assert sorted(await states(store)) == [4, 6, 7, 8]
    assert await store.prune(Retention(1, 1)) == 2
    assert sorted(await states(store)) == [7, 8]
    assert len(await store.versions(BETA)) == 1


async def test_what_was_live_then(store: VersionStore) -> None:
    await record(
        store,
        version(1, applied_at=("2026-01-01T12:00:00.000Z", "2026-01-01T15:00:00.000Z")),
        version(2, HELD),
        version(3, applied_at=("2026-01-01T13:00:00.000Z",)),
        version(4, inferred=True, applied_at=(), info=CommitInfo("4" * 40, "", "2026-01-01T14:00:00Z", "")),
    )

    async def live(at: str) -> int | None:
        found = await store.live_at(ALPHA, at)
        return None if found is None else found.version

    assert await live("2026-01-01T11:59:59Z") is None
    assert await live("2026-01-01T12:00:00Z") == 1
    assert await live("2026-01-01T13:30:00.5+00:00") == 3
    assert await live("2026-01-01T14:30:00Z") == 4
    assert await live("2026-01-01T17:00:00+01:00") == 1
    assert await store.live_at(BETA, NOON) is None


async def test_the_same_time_is_told_for_every_policy(store: VersionStore) -> None:
    other = version(1, applied_at=("2026-01-01T13:00:00.000Z",))
    await record(store, version(1), replace(other, version=replace(other.version, policy=BETA)))
    found = await store.all_live_at("2026-01-01T12:30:00Z")
    assert {policy: each and each.version for policy, each in found.items()} == {ALPHA: 1, BETA: None}


async def test_commits_are_known_also_of_versions_that_are_kept_no_longer(store: VersionStore) -> None:
    generation = await record(store, version(3))
    await store.claim(generation, Page(1, (Entry("a" * 40, {ALPHA: 1, BETA: 1}), Entry("b" * 40, {ALPHA: 2}))))
    await store.claim(generation, Page(3, (Entry("c" * 40, {}), Entry("d" * 40, {ALPHA: 3}))))
    assert list(await store.commits_of(ALPHA)) == [(3, "d" * 40), (2, "b" * 40), (1, "a" * 40)]
    assert list(await store.commits_of(ALPHA, before=3, limit=1)) == [(2, "b" * 40)]
    assert list(await store.commits_of(BETA)) == [(1, "a" * 40)]
    assert list(await store.commits_of(PLATFORM)) == []


async def test_the_last_versions_of_all_policies_come_in_the_order_of_their_commits(store: VersionStore) -> None:
    def of(policy: PolicyName, number: int, position: int) -> StoredVersion:
        own = version(number)
        return replace(own, version=replace(own.version, policy=policy, position=position))

    await record(store, of(ALPHA, 1, 1), of(BETA, 1, 1), of(BETA, 2, 2), of(ALPHA, 2, 3))
    order = [(ALPHA, 2), (BETA, 2), (BETA, 1), (ALPHA, 1)]
    assert [(each.policy, each.version) for each in await store.recent()] == order
    assert [(each.policy, each.version) for each in await store.recent(limit=2)] == order[:2]
    rest = await store.recent(before=Place(2, BETA), limit=5)
    assert [(each.policy, each.version) for each in rest] == order[2:]
    assert [each.version for each in await store.recent(before=Place(1, BETA))] == [1]


async def test_a_cleared_record_begins_anew_and_what_comes_late_for_the_old_one_is_no_part_of_it(
    store: VersionStore,
) -> None:
    old = await record(store, version(1))
    await store.claim(old, Page(1, (Entry("a" * 40, {ALPHA: 1}),)))
    await store.clear(old)
    new = await store.bookmark()
    assert new.generation != old
    assert new.position == 1
    assert list(await store.versions(ALPHA)) == []
    await store.claim(old, Page(1, (Entry("b" * 40, {}),)))
    await store.advance(old, 2)
    assert list(await store.pages(new.generation, 1)) == []
    assert (await store.bookmark()).position == 1


async def test_clearing_an_ended_record_leaves_the_one_begun_since(store: VersionStore) -> None:
    """Two recorders found the same damage: the second one cleared what the first had already written anew."""
    old = await record(store, version(1))
    await store.clear(old)
    new = await record(store, version(1), version(2))
    await store.clear(old)
    assert (await store.bookmark()).generation == new
    assert await states(store) == {1: APPLIED, 2: APPLIED}


async def test_who_writes_to_a_record_that_has_ended_hears_of_it(store: VersionStore) -> None:
    """A pass counted as recorded although the database had been emptied under it."""
    old = await record(store, version(1))
    assert await store.advance(old, 2)
    await store.clear(old)
    new = await record(store, version(1))
    assert not await store.advance(old, 3)
    with pytest.raises(TransientError):
        await store.add(old, [version(1)])
    assert (await store.bookmark()).generation == new
    assert await states(store) == {1: APPLIED}


async def test_telling_changes_what_is_there_and_brings_back_nothing(store: VersionStore) -> None:
    generation = await record(store, version(1, SUPERSEDED))
    await store.tell(generation, [version(1), version(2)])
    assert await states(store) == {1: APPLIED}


async def test_a_record_without_versions_is_empty(store: VersionStore) -> None:
    generation = (await store.bookmark()).generation
    assert await store.empty(generation)
    await store.add(generation, [version(1)])
    assert not await store.empty(generation)


async def test_the_version_made_live_last_is_kept_however_old_it_is(store: VersionStore) -> None:
    await record(store, *(version(number) for number in range(1, 5)))
    await store.settle({ALPHA: version(1).version.etag}, at="2026-01-02T00:00:00.000Z", until=9)
    await store.prune(Retention(2, 1))
    assert sorted(await states(store)) == [1, 4]


async def test_a_version_is_looked_for_up_to_the_commit_that_made_it_live(store: VersionStore) -> None:
    """A datacentre that was behind applied an old text; the newest version of the same text was said to be live."""
    again = replace(version(3, HELD), content=version(1).content)
    again = replace(again, version=replace(again.version, blobs=version(1).version.blobs))
    await record(store, version(1, SUPERSEDED), version(2), again)
    assert not await store.settle({ALPHA: version(1).version.etag}, at=NOON, until=2)
    assert await states(store) == {1: APPLIED, 2: APPLIED, 3: HELD}
    assert await store.settle({ALPHA: '"gone"', BETA: None}, at=NOON, until=9) == [ALPHA, BETA]


async def test_times_stay_in_order_whoever_comes_late(store: VersionStore) -> None:
    await record(store, version(1), version(2, applied_at=("2026-01-01T18:00:00.000Z",)))
    for at in ("2026-01-01T15:00:00.000Z", "2026-01-01T09:00:00.000Z"):
        await store.settle({ALPHA: version(1).version.etag}, at=at, until=9)
    stored = await store.version(ALPHA, 1)
    assert stored is not None
    assert stored.version.applied_at == ("2026-01-01T09:00:00.000Z", NOON, "2026-01-01T15:00:00.000Z")


async def test_any_error_text_is_kept_as_far_as_it_can_be(store: VersionStore) -> None:
    """An error that quoted half a surrogate pair could not be written: the record stood still for ever."""
    await record(store, version(1, HELD, reason="ValidationFailed", message="at key \ud800 " + "x" * 10))
    assert await states(store) == {1: HELD}


async def test_what_an_older_record_left_behind_goes_when_a_new_one_begins(mongo: MongoDatabase) -> None:
    """Somebody deletes the bookmark only: numbers of the former record would stand in the way of the new one's."""
    store = MongoVersions(mongo)
    await record(store, version(1), version(2))
    await mongo.collection("policy_record").delete_many({})
    await record(MongoVersions(mongo), version(1, HELD))
    assert await states(store) == {1: HELD}


async def test_people_find_the_data_parsed_where_mongodb_holds_it_as_it_is(mongo: MongoDatabase) -> None:
    store = MongoVersions(mongo)
    plain, dotted = version(1), Content(b"package projects.alpha\n", b'{"a.b": 1}')
    await record(store, plain, replace(version(2), content=dotted))
    collection = mongo.collection("policy_versions")
    found = await collection.find_one({"data.owners": "ann"})
    assert found is not None
    assert (found["version"], found["scope"], found["project"], found["pull_request"]) == (1, "project", "alpha", 12)
    other = await collection.find_one({"version": 2})
    assert other is not None
    assert "data" not in other
    assert other["data_text"] == '{"a.b": 1}'


async def test_what_comes_late_for_an_ended_record_makes_room(mongo: MongoDatabase) -> None:
    """A write that the network had kept arrived after the record was begun anew, and its numbers stood in the way."""
    store = MongoVersions(mongo)
    old = await record(store, version(1))
    await store.clear(old)
    new = (await store.bookmark()).generation
    late = to_document(old, version(1, HELD, info=version(7).version.info))
    await mongo.collection("policy_versions").insert_one(late)
    assert await store.add(new, [version(1), version(2)]) == 2
    assert await store.version(ALPHA, 1) == version(1)


async def test_a_process_that_meets_a_new_record_forgets_the_old_one(mongo: MongoDatabase) -> None:
    """Whoever began it died before it had deleted what the former one left."""
    store = MongoVersions(mongo)
    old = await record(store, version(1), version(2))
    await mongo.collection("policy_record").update_one({}, {"$set": {"generation": "another", "position": 1}})
    assert (await store.bookmark()).generation == "another" != old
    assert await states(store) == {}


async def test_documents_that_repeat_each_other_are_begun_anew(mongo: MongoDatabase) -> None:
    """A dump without its indexes was restored twice: no index could be made, and nothing was ever recorded again."""
    store = MongoVersions(mongo)
    generation = await record(store, version(1))
    collection = mongo.collection("policy_versions")
    await collection.drop_indexes()
    await collection.insert_one({**to_document(generation, version(1)), "_id": "twice"})
    other = MongoVersions(mongo)
    with pytest.raises(TransientError) as damaged:
        await other.bookmark()
    assert damaged.value.reason == "RecordDamaged"
    assert (await other.bookmark()).generation != generation
    assert await states(other) == {}


async def test_an_index_that_somebody_made_is_named_with_the_remedy(mongo: MongoDatabase) -> None:
    await mongo.collection("policy_versions").create_index([("policy", 1), ("version", -1)])
    with pytest.raises(StalledError) as refused:
        await MongoVersions(mongo).bookmark()
    assert refused.value.reason == "RecordRefused"
    assert "Drop that index" in refused.value.remedy
