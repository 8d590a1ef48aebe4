"""The record follows from the branch and from what passes saw, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes.record import InMemoryVersions
from fakes.source import InMemorySource
from fixtures.etcd import eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from reconciler.adapters.mongo import MongoDatabase, MongoVersions
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.model import PLATFORM, Content, PolicyName, project_policy
from reconciler.core.record_ports import VersionStore
from reconciler.core.versions import COMMIT_GONE, Hold, Retention, Seen, State
from reconciler.metrics import RecorderMetrics
from reconciler.recorder import Recorder
from reconciler.settings import LoopSettings
from reconciler.version_history import NO_RECORD, NOT_RECORDED, RECORD_AWAY, VersionHistory

ALPHA, BETA = project_policy("alpha"), project_policy("beta")
NAMES = ("platform", "projects/alpha", "projects/beta")
AWAY = TransientError("away", reason="RecordUnavailable")
ALL = Retention(1000, 1000)
A, H, S = State.APPLIED, State.HELD, State.SUPERSEDED


class Branch:
    """A branch, and passes that come by now and then: what each would tell the recorder."""

    def __init__(self) -> None:
        self.source = InMemorySource()
        self.applied: str | None = None
        self.live: dict[PolicyName, str] = {}
        self.time = 0

    def put(self, name: str, text: str | None, **more: Any) -> str:
        """Commit a policy; ``None`` deletes it, ``""`` leaves a folder that is none."""
        folder = f"policies/{name}"
        files: dict[str, bytes | None] = {folder: None}
        if text is not None:
            files |= {f"{folder}/rego.rego" if text else f"{folder}/README.md": text.encode() or b"?"}
        return self.source.commit(files, **more)

    async def passes(self, *held: str) -> Seen:
        head = await self.source.fetch()
        tree = await self.source.tree(head)
        stay = {PolicyName(name) for name in (*held, *tree.invalid)}
        want = {name: blobs.etag for name, blobs in tree.policies.items() if name not in stay}
        want |= {name: etag for name, etag in self.live.items() if name in stay}
        names = want.keys() | self.live.keys()
        changed = {name: want.get(name) for name in names if want.get(name) != self.live.get(name)}
        self.time += 1
        seen = Seen(head, self.applied, f"2026-01-01T00:{self.time // 60:02}:{self.time % 60:02}.000Z", changed)
        seen = Seen(
            seen.commit, seen.previous, seen.at, changed, {name: Hold("ValidationFailed", "no") for name in stay}
        )
        self.applied, self.live = head, want
        return seen


def recorder(source: InMemorySource, store: VersionStore, keep: Retention = ALL) -> Recorder:
    metrics = RecorderMetrics(CollectorRegistry())
    return Recorder(source, store, keep=keep, metrics=metrics, settings=LoopSettings())


async def states(store: VersionStore, policy: PolicyName = ALPHA) -> list[tuple[int, State]]:
    return [(each.version, each.state) for each in reversed(await store.versions(policy, limit=1000))]


@pytest.fixture
def branch() -> Branch:
    return Branch()


@pytest.fixture(params=["memory", "mongo"])
def store(request: pytest.FixtureRequest) -> VersionStore:
    return InMemoryVersions() if request.param == "memory" else MongoVersions(request.getfixturevalue("mongo"))


async def test_each_version_says_what_the_passes_made_of_it(branch: Branch, store: VersionStore) -> None:
    own = recorder(branch.source, store)
    branch.put("projects/alpha", "1")
    own.note(await branch.passes())
    branch.put("projects/alpha", "2")
    third = branch.put(
        "projects/alpha", "3", message="Merge pull request #5 from ann/x", author="Bob <bob@example.org>"
    )
    own.note(await branch.passes())
    branch.put("projects/alpha", "4")
    own.note(await branch.passes("projects/alpha"))
    branch.put("projects/alpha", None)
    own.note(await branch.passes())
    await own.catch_up()
    assert await states(store) == [(1, A), (2, S), (3, A), (4, H), (5, A)]
    newest, held, merged, *_ = await store.versions(ALPHA)
    assert newest.deleted
    assert (held.reason, held.message) == ("ValidationFailed", "no")
    assert (merged.info.commit, merged.info.author, merged.pull_request) == (third, "Bob <bob@example.org>", 5)
    stored = await store.version(ALPHA, 3)
    assert stored is not None
    assert stored.content == Content(b"3")


async def test_a_held_version_that_goes_live_later_is_applied_then(branch: Branch, store: VersionStore) -> None:
    own = recorder(branch.source, store)
    branch.put("projects/alpha", "1")
    own.note(await branch.passes("projects/alpha"))
    branch.put("platform", "p")
    own.note(now := await branch.passes())
    await own.catch_up()
    (only,) = await store.versions(ALPHA)
    assert (only.state, only.reason, only.applied_at) == (A, "", (now.at,))


async def test_what_no_pass_told_is_inferred_and_says_so(branch: Branch, store: VersionStore) -> None:
    for text in ("1", "2", "", "4"):
        branch.put("projects/alpha", text)
    seen = await branch.passes()
    own = recorder(branch.source, store)
    own.note(Seen(seen.commit, seen.commit, seen.at))
    await own.catch_up()
    found = [(each.version, each.state, each.inferred) for each in reversed(await store.versions(ALPHA))]
    assert found == [(1, A, True), (2, A, True), (3, H, False), (4, A, False)]


async def test_a_rewritten_branch_goes_on_from_the_highest_number(branch: Branch, store: VersionStore) -> None:
    own = recorder(branch.source, store)
    first = branch.put("projects/alpha", "1")
    branch.put("projects/alpha", "2")
    gone = branch.put("projects/alpha", "3")
    own.note(await branch.passes())
    new = branch.put("projects/alpha", "2b", on=first)
    own.note(await branch.passes())
    await own.catch_up()
    found = {each.version: each.info.commit for each in await store.versions(ALPHA)}
    assert (found[1], found[3], found[4]) == (first, gone, new)
    branch.source.force_push(gone)
    own.note(back := await branch.passes())
    branch.put("projects/alpha", "5")
    own.note(await branch.passes())
    await own.catch_up()
    versions = {each.version: each for each in await store.versions(ALPHA)}
    assert sorted(versions) == [1, 2, 3, 4, 5]
    assert versions[3].applied_at[-1] == back.at


async def test_a_recorder_that_never_had_the_old_branch_goes_on_all_the_same(
    branch: Branch, store: VersionStore
) -> None:
    """A replica with an empty disk clones only what the rewritten branch still has."""
    first = branch.put("projects/alpha", "1")
    branch.put("projects/alpha", "2")
    own = recorder(branch.source, store)
    own.note(await branch.passes())
    await own.catch_up()
    new = branch.put("projects/alpha", "other", on=first)
    branch.source._fetched.clear()
    other = recorder(branch.source, store)
    other.note(await branch.passes())
    await other.catch_up()
    found = {each.version: each.info.commit for each in await store.versions(ALPHA)}
    assert sorted(found) == [1, 2, 3]
    assert found[3] == new


async def test_a_commit_that_another_numbered_and_nobody_has_any_more_leaves_no_gap(
    branch: Branch, store: VersionStore
) -> None:
    first = branch.put("projects/alpha", "1")
    branch.put("projects/alpha", "2")
    dying = recorder(branch.source, store)
    dying.note(await branch.passes())
    mark = await store.bookmark()
    await dying._writer._shared.claim(mark.generation, branch.applied or "")
    branch.put("projects/alpha", "3", on=first)
    branch.source._fetched.clear()
    own = recorder(branch.source, store)
    own.note(await branch.passes())
    await own.catch_up()
    assert await states(store) == [(1, A), (2, S), (3, A)]
    assert [each.reason for each in await store.versions(ALPHA)] == ["", COMMIT_GONE, ""]


async def test_only_the_last_versions_are_kept_and_git_has_the_others(branch: Branch, store: VersionStore) -> None:
    own = recorder(branch.source, store, Retention(2, 1))
    for number in range(1, 9):
        branch.put("projects/alpha", str(number))
        own.note(await branch.passes(*(["projects/alpha"] if number in {3, 5} else [])))
        if number % 3 == 0:
            await own.catch_up()
    await own.catch_up()
    assert await states(store) == [(5, H), (7, A), (8, A)]
    past = VersionHistory(_headed(branch), store)
    old = await past.version(ALPHA, 2)
    assert old is not None
    assert (old.content, old.version.version) == (Content(b"2"), 2)
    assert await past.version(ALPHA, 9) is None


async def test_a_record_that_is_not_filled_yet_denies_nothing(branch: Branch) -> None:
    """MongoDB was lost and is being filled again: nobody is told meanwhile that a policy never was."""
    branch.put("projects/alpha", "1")
    branch.put("projects/alpha", "2")
    await branch.passes()
    past = VersionHistory(_headed(branch), InMemoryVersions())
    found = await past.versions(ALPHA)
    assert ([each.version for each in found.versions], found.missing) == ([2, 1], NOT_RECORDED)
    stored = await past.version(ALPHA, 1)
    assert stored is not None
    assert stored.content == Content(b"1")
    assert await past.version(ALPHA, 3) is None
    assert list((await past.versions(BETA)).versions) == []


async def test_an_emptied_database_is_filled_again_from_git(branch: Branch) -> None:
    store = InMemoryVersions()
    own = recorder(branch.source, store)
    for text in "abc":
        branch.put("projects/alpha", text)
        own.note(await branch.passes())
    await own.catch_up()
    before = {each.version: each.info for each in await store.versions(ALPHA)}
    store.lose()
    branch.put("projects/beta", "x")
    own.note(await branch.passes())
    await own.catch_up()
    assert {each.version: each.info for each in await store.versions(ALPHA)} == before
    assert await states(store, BETA) == [(1, A)]


async def test_a_database_that_is_emptied_is_filled_without_a_new_commit(branch: Branch) -> None:
    store = InMemoryVersions()
    metrics = RecorderMetrics(CollectorRegistry())
    own = Recorder(branch.source, store, keep=ALL, metrics=metrics, settings=LoopSettings(), check_seconds=0.01)
    branch.put("projects/alpha", "a")
    own.note(await branch.passes())
    running = asyncio.ensure_future(own.run())
    await eventually(lambda: len(store.stored) == 1)
    store.lose()
    await eventually(lambda: len(store.stored) == 1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_delay_is_told_once_it_lasts(branch: Branch) -> None:
    store = InMemoryVersions()
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    registry = CollectorRegistry()
    own = Recorder(
        branch.source,
        store,
        keep=ALL,
        metrics=RecorderMetrics(registry),
        settings=LoopSettings(backoff_min=0.001, backoff_max=0.002),
        clock=lambda: now[0],
    )
    store.away = AWAY
    branch.put("projects/alpha", "a")
    own.note(await branch.passes())
    running = asyncio.ensure_future(own.run())
    await eventually(lambda: registry.get_sample_value("regops_record_failures_total", {"reason": "RecordUnavailable"}))
    assert list(own.notices()) == []
    now[0] += timedelta(seconds=31)
    (notice,) = own.notices()
    assert (notice.type, notice.status, notice.reason) == ("RecordDelayed", "True", "RecordUnavailable")
    assert registry.get_sample_value("regops_record_lag_seconds") == 31
    store.away = None
    await eventually(lambda: not own.notices())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_while_the_store_is_away_passes_wait_and_are_recorded_in_order_afterwards(branch: Branch) -> None:
    store = InMemoryVersions()
    own = recorder(branch.source, store)
    store.away = AWAY
    running = asyncio.ensure_future(own.run())
    for text in "abc":
        branch.put("projects/alpha", text)
        own.note(await branch.passes())
    await eventually(lambda: store.calls["bookmark"])
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    store.away = None
    await own.catch_up()
    assert await states(store) == [(1, A), (2, A), (3, A)]


async def test_two_recorders_agree(branch: Branch, store: VersionStore) -> None:
    recorders = [recorder(branch.source, store) for _ in range(2)]
    for number in range(12):
        branch.put(NAMES[number % 3], str(number))
        seen = await branch.passes()
        for each in recorders:
            each.note(seen)
        if number % 4 == 3:
            await asyncio.gather(*(each.catch_up() for each in recorders))
    plain = await plainly(branch)
    for policy in (PLATFORM, ALPHA, BETA):
        assert {v.version: v.info.commit for v in await store.versions(policy)} == plain[policy]
        assert all(state is A for _, state in await states(store, policy))


async def test_without_a_record_git_answers_and_says_so(branch: Branch) -> None:
    branch.put("projects/alpha", "1")
    branch.put("projects/alpha", None)
    branch.put("projects/alpha", "3")
    await branch.source.fetch()
    past = VersionHistory(_headed(branch), None)
    found = await past.versions(ALPHA, limit=2)
    assert [(each.version, each.state, each.inferred) for each in found.versions] == [(3, A, True), (2, A, True)]
    assert found.missing == NO_RECORD
    stored = await past.version(ALPHA, 1)
    assert stored is not None
    assert stored.content == Content(b"1")
    store = InMemoryVersions()
    store.away = AWAY
    away = await VersionHistory(_headed(branch), store).versions(ALPHA, before=3)
    assert ([each.version for each in away.versions], away.missing) == ([2, 1], RECORD_AWAY)


class _Headed:
    """The source with its head, as the mirror has it."""

    def __init__(self, source: InMemorySource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    async def head(self) -> str | None:
        return self._source.head


def _headed(branch: Branch) -> Any:
    return _Headed(branch.source)


async def plainly(branch: Branch) -> Mapping[PolicyName, Mapping[int, str]]:
    """A plain reading of the whole history: the commits of each policy's versions."""
    found: dict[PolicyName, dict[int, str]] = defaultdict(dict)
    before: Mapping[PolicyName, object] = {}
    for commit in await branch.source.line(await branch.source.fetch()):
        now = branch.source._states(commit)
        for name in now.keys() | before.keys():
            if now.get(name) != before.get(name):
                own = found[name]
                own[len(own) + 1] = commit
        before = now
    return found


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NAMES), st.sampled_from(["a", "b", "", None])),
        st.tuples(st.just("merge"), st.sampled_from(NAMES), st.sampled_from(["a", "c"])),
        st.tuples(st.just("pass"), st.sets(st.sampled_from(NAMES), max_size=2), st.none()),
        st.tuples(st.just("record"), st.none(), st.none()),
        st.tuples(
            st.just("fault"),
            st.sampled_from(["bookmark", "pages", "claim", "add", "settle", "prune", "advance"]),
            st.none(),
        ),
        st.tuples(st.just("crash"), st.integers(0, 12), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(actions=ACTIONS, keep=st.sampled_from([ALL, Retention(2, 1)]))
def test_whatever_fails_the_record_is_a_plain_reading_of_the_history(actions: list[Any], keep: Retention) -> None:
    asyncio.run(_whatever(actions, keep))


async def _whatever(actions: list[Any], keep: Retention) -> None:
    branch, store = Branch(), InMemoryVersions()
    branch.put("platform", "first")
    own = recorder(branch.source, store, keep)
    for kind, what, text in actions:
        if kind == "put":
            branch.put(what, text)
        elif kind == "merge":
            main = branch.source.head
            side = branch.put(what, text)
            branch.put(what, text, on=main, merge=side, message="Merge pull request #1 from x")
        elif kind == "pass":
            own.note(await branch.passes(*what))
        elif kind == "fault":
            store.fail(what, AWAY)
        elif kind == "record":
            await _try(own)
        else:
            task = asyncio.ensure_future(_try(own))
            for _ in range(what):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            own = recorder(branch.source, store, keep)
    store._faults.clear()
    own.note(await branch.passes())
    await own.catch_up()
    for policy, plain in (await plainly(branch)).items():
        found = {v.version: v.info.commit for v in await store.versions(policy, limit=1000)}
        assert found.items() <= plain.items()
        assert max(found) == max(plain)
        kinds = [v.state is A for v in await store.versions(policy, limit=1000)]
        if keep is ALL:
            assert found == plain
        else:
            assert kinds.count(True) <= keep.applied
            assert kinds.count(False) <= keep.others


async def _try(own: Recorder) -> None:
    try:
        await own.catch_up()
    except RegopsError:
        return


async def test_a_long_history_fills_several_pages(mongo: MongoDatabase) -> None:
    branch, store = Branch(), MongoVersions(mongo)
    for number in range(600):
        branch.put(f"projects/p{number % 7}", str(number))
    own = recorder(branch.source, store, Retention(5, 5))
    own.note(await branch.passes())
    await own.catch_up()
    plain = await plainly(branch)
    for policy, each in plain.items():
        found = {v.version: v.info.commit for v in await store.versions(policy)}
        assert found.items() <= each.items()
        assert max(found) == max(each)
        assert len(found) == 5
    assert (await store.bookmark()).position == 601
