"""The log of passes in etcd: what the leader did, when the fleet followed; on real etcd and OPA."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from fakes.source import InMemorySource
from fixtures.engine import Engine
from fixtures.etcd import EtcdServer
from fixtures.opa import find_opa

from reconciler.adapters.opa import OpaCompiler
from reconciler.core.errors import TransientError
from reconciler.core.fleet import MARKS
from reconciler.core.passes import PassRecord
from reconciler.core.ports import Put, Transaction
from reconciler.core.records import Receipt
from reconciler.core.times import rfc3339
from reconciler.pass_log import KEPT

pytestmark = pytest.mark.asyncio(loop_scope="module")
Start = Callable[..., Engine]


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
    return lambda **more: Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, **more)


async def logged(engine: Engine) -> list[PassRecord]:
    """The entries, newest first."""
    found = await engine.read(engine.keys.passes, prefix=True)
    return [PassRecord.decode(found[name]) for name in sorted(found, reverse=True)]


async def entry_of(engine: Engine, commit: str) -> PassRecord:
    found: list[PassRecord] = []

    async def there() -> bool:
        found[:] = [each for each in await logged(engine) if each.commit == commit]
        return bool(found)

    await engine.until(there)
    return found[0]


def failed_at_least(engine: Engine, times: int) -> bool:
    return engine.passes("transient") >= times


async def tell(engine: Engine, agent: str, commit: str | None, since: str, *, alive: bool = True) -> None:
    receipt = Receipt(agent, "east", "all", commit, since, seen_at=since)
    puts = [Put(engine.keys.receipt("east", agent), receipt.encode())]
    puts += [Put(engine.keys.alive("east", agent), b"{}")] if alive else []
    await engine.hand.commit(Transaction((), tuple(puts)))


def later(entry: PassRecord, seconds: float) -> str:
    at = datetime.fromisoformat(entry.applied_at or "") + timedelta(seconds=seconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_an_entry_says_what_a_pass_did_by_whom_and_how_long_it_took(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        first = await entry_of(engine, source.head or "")
        assert (first.outcome, first.trigger, first.created, first.leader) == ("applied", "start", 1, "me")
        before = source.head
        source.commit(says("b", "b"), message="b comes", author="Bob <bob@example.org>")
        head = source.commit(
            says("second") | {"policies/projects/c/rego.rego": b"oops"}, author="Ann <ann@example.org>"
        )
        engine.push()
        entry = await entry_of(engine, head)
        assert (entry.before, entry.trigger, entry.created, entry.updated, entry.held) == (before, "push", 1, 1, 1)
        assert {(each.policy, each.operation, each.actor) for each in entry.changes} == {
            ("projects/a", "update", "Ann <ann@example.org>"),
            ("projects/b", "create", "Bob <bob@example.org>"),
        }
        assert [each.author for each in entry.commits] == ["Ann <ann@example.org>", "Bob <bob@example.org>"]
        taken = entry.seconds()
        assert all(taken[name] is not None for name in ("fetch", "validate", "apply", "total"))
        head = source.commit({"policies/projects/b": None}, author="Eve <eve@example.org>")
        engine.push()
        (gone,) = (await entry_of(engine, head)).changes
        assert (gone.policy, gone.operation, gone.commit, gone.actor) == (
            "projects/b",
            "delete",
            head,
            "Eve <eve@example.org>",
        )


async def test_a_hand_edit_that_was_undone_is_in_the_log_and_a_pass_that_did_nothing_is_not(
    start: Start, source: InMemorySource
) -> None:
    async with start().running() as engine:
        await engine.settled()
        await entry_of(engine, source.head or "")
        passes = engine.count()
        engine.push()
        await engine.until(lambda: engine.count() > passes)
        await engine.hand.commit(Transaction((), (Put(f"{engine.keys.policies}projects/a/rego.rego", b"x"),)))

        async def healed() -> bool:
            return any(each.healed for each in await logged(engine))

        await engine.until(healed)
        newest, *others = await logged(engine)
        assert (newest.trigger, newest.healed, newest.updated) == ("drift", 1, 0)
        assert [each.operation for each in newest.changes] == ["heal"]
        assert not newest.moved
        assert len(others) == 1


async def test_failures_in_a_row_are_one_entry_with_their_number(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        source.fail("fetch", *[TransientError("no route to host", reason="FetchFailed")] * 3)
        for number in range(1, 4):
            engine.push()
            await engine.until(partial(failed_at_least, engine, number))
        head = source.commit(says("second"))
        engine.push()
        await entry_of(engine, head)
        failed = [each for each in await logged(engine) if each.outcome == "failed"]
        assert [(each.reason, each.message, each.count) for each in failed] == [("FetchFailed", "no route to host", 3)]


async def test_an_entry_tells_when_the_last_opa_had_proven_its_commit(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        first = await entry_of(engine, source.head or "")
        await tell(engine, "one", first.commit, later(first, 0.2))
        await tell(engine, "two", first.commit, later(first, 0.4))
        await tell(engine, "silent", "0" * 40, later(first, 0.0), alive=False)
        head = source.commit(says("second"))
        engine.push()
        entry = await entry_of(engine, head)
        await tell(engine, "one", head, later(entry, 0.1))
        assert (await entry_of(engine, head)).enforced is None, "two is behind"
        await tell(engine, "two", head, later(entry, 0.3))

        async def complete() -> bool:
            entry = await entry_of(engine, head)
            return entry.enforced is not None and entry.enforced.complete

        await engine.until(complete)
        entry = await entry_of(engine, head)
        assert entry.enforced is not None
        assert (entry.enforced.agents, entry.enforced.enforced) == (2, 2)
        assert entry.seconds()["enforced"] == 0.3


async def test_an_opa_that_went_on_to_a_later_commit_has_enforced_the_one_before_too(
    start: Start, source: InMemorySource
) -> None:
    async with start().running() as engine:
        await engine.settled()
        await tell(engine, "one", "0" * 40, "2026-01-01T00:00:00.000Z")
        middle = source.commit(says("second"))
        engine.push()
        await entry_of(engine, middle)
        last = source.commit(says("third"))
        engine.push()
        entry = await entry_of(engine, last)
        await tell(engine, "one", last, later(entry, 0.1))

        async def both() -> bool:
            known = {each.commit: each.enforced for each in await logged(engine)}
            return all((each := known[commit]) is not None and each.complete for commit in (middle, last))

        await engine.until(both)


async def test_the_next_leader_goes_on_with_the_log_and_only_the_newest_are_kept(
    start: Start, source: InMemorySource
) -> None:
    async with start().running() as engine:
        await engine.settled()
        first = await entry_of(engine, source.head or "")
        old = [replace(first, id=f"{number:014d}-0", commit=f"{number:040d}") for number in range(KEPT + 20)]
        for group in (old[:100], old[100:200], old[200:]):
            puts = tuple(Put(engine.keys.logged(each.id), each.encode()) for each in group)
            await engine.hand.commit(Transaction((), puts))
    async with start().running() as engine:
        await engine.settled()
        head = source.commit(says("second"))
        engine.push()
        await entry_of(engine, head)
        assert len(await logged(engine)) == KEPT
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        await tell(engine, "one", head, at)

        async def complete() -> bool:
            enforced = (await entry_of(engine, head)).enforced
            return enforced is not None and enforced.complete

        await engine.until(complete)


# --- what Prometheus sees of it --------------------------------------------------------------------------------------


async def test_each_opa_that_followed_is_observed_once_and_all_together_once(
    start: Start, source: InMemorySource
) -> None:
    async with start().running() as engine:
        await engine.settled()
        first = await entry_of(engine, source.head or "")
        for agent in ("one", "two"):
            await tell(engine, agent, first.commit, later(first, 0.1))
        await tell(engine, "starting", None, later(first, 0.1))
        await engine.until(lambda: engine.metric("fleet_agents", datacentre="east", state="current") == 2)
        applied = engine.metric("propagation_seconds_count", to="applied")
        head = source.commit(says("second"))
        engine.push()
        entry = await entry_of(engine, head)
        assert engine.metric("propagation_seconds_count", to="applied") == applied + 1
        assert engine.metric("propagation_seconds_count", to="enforced") == 0
        await tell(engine, "one", head, later(entry, 0.1))
        await engine.until(lambda: engine.metric("propagation_seconds_count", to="enforced") == 1)
        assert engine.metric("propagation_seconds_count", to="everywhere") == 0
        assert engine.metric("fleet_lag_seconds") > 0
        await tell(engine, "one", head, later(entry, 0.1))
        await tell(engine, "two", head, later(entry, 0.4))
        await engine.until(lambda: engine.metric("propagation_seconds_count", to="everywhere") == 1)
        assert engine.metric("propagation_seconds_count", to="enforced") == 2
        taken = engine.metric("propagation_seconds_sum", to="everywhere")
        assert taken == pytest.approx((entry.seconds()["total"] or 0) + 0.4, abs=0.01)
        assert engine.metric("fleet_lag_seconds") == 0
        await tell(engine, "starting", head, later(entry, 60.0))
        await engine.until(lambda: engine.metric("fleet_agents", datacentre="east", state="current") == 3)
        assert engine.metric("propagation_seconds_count", to="enforced") == 2, "it proved nothing when it was applied"


async def test_an_opa_that_activates_while_the_entry_is_written_is_observed(
    start: Start, source: InMemorySource
) -> None:
    """Its proof is withdrawn as soon as the bundle leaves for it, and the leader asks Git for names meanwhile: such an
    OPA was not awaited, so that propagation and lag were blind whenever things were slow."""
    async with start().running() as engine:
        await engine.settled()
        first = await entry_of(engine, source.head or "")
        for agent in ("one", "two"):
            await tell(engine, agent, first.commit, later(first, 0.1))
        await engine.until(lambda: engine.metric("fleet_agents", datacentre="east", state="current") == 2)
        git = source.hold("line")
        head = source.commit(says("second"))
        engine.push()
        await engine.until_applied(head)
        for agent in ("one", "two"):
            await tell(engine, agent, None, rfc3339(datetime.now(UTC)))
        await engine.until(lambda: engine.metric("fleet_agents", datacentre="east", state="unknown") == 2)
        git.set()
        entry = await entry_of(engine, head)
        await engine.until(lambda: engine.metric("fleet_lag_seconds") > 0)
        for agent in ("one", "two"):
            await tell(engine, agent, head, later(entry, 3.0))
        await engine.until(lambda: engine.metric("propagation_seconds_count", to="everywhere") == 1)
        assert engine.metric("propagation_seconds_count", to="enforced") == 2
        assert engine.metric("fleet_lag_seconds") == 0


async def test_the_fleet_is_counted_by_state_and_by_few_commits(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        head = source.head or ""
        await entry_of(engine, head)
        for number in range(8):
            await tell(engine, f"old-{number}", f"{number}" * 40, "2026-01-01T00:00:00.000Z")
        for agent in ("a", "b"):
            await tell(engine, agent, head, "2026-01-01T00:00:00.000Z")
        await tell(engine, "gone", head, "2026-01-01T00:00:00.000Z", alive=False)
        await tell(engine, "silent", head, rfc3339(datetime.now(UTC)), alive=False)
        await engine.until(lambda: engine.metric("fleet_agents", datacentre="east", state="behind") == 8)
        await engine.until(lambda: engine.metric("fleet_agents", datacentre="east", state="unknown") == 1)
        marks = {state: engine.metric("fleet_agents", datacentre="east", state=state) for state in MARKS}
        assert marks == {"current": 2, "behind": 8, "unknown": 1, "stale": 1, "errors": 0}
        assert engine.metric("fleet_receipts", commit=head[:12]) == 2
        shown = [sample for family in engine.registry.collect() for sample in family.samples]
        commits = {each.labels["commit"]: each.value for each in shown if each.name == "regops_fleet_receipts"}
        assert len(commits) == 6
        assert (sum(commits.values()), commits["other"]) == (10, 4)


async def test_a_replica_that_has_lost_the_lead_tells_nothing_of_the_fleet(
    start: Start, source: InMemorySource
) -> None:
    def current() -> float | None:
        return engine.registry.get_sample_value("regops_fleet_agents", {"datacentre": "east", "state": "current"})

    async with start().running() as engine:
        await engine.settled()
        await tell(engine, "one", source.head, "2026-01-01T00:00:00.000Z")
        await engine.until(lambda: current() == 1)
    assert current() is None


async def test_conditions_are_metrics(start: Start, source: InMemorySource) -> None:
    async with start().running() as engine:
        await engine.settled()
        assert engine.metric("condition", type="Ready") == 1
        source.commit({"policies/projects/a/rego.rego": b"oops"})
        engine.push()
        await engine.until(lambda: engine.metric("condition", type="ValidationFailed") == 1)
        assert (engine.metric("condition", type="Ready"), engine.metric("condition", type="PruneBlocked")) == (0, 0)
        assert engine.metric("last_pass_timestamp_seconds") > 0
