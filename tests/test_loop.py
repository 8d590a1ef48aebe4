"""When passes run, and what the status says of them: the real loop on etcd and OPA, with a source whose moments the
test chooses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio
from fakes.source import InMemorySource
from fixtures.engine import Engine
from fixtures.etcd import EtcdServer
from fixtures.opa import find_opa

from reconciler.adapters.opa import OpaCompiler
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import project_policy
from reconciler.core.ports import Delete, Transaction
from reconciler.core.records import Applied, Confirmed
from reconciler.loop import HOOKS_TRUSTED, again, next_look, poll_of
from reconciler.settings import GitSettings, LoopSettings
from reconciler.triggers import Kind, Trigger

pytestmark = pytest.mark.asyncio(loop_scope="module")

A = project_policy("a")
Start = Callable[..., Engine]


def without_log(keys: Iterable[str]) -> set[str]:
    """Entries of the log of passes have names of their own each time."""
    return {key for key in keys if not key.startswith("passes/")}


def says(word: str, project: str = "a") -> dict[str, bytes]:
    return {f"policies/projects/{project}/rego.rego": f'package projects.{project}\n\nmark := "{word}"\n'.encode()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compiler() -> AsyncIterator[OpaCompiler]:
    async with OpaCompiler(find_opa()) as compiler:
        yield compiler


@pytest.fixture
def source() -> InMemorySource:
    source = InMemorySource()
    source.commit(says("first"))
    return source


@pytest.fixture
def start(tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler, source: InMemorySource) -> Start:
    """Engines that follow `source`, one after the other on the same etcd keys. Only triggers make them look."""
    return lambda **more: Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, **more)


# --- triggers and passes ---------------------------------------------------------------------------------------------


async def test_a_hundred_triggers_while_a_pass_runs_are_one_more_pass(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        gate = source.hold("fetch")
        before = source.calls["fetch"]
        engine.push()
        await engine.until(lambda: source.calls["fetch"] == before + 1)
        for _ in range(100):
            engine.push()
        gate.set()
        await engine.until(lambda: source.calls["fetch"] == before + 2)
        await asyncio.sleep(0.1)  # a further pass takes a few milliseconds
        assert source.calls["fetch"] == before + 2
        assert engine.metric("triggers_total", kind="push") == 2


async def test_polling_stretches_out_while_webhooks_arrive_and_shortens_when_they_stop() -> None:
    git = GitSettings(remote="memory:", poll_interval=30)
    assert poll_of(git, None, 1000) == 30
    assert poll_of(git, 1000, 1000 + HOOKS_TRUSTED) == 600
    assert poll_of(git, 1000, 1001 + HOOKS_TRUSTED) == 30
    assert poll_of(GitSettings(remote="memory:", poll_interval=900), 1000, 1000) == 900


async def test_while_webhooks_come_the_loop_leaves_the_looking_to_them(start: Start, source: InMemorySource) -> None:
    async with start(poll=0.05, hooked_poll=60).running() as engine:
        await engine.settled()
        await engine.until(lambda: engine.metric("triggers_total", kind="poll") > 2)
        engine.mailbox.put(Kind.HOOK)
        await engine.until(lambda: engine.metric("triggers_total", kind="hook") == 1)
        looks, fetches = engine.metric("triggers_total", kind="poll"), source.calls["fetch"]
        await asyncio.sleep(0.5)  # ten polls, were they not stretched
        assert engine.metric("triggers_total", kind="poll") == looks
        assert source.calls["fetch"] <= fetches + 1
        told = source.commit(says("told"))
        engine.mailbox.put(Kind.HOOK)
        await engine.until_applied(told)
        assert engine.metric("triggers_total", kind="poll") == looks


async def test_what_a_standby_saw_before_it_leads_is_no_trigger_of_its_own(start: Start) -> None:
    """It waited in the mailbox, and a commit that came much later was said to be seen then: hours from push to etcd."""
    engine = start()
    engine.mailbox.put(Kind.PUSH)
    async with engine.running():
        await engine.settled()
        assert engine.metric("triggers_total", kind="push") == 0


async def test_a_commit_that_no_webhook_told_of_ends_the_trust_in_them(start: Start, source: InMemorySource) -> None:
    """The host was told another address, or its hooks were switched off."""
    async with start(poll=0.1, hooked_poll=0.1).running() as engine:
        await engine.settled()
        engine.mailbox.put(Kind.HOOK)
        looks = engine.metric("triggers_total", kind="poll")
        await engine.until(lambda: engine.metric("triggers_total", kind="poll") > looks + 1)
        assert engine.mailbox.hooked_at is not None, "nothing has happened that a hook had to tell"
        untold = source.commit(says("untold"))
        await engine.until_applied(untold)
        await engine.until(lambda: engine.mailbox.hooked_at is None)


async def handled(engine: Engine, token: str) -> bool:
    status = await engine.status()
    return status is not None and status.last_handled_reconcile_at == token


async def test_a_push_while_a_pass_runs_is_not_missed(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        gate = source.hold("tree")
        source.commit(says("second"))
        await engine.ask("1")
        await engine.until(lambda: source.calls["tree"] == 2)
        third = source.commit(says("third"))
        await engine.ask("2")
        gate.set()
        await engine.until_applied(third)


async def test_a_request_is_handled_and_its_token_told(start: Start) -> None:
    async with start().running() as engine:
        await engine.settled()
        await engine.ask("look-1")
        await engine.until(lambda: handled(engine, "look-1"), 3)


async def test_a_request_whose_pass_fails_is_handled_too(start: Start, source: InMemorySource) -> None:
    """`regops sync --wait` once waited its whole minute for a remote that was away, and then could not say why."""
    async with start(loop=LoopSettings(backoff_min=60, backoff_max=60)).running() as engine:
        await engine.settled()
        source.fail("fetch", TransientError("away", reason="FetchFailed"))
        await engine.ask("look-1")
        await engine.until(lambda: handled(engine, "look-1"), 3)
        assert (await engine.conditions())["FetchFailed"].message == "away"


# --- what a failure means for the next pass --------------------------------------------------------------------------


class Timed(InMemorySource):
    """Knows when it was fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    async def fetch(self, *, told: bool = True) -> str:
        self.times.append(monotonic())
        return await super().fetch(told=told)


async def test_backoff_doubles_has_jitter_and_ends_with_the_fault(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler
) -> None:
    source = Timed()
    head = source.commit(says("first"))
    source.fail("fetch", *(TransientError("away", reason="FetchFailed") for _ in range(6)))
    loop = LoopSettings(backoff_min=0.05)
    async with Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, loop=loop).running() as engine:
        await engine.until_applied(head)
        assert engine.passes("transient") == 6
    gaps = [after - before for before, after in zip(source.times[1:], source.times[2:7], strict=False)]
    assert all(gap >= 0.05 * 2**doubled / 2 for doubled, gap in enumerate(gaps, 1)), gaps


async def test_a_wait_is_between_half_and_the_whole_of_the_doubled_one_and_never_above_the_poll() -> None:
    settings = LoopSettings(backoff_min=0.5, backoff_max=30)
    for poll in (1.0, 10.0, 60.0):
        for failures in range(1, 40):
            whole = min(0.5 * 2 ** (failures - 1), 30.0, poll)
            waits = {next_look(failures, poll, settings) for _ in range(50)}
            assert len(waits) == 50
            assert all(whole / 2 <= wait <= whole for wait in waits)
        assert all(0.9 * poll <= next_look(0, poll, settings) <= 1.1 * poll for _ in range(50))


async def test_what_a_failed_pass_was_triggered_by_is_what_its_repetition_is_measured_from(
    start: Start, source: InMemorySource
) -> None:
    """The repetition began anew, as a poll: an outage was in no measure of how long a change took, and the trace of
    what had told of it ended."""
    async with start(loop=LoopSettings(backoff_min=0.1)).running() as engine:
        await engine.settled()
        head = source.commit(says("second"))
        source.fail("fetch", TransientError("no route to host", reason="FetchFailed"))
        source.fail("tree", TransientError("no route to host", reason="FetchFailed"))
        engine.mailbox.put(Kind.HOOK)
        await engine.until(lambda: engine.passes("transient") == 2)
        failed = datetime.now(UTC)
        await engine.until_applied(head)
        await engine.until_ready("True")
        status = await engine.status()
        assert status is not None
        assert status.last_apply is not None
        assert (status.last_apply["commit"], status.last_apply["trigger"]) == (head, "hook")
        assert datetime.fromisoformat(status.last_apply["seen_at"]) < failed
        assert engine.mailbox.hooked_at is not None, "the webhook did tell of it"
        assert engine.metric("pass_seconds_count", outcome="transient") == 2


async def test_a_poll_that_saw_nothing_is_no_beginning_of_a_change(start: Start, source: InMemorySource) -> None:
    """Who could not reach the remote knows of no commit: one that is pushed later is as old as that."""
    async with start(poll=0.2, loop=LoopSettings(backoff_min=0.1)).running() as engine:
        await engine.settled()
        source.fail("fetch", TransientError("no route to host", reason="FetchFailed"))
        await engine.until(lambda: engine.passes("transient") == 1)
        pushed = datetime.now(UTC)
        head = source.commit(says("second"))
        await engine.until_applied(head)
        await engine.until_ready("True")
        status = await engine.status()
        assert status is not None
        assert status.last_apply is not None
        assert datetime.fromisoformat(status.last_apply["seen_at"]) > pushed - timedelta(milliseconds=1)


async def test_a_later_look_keeps_its_own_kind_and_the_first_ones_time_and_trace() -> None:
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    hook = Trigger(Kind.HOOK, early, trace="t")
    assert again(hook, Trigger(Kind.POLL, late)) == Trigger(Kind.HOOK, early, trace="t")
    assert again(hook, Trigger(Kind.REQUEST, late, trace="u")) == Trigger(Kind.REQUEST, early, trace="t")
    assert again(Trigger(Kind.POLL, early), Trigger(Kind.API, late, fetch=False, trace="u")) == Trigger(
        Kind.API, early, fetch=False, trace="u"
    )


async def test_a_trigger_cuts_the_backoff_short(start: Start, source: InMemorySource) -> None:
    async with start(loop=LoopSettings(backoff_min=60, backoff_max=60)).running() as engine:
        await engine.settled()
        source.fail("fetch", TransientError("away", reason="FetchFailed"))
        await engine.ask("1")
        await engine.until_ready("False")
        head = source.commit(says("second"))
        await engine.ask("2")
        assert await engine.until_applied(head, 3) < 3


async def test_a_stalled_pass_is_not_repeated_until_something_new_comes(start: Start, source: InMemorySource) -> None:
    async with start(loop=LoopSettings(backoff_min=0.01, backoff_max=0.02)).running() as engine:
        await engine.settled()
        source.fail("fetch", StalledError("no", reason="AuthenticationFailed"))
        await engine.ask("1")
        await engine.until(lambda: engine.passes("stalled") == 1)
        fetched = source.calls["fetch"]
        await asyncio.sleep(0.3)  # fifteen times the longest backoff
        assert source.calls["fetch"] == fetched
        head = source.commit(says("second"))
        await engine.ask("2")
        await engine.until_applied(head)


async def touch_applied(engine: Engine) -> None:
    """Somebody writes ``applied``: whatever was planned on the former one conflicts."""
    applied = await engine.applied()
    assert applied is not None
    await engine.put(engine.keys.applied, applied.encode())


async def test_a_conflict_is_planned_again_at_once(start: Start, source: InMemorySource) -> None:
    async with start(loop=LoopSettings(backoff_min=60, backoff_max=60)).running() as engine:
        await engine.settled()
        gate = source.hold("tree")
        head = source.commit(says("second"))
        await engine.ask("1")
        await engine.until(lambda: source.calls["tree"] == 2)
        await touch_applied(engine)
        gate.set()
        await engine.until_applied(head, 3)
        assert engine.passes("conflict") == 1
        assert engine.passes("transient") == 0
        assert (await engine.until_ready("True"))["Ready"].status == "True"


class Contended(InMemorySource):
    """While ``engine`` is set, somebody else writes first in every pass."""

    engine: Engine | None = None

    async def height(self, commit: str) -> int:
        if self.engine is not None:
            await touch_applied(self.engine)
        return await super().height(commit)


async def test_conflicts_without_end_are_bounded_and_said(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler
) -> None:
    source = Contended()
    source.commit(says("first"))
    loop = LoopSettings(conflict_retries=3, backoff_min=60, backoff_max=60)
    async with Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, loop=loop).running() as engine:
        await engine.settled()
        source.engine = engine
        head = source.commit(says("second"))
        await engine.ask("1")
        conditions = await engine.until_ready("False", "Conflict")
        assert "somebody else wrote to etcd first" in conditions["Ready"].message
        assert conditions["Reconciling"].reason == "ProgressingWithRetry"
        assert engine.metric("pass_failures_total", reason="Conflict") == 1
        assert engine.passes("conflict") == 4, "each attempt once"
        assert source.calls["height"] == 1 + 1 + 3
        source.engine = None
        await engine.ask("2")
        await engine.until_applied(head)


async def test_a_defect_is_told_counted_and_survived(
    start: Start, source: InMemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    async with start().running() as engine:
        await engine.settled()
        source.fail("fetch", ZeroDivisionError("a defect"))  # type: ignore[arg-type]
        await engine.ask("1")
        conditions = await engine.until_ready("False", "InternalError")
        assert conditions["Ready"].message == "ZeroDivisionError: a defect"
        assert engine.metric("pass_failures_total", reason="InternalError") == 1
        assert "Traceback" in caplog.text
        await engine.ask("2")
        await engine.until_ready("True")


# --- a person's words ------------------------------------------------------------------------------------------------


async def test_a_suspension_is_observed_at_once_and_survives_the_replica(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        await engine.suspend()
        await engine.until(lambda: engine.passes("suspended") >= 1, 3)
        live = await engine.live()
        second = source.commit(says("second"))
        await engine.ask("1")
        await engine.until(lambda: handled(engine, "1"))
    async with start().running() as engine:
        await engine.settled()
        assert engine.passes("suspended") == engine.count()
        assert await engine.live() == live
        assert "Stalled" not in await engine.conditions()
        await engine.resume()
        await engine.until_applied(second, 3)
        assert (await engine.until_ready("True"))["Ready"].message == f"Applied revision: main@sha1:{second}"


async def test_a_hand_edit_during_a_suspension_is_told_and_healed_after_it(start: Start) -> None:
    async with start().running() as engine:
        await engine.settled()
        wanted = await engine.live()
        await engine.suspend()
        await engine.until(lambda: engine.passes("suspended") >= 1)
        await engine.edit(A, b"package projects.a\n\nevil := true\n")

        async def told() -> bool:
            return "Drifted" in await engine.conditions()

        await engine.until(told, 3)
        conditions = await engine.conditions()
        assert conditions["Ready"].status == "Unknown"
        assert "regops resume" in conditions["Ready"].message
        assert await engine.live() != wanted
        await engine.resume()
        await engine.until_ready("True")
        assert await engine.live() == wanted
        assert "Drifted" not in await engine.conditions()


async def test_a_hand_edit_is_healed_within_three_seconds(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    async with start().running() as engine:
        await engine.settled()
        wanted = await engine.live()
        await engine.edit(A, b"package projects.a\n\nevil := true\n")

        async def healed() -> bool:
            return await engine.live() == wanted

        await engine.until(healed, 3)
        await engine.until(lambda: engine.metric("drift_healed_total") == 1)
        assert engine.metric("triggers_total", kind="drift") == 2
        assert "hand edit healed" in caplog.text


async def test_foreign_keys_are_removed_when_asked_and_never_again(start: Start) -> None:
    """The request stays in etcd; a later leader once took it for a new one and deleted what was foreign by then."""
    async with start().running() as engine:
        await engine.settled()
        await engine.put(f"{engine.keys.policies}odd", b"1")
        await engine.until(lambda: engine.metric("foreign_keys") == 1)
        await engine.ask("clean", remove_foreign=True)

        async def gone() -> bool:
            return "odd" not in await engine.live()

        await engine.until(gone)
        await engine.until(lambda: handled(engine, "clean"))
        await engine.put(f"{engine.keys.policies}new", b"2")
        await engine.until(lambda: engine.metric("foreign_keys") == 1)
    async with start().running() as engine:
        await engine.settled()
        assert "new" in await engine.live()


# --- what is reported until it is over -------------------------------------------------------------------------------


async def test_a_rewritten_history_is_told_until_the_next_fast_forward(start: Start, source: InMemorySource) -> None:
    first = source.head
    async with start().running() as engine:
        await engine.settled()
        second = source.commit(says("second"))
        engine.push()
        await engine.until_applied(second)
        third = source.commit(says("third"), on=first)
        engine.push()
        await engine.until_applied(third)
        conditions = await engine.until_ready("True")
        assert conditions["HistoryRewritten"].status == "True"
        assert third in conditions["HistoryRewritten"].message
        await engine.ask("again")
        await engine.until(lambda: handled(engine, "again"))
        assert "HistoryRewritten" in await engine.conditions()
    async with start().running() as engine:
        await engine.settled()
        assert "HistoryRewritten" in await engine.conditions()
        fourth = source.commit(says("fourth"))
        engine.push()
        await engine.until_applied(fourth)
        await engine.until_ready("True")
        assert "HistoryRewritten" not in await engine.conditions()
        assert (await engine.applied() or Applied("", "", 0, 0, "", "")).rewrites == 1


async def test_a_confirmation_covers_its_deletions_at_later_heads_too(start: Start, source: InMemorySource) -> None:
    source.commit({path: text for n in range(6) for path, text in says("1", f"p{n}").items()})
    async with start().running() as engine:
        await engine.settled()
        head = source.commit({f"policies/projects/p{n}": None for n in range(4)})
        engine.push()
        await engine.until_applied(head)
        conditions = await engine.until_ready("False", "TooManyDeletions")
        assert f"regops sync --confirm {head}" in conditions["PruneBlocked"].message
        assert engine.metric("blocked_deletions") == 4
        assert len(await engine.live()) == 7
        later = source.commit(says("later"))
        confirmed = Confirmed(head, tuple(f"projects/p{n}" for n in range(4)), "me", "now")
        await engine.put(engine.keys.confirmed, confirmed.encode())
        await engine.until_applied(later)
        await engine.until_ready("True")
        assert set(await engine.live()) == {"projects/a/rego.rego", "projects/p4/rego.rego", "projects/p5/rego.rego"}
        assert engine.metric("blocked_deletions") == 0
        assert await engine.read(engine.keys.confirmed) == {}


async def test_a_block_ends_with_a_commit_that_no_longer_needs_it(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        source.commit({"policies/projects/a": None, "README.md": b"x"})
        engine.push()
        await engine.until_ready("False", "SourceEmpty")
        head = source.commit(says("back"))
        engine.push()
        await engine.until_applied(head)
        assert "PruneBlocked" not in await engine.until_ready("True")
        assert await engine.held() == {}


async def test_a_leader_whose_keys_somebody_deleted_leads_again_and_writes_all_of_them(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """`etcdctl del --prefix /regops/` takes the leader's key away but not its lease: the leader once went on renewing
    and every write of it failed for ever. And its status stayed away, since it had published the same one before."""
    async with start(lease_ttl=2).running() as engine:
        await engine.settled()
        await engine.until_ready("True")
        wanted = await engine.live()
        before = await engine.read(engine.keys.own, prefix=True)
        await engine.hand.commit(Transaction((), tuple(Delete(f"{engine.keys.own}{key}") for key in before)))
        await engine.until(lambda: engine.metric("triggers_total", kind="start") == 2)
        await engine.until_ready("True")
        assert without_log(await engine.read(engine.keys.own, prefix=True)) == without_log(before)
        assert await engine.live() == wanted
        assert "leading no more" in caplog.text


async def test_a_new_leadership_publishes_its_status_also_when_nothing_changed_since_its_last_one(start: Start) -> None:
    async with start(lease_ttl=2).running() as engine:
        await engine.settled()
        await engine.suspend()
        await engine.until(lambda: engine.passes("suspended") >= 1)
        await engine.until(lambda: engine.read(engine.keys.status))
        await engine.delete(engine.keys.status)
        await engine.delete(engine.keys.leader)
        await engine.until(lambda: engine.metric("triggers_total", kind="start") == 2)
        await engine.until(lambda: engine.read(engine.keys.status))


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fetch", "tree", "contains", "height", "contents", "last_change"])
async def test_a_shutdown_takes_no_time_whatever_the_pass_waits_for(
    start: Start, source: InMemorySource, where: str
) -> None:
    async with start().running() as engine:
        await engine.settled()
        source.hold(where)
        called = source.calls[where]
        source.commit(says("second"))
        await engine.ask("1")
        await engine.until(lambda: source.calls[where] > called)
        began = monotonic()
    assert monotonic() - began < 2
