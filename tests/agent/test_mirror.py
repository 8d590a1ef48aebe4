"""The mirror on a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest
from agent.leader import Leader, commit_id, compact, keyspace_of, rego
from fixtures.etcd import EtcdServer, eventually
from fixtures.proxy import Mode, proxy_to

from reconciler.adapters.etcd import EtcdStore
from reconciler.agent.mirror import Mirror
from reconciler.agent.scope import ALL, Scope
from reconciler.agent.state import MirrorState
from reconciler.core.errors import RegopsError, StoreError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import Content, policy_name
from reconciler.core.ports import Delete, KeyValueStore, Put, Range, Read, Transaction

SECONDS = 15


class Diary:
    """What the mirror says that it does."""

    def __init__(self) -> None:
        self.how: list[str] = []
        self.reads = 0
        self.reasons: list[str] = []

    def advanced(self, how: str, seconds: float, policies_read: int) -> None:
        assert seconds >= 0
        self.how.append(how)
        self.reads += policies_read

    def resumed(self) -> None:
        pass

    def kept(self, reason: str) -> None:
        self.reasons.append(reason)

    def lost(self, error: RegopsError) -> None:
        self.reasons.append(error.reason)


@contextlib.asynccontextmanager
async def mirroring(
    store: KeyValueStore, keyspace: Keyspace, scope: Scope = ALL, **more: object
) -> AsyncIterator[Mirror]:
    mirror = Mirror(store, keyspace, scope, observer=more.get("diary"))  # type: ignore[arg-type]
    mirror.never_below(more.get("below"))  # type: ignore[arg-type]
    task = asyncio.create_task(mirror.run())
    try:
        yield mirror
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def at(mirror: Mirror, commit: str) -> MirrorState:
    async with asyncio.timeout(SECONDS):
        state: MirrorState | None = None
        while state is None or state.commit != commit:
            state = await mirror.wait_newer(state)
        return state


def held(state: MirrorState) -> dict[str, bytes]:
    return {name: policy.content.rego for name, policy in state.policies.items()}


@pytest.fixture
def leader(store: EtcdStore, prefix: str) -> Leader:
    return Leader(store, keyspace_of(prefix))


async def test_where_nothing_was_ever_applied_the_state_is_empty(store: EtcdStore, leader: Leader) -> None:
    async with mirroring(store, leader.keys) as mirror:
        async with asyncio.timeout(SECONDS):
            state = await mirror.wait_newer(None)
        assert (state.applied, dict(state.policies)) == (None, {})
        applied = await leader.apply(platform=b"p")
        assert held(await at(mirror, applied.commit)) == {"platform": b"p"}


async def test_a_start_finds_what_is_applied_and_then_follows_each_commit(store: EtcdStore, leader: Leader) -> None:
    diary = Diary()
    first = await leader.apply(platform=b"p", projects__a=Content(b"a", b"{}"), projects__b=b"b")
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        assert held(await at(mirror, first.commit)) == {"platform": b"p", "projects/a": b"a", "projects/b": b"b"}
        second = await leader.apply(projects__a=Content(b"a2", b'{"k": 1}'), projects__b=None, projects__c=b"c")
        state = await at(mirror, second.commit)
        assert held(state) == {"platform": b"p", "projects/a": b"a2", "projects/c": b"c"}
        assert state.policies[policy_name("projects/a")].content.data == b'{"k": 1}'
    assert diary.how == ["snapshot", "delta"]
    assert diary.reads == 3 + 3


async def test_a_deleted_data_file_is_gone(store: EtcdStore, leader: Leader) -> None:
    await leader.apply(projects__a=Content(b"a", b"{}"))
    async with mirroring(store, leader.keys) as mirror:
        state = await at(mirror, (await leader.apply(projects__a=b"a")).commit)
        assert state.policies[policy_name("projects/a")].content == Content(b"a")


async def test_a_gap_in_the_chain_is_read_whole_but_only_what_differs_is_fetched(
    store: EtcdStore, leader: Leader
) -> None:
    diary = Diary()
    await leader.apply(platform=b"p", projects__a=b"a", projects__b=b"b")
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        await at(mirror, leader.applied.commit)
        applied = await leader.apply(told=False, projects__b=b"b2")
        assert held(await at(mirror, applied.commit)) == {"platform": b"p", "projects/a": b"a", "projects/b": b"b2"}
        assert diary.how == ["snapshot", "snapshot"]
        assert diary.reads == 3 + 1


async def test_a_new_leader_s_first_word_reads_nothing(store: EtcdStore, leader: Leader) -> None:
    """It writes the same apply anew, and each of 1,000 agents read the records of all policies, and wrote its receipt
    again."""
    diary = Diary()
    first = await leader.apply(platform=b"p", projects__a=b"a")
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        state = await at(mirror, first.commit)
        renewed = replace(first, id="renewed", previous=first.id, changed=None)
        await leader.write(renewed)
        async with asyncio.timeout(SECONDS):
            anew = await mirror.wait_newer(state)
        assert anew.applied == renewed
        assert held(anew) == {"platform": b"p", "projects/a": b"a"}
    assert (diary.how, diary.reads) == (["snapshot", "delta"], 2)


async def test_chosen_projects_are_all_that_is_read(store: EtcdStore, leader: Leader) -> None:
    diary = Diary()
    first = await leader.apply(platform=b"p", projects__a=b"a", projects__b=b"b")
    async with mirroring(store, leader.keys, Scope.of_projects(["a", "z"]), diary=diary) as mirror:
        assert held(await at(mirror, first.commit)) == {"platform": b"p", "projects/a": b"a"}
        second = await leader.apply(projects__b=b"b2")
        assert held(await at(mirror, second.commit)) == {"platform": b"p", "projects/a": b"a"}
        third = await leader.apply(projects__b=b"b3", projects__z=b"z")
        assert held(await at(mirror, third.commit)) == {"platform": b"p", "projects/a": b"a", "projects/z": b"z"}
    assert diary.reads == 2 + 0 + 1


async def test_hundreds_of_policies_are_read_in_several_answers(store: EtcdStore, leader: Leader) -> None:
    names = [f"projects/p{number:03}" for number in range(150)]
    for start in range(0, len(names), 40):
        await leader.commit(
            *(op for name in names[start : start + 40] for op in leader.operations(name, name.encode()))
        )
    applied = await leader.apply(platform=b"p")
    async with mirroring(store, leader.keys) as mirror:
        assert held(await at(mirror, applied.commit)) == {"platform": b"p", **{name: name.encode() for name in names}}


class Busy:
    """An etcd of whose reads of many keys one, the ``late``-th, is not answered in time."""

    def __init__(self, store: KeyValueStore, late: int) -> None:
        self._store, self._late = store, late

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def read(self, *ranges: Range, revision: int = 0) -> Read:
        self._late -= len(ranges) > 3
        if self._late == 0:
            self._late = -1
            raise StoreError("etcd did not answer in time", reason="StoreUnavailable")
        return await self._store.read(*ranges, revision=revision)


async def test_a_start_that_breaks_off_goes_on_where_it_was(store: EtcdStore, leader: Leader) -> None:
    """A thousand agents started at once; each had some read that came too late, and began again with the first policy,
    so that etcd stayed as busy as it was and hardly anybody ever had all."""
    for start in range(0, 200, 40):
        lot: dict[str, Any] = {f"projects__p{number}": b"x" for number in range(start, start + 40)}
        first = await leader.apply(**lot)
    diary = Diary()
    busy = cast("KeyValueStore", Busy(store, late=7))
    async with mirroring(busy, leader.keys, diary=diary) as mirror:
        assert len(held(await at(mirror, first.commit))) == 200
    assert diary.reasons == ["StoreUnavailable"]
    assert diary.how == ["snapshot"]
    assert diary.reads < 200 - 100, "only what was still missing"


async def test_a_hand_edit_is_never_seen(store: EtcdStore, leader: Leader) -> None:
    a, b = policy_name("projects/a"), policy_name("projects/b")
    await leader.apply(platform=b"p", projects__a=Content(b"a", b"{}"), projects__b=b"b")
    await leader.commit(Put(leader.keys.rego(a), b"edited"))
    await leader.commit(Delete(leader.keys.rego(b)), Put(leader.keys.data(b), b"{}"))
    await leader.commit(Put(leader.keys.rego(policy_name("projects/foreign")), b"foreign"))
    async with mirroring(store, leader.keys) as mirror:
        state = await at(mirror, leader.applied.commit)
        assert held(state) == {"platform": b"p", "projects/a": b"a", "projects/b": b"b"}
        assert state.policies[a].content.data == b"{}"
        state = await at(mirror, (await leader.apply(platform=b"p2")).commit)
        assert held(state) == {"platform": b"p2", "projects/a": b"a", "projects/b": b"b"}


async def test_a_hand_edit_whose_original_is_compacted_holds_the_mirror_until_it_is_healed(etcd: EtcdServer) -> None:
    store, diary = EtcdStore([etcd.endpoint]), Diary()
    leader = Leader(store, Keyspace())
    a = policy_name("projects/a")
    first = await leader.apply(platform=b"p", projects__a=b"a")
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        await at(mirror, first.commit)
        await leader.commit(*leader.operations("projects/a", b"a2"))
        compact(etcd.endpoint, await leader.commit(Put(leader.keys.rego(a), b"edited")))
        await leader.apply(told=False, platform=b"p2")
        await eventually(lambda: "unreadable" in diary.reasons)
        assert mirror.state is not None
        assert held(mirror.state) == {"platform": b"p", "projects/a": b"a"}
        await leader.commit(*leader.operations("projects/a", b"a2"))
        assert held(await at(mirror, leader.applied.commit)) == {"platform": b"p2", "projects/a": b"a2"}
    await store.aclose()


async def test_records_that_are_no_records_hold_the_mirror(store: EtcdStore, leader: Leader) -> None:
    diary = Diary()
    await leader.apply(platform=b"p")
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        former = await at(mirror, leader.applied.commit)
        await leader.commit(Put(leader.keys.applied, b"scribble"))
        await eventually(lambda: "unreadable" in diary.reasons)
        await leader.commit(Delete(leader.keys.applied))
        await leader.commit(Put(f"{leader.keys.metas}no policy/at-all", b"scribble"))
        assert mirror.state is former
        await at(mirror, (await leader.apply(told=False, platform=b"p2")).commit)


async def test_while_an_apply_spans_transactions_the_state_before_it_is_read(store: EtcdStore, leader: Leader) -> None:
    first = await leader.apply(platform=b"p", projects__a=b"a")
    await leader.begin(*leader.operations("projects/a", b"half"))
    async with mirroring(store, leader.keys) as mirror:
        assert held(await at(mirror, first.commit)) == {"platform": b"p", "projects/a": b"a"}
        last = await leader.finish(platform=b"p2")
        assert held(await at(mirror, last.commit)) == {"platform": b"p2", "projects/a": b"half"}


async def test_a_start_amid_an_apply_waits_when_the_state_before_it_is_compacted(etcd: EtcdServer) -> None:
    store, diary = EtcdStore([etcd.endpoint]), Diary()
    leader = Leader(store, Keyspace())
    await leader.apply(platform=b"p", projects__a=b"a")
    await leader.begin(*leader.operations("projects/a", b"half"))
    compact(etcd.endpoint, await leader.commit(*leader.operations("projects/b", b"half")))
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        await eventually(lambda: "applying" in diary.reasons)
        assert mirror.state is None
        await at(mirror, (await leader.finish(platform=b"p2")).commit)
    await store.aclose()


async def test_an_older_commit_that_was_there_before_is_not_followed_but_one_written_since_is(
    store: EtcdStore, leader: Leader
) -> None:
    """A restored etcd shows its old ``applied``; a rebuilt one gets a new ``applied``, perhaps a lower one."""
    diary = Diary()
    await leader.apply(platform=b"old")
    async with mirroring(store, leader.keys, diary=diary, below=(0, 9)) as mirror:
        await eventually(lambda: "older" in diary.reasons)
        assert mirror.state is None
        applied = await leader.apply(platform=b"rebuilt")
        assert held(await at(mirror, applied.commit)) == {"platform": b"rebuilt"}


async def test_a_rewritten_branch_is_followed_to_a_lower_height(store: EtcdStore, leader: Leader) -> None:
    await leader.apply(platform=b"p")
    await leader.apply(platform=b"p2")
    rewritten = replace(leader.applied, id="rewritten", commit=commit_id(77), height=1, rewrites=1, changed=None)
    await leader.write(rewritten, *leader.operations("platform", b"p3"))
    async with mirroring(store, leader.keys, below=(0, 2)) as mirror:
        assert held(await at(mirror, rewritten.commit)) == {"platform": b"p3"}


async def test_where_something_is_served_an_empty_etcd_takes_nothing_away(store: EtcdStore, leader: Leader) -> None:
    diary = Diary()
    async with mirroring(store, leader.keys, diary=diary, below=(0, 1)) as mirror:
        await eventually(lambda: "nothing_applied" in diary.reasons)
        assert mirror.state is None


async def test_a_restored_etcd_moves_nobody_back_until_the_leader_has_written_again(etcd: EtcdServer) -> None:
    store, diary = EtcdStore([etcd.endpoint]), Diary()
    leader = Leader(store, Keyspace())
    old = await leader.apply(platform=b"old")
    etcd.stop()
    shutil.copytree(etcd.folder / "data", etcd.folder / "backup")
    etcd.start()
    for number in range(5):
        await leader.apply(platform=b"newest", projects__a=str(number).encode())
    async with mirroring(store, leader.keys, diary=diary) as mirror:
        newest = await at(mirror, leader.applied.commit)
        etcd.stop()
        etcd.wipe()
        shutil.copytree(etcd.folder / "backup", etcd.folder / "data")
        etcd.start()
        await eventually(lambda: "older" in diary.reasons, SECONDS)
        assert mirror.state is newest
        leader.applied = replace(old, height=newest.applied.height if newest.applied else 0)
        applied = await leader.apply(told=False, platform=b"again")
        assert held(await at(mirror, applied.commit)) == {"platform": b"again"}
    await store.aclose()


async def test_without_etcd_the_state_stays_and_is_stale_and_afterwards_nothing_is_missing(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    leader = Leader(store, Keyspace())
    await leader.apply(platform=b"p")
    async with mirroring(store, leader.keys) as mirror:
        assert mirror.stale_since is not None
        former = await at(mirror, leader.applied.commit)
        assert mirror.stale_since is None
        etcd.stop()
        await eventually(lambda: mirror.stale_since is not None)
        assert mirror.state is former
        etcd.start()
        await eventually(lambda: mirror.stale_since is None)
        await at(mirror, (await leader.apply(platform=b"p2")).commit)
    await store.aclose()


async def test_policies_at_their_size_limits_are_mirrored(store: EtcdStore, leader: Leader) -> None:
    content = Content(rego("projects/big", "x" * (500 << 10)), b'{"y": "' + b"y" * (1 << 20) + b'"}')
    for number in range(20):
        await leader.commit(*leader.operations(f"projects/big{number}", content))
    applied = await leader.apply(platform=b"p")
    async with mirroring(store, leader.keys) as mirror:
        state = await at(mirror, applied.commit)
        assert state.policies[policy_name("projects/big7")].content == content


async def test_a_restored_etcd_that_has_written_as_much_since_is_followed_too(etcd: EtcdServer) -> None:
    """No counter tells it from the one before: what it applied at revisions that were watched already was missed until
    the next apply. So who watches looks again when its connection comes back."""
    direct = EtcdStore([etcd.endpoint])
    leader = Leader(direct, Keyspace())
    old = await leader.apply(platform=b"old")
    await asyncio.to_thread(etcd.stop)
    await asyncio.to_thread(etcd.save)
    await asyncio.to_thread(etcd.start)
    async with proxy_to(etcd.port) as proxy:
        store = EtcdStore([proxy.endpoint])
        async with mirroring(store, leader.keys) as mirror:
            await at(mirror, old.commit)
            for number in range(5):
                await at(mirror, (await leader.apply(platform=b"lost %d" % number)).commit)
            proxy.mode = Mode.REFUSE
            proxy.cut()
            await asyncio.to_thread(etcd.stop)
            await asyncio.to_thread(etcd.restore)
            await asyncio.to_thread(etcd.start)
            other = EtcdStore([etcd.endpoint])  # one that has never seen what was lost
            again = Leader(other, leader.keys, branch=100)
            again.applied = replace(leader.applied, id="restored")
            new = await again.apply(platform=b"new", told=False)
            while (await other.read()).revision < 50:
                await other.commit(Transaction((), (Put("/other", b"x"),)))
            await other.aclose()
            proxy.mode = Mode.PASS
            assert held(await at(mirror, new.commit)) == {"platform": b"new"}
        await store.aclose()
    await direct.aclose()
