"""A real etcd, the agent, a real OPA."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from agent.leader import Leader, keyspace_of, rego
from fixtures.etcd import EtcdServer, eventually
from fixtures.opa import OpaServer
from prometheus_client import CollectorRegistry

from reconciler.adapters.etcd import EtcdStore
from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.disk import Disk
from reconciler.agent.opa_config import opa_config
from reconciler.agent.scope import ALL, Scope
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import Content
from reconciler.core.ports import KeyValueStore, Range
from reconciler.core.records import Receipt
from reconciler.core.tracing import NO_TRACER, Attribute, NoTracer, Tracer, traceparent

SECONDS = 15
BROKEN = b"package projects.a\n\nvalue := {\n"


class Site:
    """One agent and its OPA, and what the fleet can read of them."""

    def __init__(self, folder: Path, opa: OpaServer, leader: Leader, store: KeyValueStore) -> None:
        self.folder = folder
        self.opa = opa
        self.leader = leader
        self.store = store
        self.registry = CollectorRegistry()
        self._ports: list[int] = []

    @contextlib.asynccontextmanager
    async def agent(
        self, scope: Scope = ALL, min_opa_version: str | None = None, tracer: Tracer = NO_TRACER
    ) -> AsyncIterator[Agent]:
        """An agent on the same port and folder each time."""
        self.registry = CollectorRegistry()
        config = AgentConfig(
            datacentre="east",
            id="one",
            state_dir=self.folder,
            port=self._ports[0] if self._ports else 0,
            scope=scope,
            min_opa_version=min_opa_version,
        )
        whole = Agent(self.store, config, keyspace=self.leader.keys, registry=self.registry, tracer=tracer)
        async with whole.running() as agent:
            if not self._ports:
                self._ports.append(int(agent.url.rpartition(":")[2]))
                self.opa.config = opa_config(agent.url)
                await self.opa.start()
            yield agent

    async def receipt(self) -> Receipt | None:
        (found,) = (await self.store.read(Range(self.leader.keys.receipt("east", "one")))).ranges
        return Receipt.decode(found[0].value) if found else None

    async def alive(self) -> bool:
        (found,) = (await self.store.read(Range(self.leader.keys.alive("east", "one")))).ranges
        return bool(found) and found[0].lease > 0

    async def until_enforced(self, revision: str | None) -> Receipt:
        last: list[Receipt | None] = [None]

        async def enforced() -> bool:
            last[0] = await self.receipt()
            return last[0] is not None and last[0].enforced_revision == revision

        await eventually(enforced, SECONDS)
        assert last[0] is not None
        return last[0]

    def count(self, name: str) -> float:
        return self.registry.get_sample_value(f"regops_agent_{name}") or 0.0


@pytest.fixture
def site(tmp_path: Path, opa: OpaServer, store: EtcdStore, prefix: str) -> Site:
    return Site(tmp_path / "agent", opa, Leader(store, keyspace_of(prefix)), store)


async def test_what_is_applied_becomes_the_decision_and_the_receipt(site: Site) -> None:
    first = await site.leader.apply(platform=rego("platform", 1), projects__a=rego("projects/a", "one"))
    async with site.agent():
        receipt = await site.until_enforced(first.commit)
        assert await site.opa.query("projects/a/value") == "one"
        assert await site.opa.revision() == first.commit
        assert await site.opa.healthy()
        second = await site.leader.apply(
            projects__a=Content(b"package projects.a\n\nvalue := data.projects.a.given\n", b'{"given": "two"}'),
            platform=None,
        )
        receipt = await site.until_enforced(second.commit)
        assert await site.opa.query("projects/a/value") == "two"
        assert await site.opa.query("platform/value") is None
    assert (receipt.scope, receipt.error, receipt.stale) == ("all", None, False)
    assert receipt.stages is not None
    assert receipt.stages["mirrored_at"] <= receipt.stages["served_at"] <= receipt.stages["enforced_at"]
    assert receipt.since >= receipt.stages["served_at"]


async def test_where_nothing_was_applied_the_empty_bundle_is_active(site: Site) -> None:
    async with site.agent():
        await site.until_enforced("none")
        assert await site.opa.healthy()
        assert await site.opa.revision() == "none"
        applied = await site.leader.apply(platform=rego("platform", 1))
        await site.until_enforced(applied.commit)
        assert await site.opa.query("platform/value") == 1


async def test_policy_and_data_of_one_commit_change_together(site: Site) -> None:
    """Every answer must join the rego and the data of the same commit, in every policy of that commit."""

    def side(number: int, policy: str) -> Content:
        package = policy.replace("/", ".")
        text = f"package {package}\n\npair := [{number}, data.{package}.number, data.platform.number]\n"
        return Content(text.encode(), json.dumps({"number": number}).encode())

    async def flip(number: int) -> str:
        a, platform = side(number, "projects/a"), side(number, "platform")
        return (await site.leader.apply(platform=platform, projects__a=a)).commit

    async with site.agent():
        await site.until_enforced(await flip(0))
        seen: list[list[int]] = []

        async def hammer() -> None:
            while True:
                seen.append(await site.opa.query("projects/a/pair"))

        hammers = [asyncio.create_task(hammer()) for _ in range(3)]
        for number in range(1, 12):
            await site.until_enforced(await flip(number))
        for task in hammers:
            task.cancel()
        await asyncio.gather(*hammers, return_exceptions=True)
    assert {tuple(pair) for pair in seen} >= {(number,) * 3 for number in (1, 5, 11)}
    assert all(len(set(pair)) == 1 for pair in seen)


async def test_rego_v0_and_v1_live_in_one_bundle(site: Site) -> None:
    await site.leader.apply(platform=rego("platform", 1), projects__a=b"package projects.a\n\nv1 if input.x == 1\n")
    v0 = b"package projects.b\n\nv0 { input.x == 1 }\n"
    applied = await site.leader.apply(
        rego_version=0, projects__b=v0, projects__c_d=b'package projects["c-d"]\n\nv { true }\n'
    )
    async with site.agent():
        await site.until_enforced(applied.commit)
        assert await site.opa.query("projects/a/v1", {"x": 1}) is True
        assert await site.opa.query("projects/b/v0", {"x": 1}) is True
        assert await site.opa.query("projects/c-d/v") is True


async def test_a_refused_bundle_is_not_sent_again_and_the_former_decision_stays(site: Site) -> None:
    first = await site.leader.apply(projects__a=rego("projects/a", "good"))
    async with site.agent():
        await site.until_enforced(first.commit)
        await site.leader.apply(projects__a=BROKEN)

        async def refused() -> bool:
            receipt = await site.receipt()
            return receipt is not None and receipt.error is not None and receipt.enforced_revision == first.commit

        await eventually(refused, SECONDS)
        sent = site.count("bundles_sent_total")
        await asyncio.sleep(1.5)  # OPA's own retries would come after 0.1, 0.2, 0.5 s
        assert site.count("bundles_sent_total") == sent <= 3
        receipt = await site.receipt()
        assert receipt is not None
        assert "projects/a/rego.rego" in (receipt.error or "")
        assert await site.opa.query("projects/a/value") == "good"
        healed = await site.leader.apply(projects__a=rego("projects/a", "better"))
        assert (await site.until_enforced(healed.commit)).error is None
        assert await site.opa.query("projects/a/value") == "better"


async def test_an_opa_that_refuses_its_first_bundle_takes_the_next_one(site: Site) -> None:
    await site.leader.apply(projects__a=BROKEN)
    async with site.agent():

        async def refused() -> bool:
            receipt = await site.receipt()
            return receipt is not None and receipt.error is not None

        await eventually(refused, SECONDS)
        healed = await site.leader.apply(projects__a=rego("projects/a", "good"))
        assert (await site.until_enforced(healed.commit)).error is None
        assert site.count("bundles_sent_total") <= 4


async def test_a_restarted_opa_withdraws_the_receipt_and_gets_the_same_bundle_again(site: Site) -> None:
    applied = await site.leader.apply(projects__a=rego("projects/a", 1))
    async with site.agent():
        await site.until_enforced(applied.commit)
        await site.opa.kill()
        await site.until_enforced(None)
        await site.opa.start()
        await site.until_enforced(applied.commit)
        assert await site.opa.query("projects/a/value") == 1


async def test_a_commit_that_changes_nothing_in_scope_moves_the_receipt_and_activates_nothing(site: Site) -> None:
    first = await site.leader.apply(platform=rego("platform", 1), projects__a=rego("projects/a", 1))
    async with site.agent(Scope.of_projects(["a"])):
        assert (await site.until_enforced(first.commit)).scope == "projects:a"
        second = await site.leader.apply(projects__b=rego("projects/b", 1))
        await site.until_enforced(second.commit)
        assert site.count("bundles_sent_total") == 1
        assert await site.opa.revision() == first.commit
        assert await site.opa.query("projects/b/value") is None
        third = await site.leader.apply(projects__a=rego("projects/a", 2))
        await site.until_enforced(third.commit)
        assert await site.opa.revision() == third.commit


async def test_a_shard_activates_what_is_its_own_and_its_receipt_moves_on_with_the_rest(site: Site) -> None:
    """Project a is in shard 1 of 2, p9999 in shard 2."""
    first = await site.leader.apply(
        platform=rego("platform", 1), projects__a=rego("projects/a", 1), projects__p9999=rego("projects/p9999", 1)
    )
    async with site.agent(Scope.parse("shard:1/2")) as agent:
        assert (await site.until_enforced(first.commit)).scope == "shard:1/2"
        assert agent.mirror.state is not None
        assert set(agent.mirror.state.policies) == {"platform", "projects/a"}, "no more is in memory"
        assert await site.opa.query("projects/a/value") == 1
        assert await site.opa.ask("projects/p9999") == await site.opa.ask("projects/unknown")
        assert "result" not in await site.opa.ask("projects/p9999")
        second = await site.leader.apply(projects__p9999=rego("projects/p9999", 2))
        await site.until_enforced(second.commit)
        assert site.count("bundles_sent_total") == 1
        assert await site.opa.revision() == first.commit
        third = await site.leader.apply(projects__a=None, platform=rego("platform", 2))
        await site.until_enforced(third.commit)
        assert await site.opa.query("platform/value") == 2
        assert await site.opa.query("projects/a/value") is None


async def test_an_agent_of_another_number_of_shards_does_not_serve_the_copy_of_before(
    tmp_path: Path, opa: OpaServer, etcd: EtcdServer
) -> None:
    """Its projects are others: what the old copy lacks would be taken for undefined."""
    store = EtcdStore([etcd.endpoint])
    site = Site(tmp_path / "agent", opa, Leader(store, Keyspace()), store)
    applied = await site.leader.apply(platform=rego("platform", 1), projects__a=rego("projects/a", 1))
    async with site.agent(Scope.parse("shard:1/2")):
        await site.until_enforced(applied.commit)
    etcd.stop()
    await site.opa.kill()
    async with site.agent(Scope.parse("shard:1/3")) as agent, aiohttp.ClientSession() as session:
        async with session.get(f"{agent.url}/readyz") as answer:
            assert (answer.status, (await answer.json())["revision"]) == (503, None)
        etcd.start()
        await site.opa.start()
        await site.until_enforced(applied.commit)
        assert await site.opa.query("projects/a/value") == 1
    await store.aclose()


async def test_an_opa_older_than_the_compiler_is_an_error(site: Site) -> None:
    applied = await site.leader.apply(platform=rego("platform", 1))
    async with site.agent(min_opa_version="99.0.0"):
        await site.until_enforced(applied.commit)

        async def told() -> bool:
            receipt = await site.receipt()
            return receipt is not None and (receipt.error or "").startswith("OpaTooOld")

        await eventually(told, SECONDS)


async def test_an_agent_is_alive_under_a_lease_until_it_stops_and_keeps_its_receipt(site: Site) -> None:
    applied = await site.leader.apply(platform=rego("platform", 1))
    async with site.agent():
        await site.until_enforced(applied.commit)
        await eventually(site.alive)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    assert not await site.alive()
    receipt = await site.receipt()
    assert receipt is not None
    assert receipt.enforced_revision == applied.commit


async def test_with_etcd_away_a_restarted_agent_serves_its_copy_and_says_that_it_is_stale(
    tmp_path: Path, opa: OpaServer, etcd: EtcdServer
) -> None:
    store = EtcdStore([etcd.endpoint])
    site = Site(tmp_path / "agent", opa, Leader(store, Keyspace()), store)
    applied = await site.leader.apply(platform=rego("platform", 1))
    async with site.agent():
        await site.until_enforced(applied.commit)
    etcd.stop()
    await site.opa.kill()
    begun = time.monotonic()
    async with site.agent() as agent:
        await site.opa.start()
        await eventually(site.opa.healthy, SECONDS)
        assert await site.opa.query("platform/value") == 1
        assert agent.stale
        assert site.count("stale") == 1
        assert time.monotonic() - begun < 5
        etcd.start()
        site.leader.applied = applied
        await site.leader.apply(platform=rego("platform", 2))
        await site.until_enforced(site.leader.applied.commit)
        assert not agent.stale
        assert await site.opa.query("platform/value") == 2
    await store.aclose()


async def test_a_restarted_agent_goes_back_to_no_older_commit_than_its_copy(
    site: Site, store: EtcdStore, prefix: str
) -> None:
    await site.leader.apply(platform=rego("platform", 1))
    newest = await site.leader.apply(platform=rego("platform", 2))
    async with site.agent():
        await site.until_enforced(newest.commit)
    restored = Leader(store, keyspace_of(f"{prefix}restored"), branch=1000)
    await restored.apply(platform=rego("platform", 1))
    site.leader = restored
    async with site.agent():
        await site.until_enforced(newest.commit)
        assert await site.opa.query("platform/value") == 2
        assert site.registry.get_sample_value("regops_agent_mirror_kept_total", {"reason": "older"}) == 1
        await restored.apply(platform=rego("platform", 3))
        await site.until_enforced(restored.applied.commit)
        assert await site.opa.query("platform/value") == 3


# --- traces ----------------------------------------------------------------------------------------------------------


class Spans(NoTracer):
    """Keeps what is recorded: name and trace id of each."""

    enabled = True

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def record(
        self,
        name: str,
        start: datetime,
        end: datetime,
        parent: str | None = None,
        *,
        link: str | None = None,
        **attributes: Attribute,
    ) -> None:
        assert link is None
        assert start.tzinfo is not None
        assert end.tzinfo is not None
        assert attributes["regops__agent"] == "one"
        self.found.append((name, parent[3:4] if parent and parent == traceparent(parent) else "malformed"))

    def of(self, digit: str) -> list[str]:
        return [name for name, trace in self.found if trace == digit]


WAY = ["regops.agent.read", "regops.agent.serve", "opa.activate"]


def traced(leader: Leader, digit: object, at: str | None = None) -> None:
    """From now on commits are applied in this trace, and at this time."""
    trace = f"00-{digit * 32}-{'2' * 16}-01" if isinstance(digit, str) else digit
    now = datetime.now(UTC).isoformat()
    leader.applied = replace(leader.applied, trace=trace, at=now if at is None else at)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trace", "at"),
    [("nonsense", None), (7, None), ("3", "yesterday"), ("3", 5), ("3", "2026-01-01T00:00:00"), ("", "")],
)
async def test_a_trace_or_time_that_is_none_costs_a_trace_and_nothing_else(site: Site, trace: object, at: str) -> None:
    """Where somebody traced, the agent ended with the first `applied` whose time or trace it could not read, and again
    after each restart."""
    spans = Spans()
    first = await site.leader.apply(platform=rego("platform", 1))
    async with site.agent(tracer=spans):
        await site.until_enforced(first.commit)
        traced(site.leader, trace, at)
        odd = await site.leader.apply(platform=rego("platform", 2))
        await site.until_enforced(odd.commit)
        same = await site.leader.apply()  # its content is served already: the proof comes with the offer
        await site.until_enforced(same.commit)
        traced(site.leader, "4")
        sound = await site.leader.apply(platform=rego("platform", 3))
        await site.until_enforced(sound.commit)
    assert spans.of("4") == WAY
    assert "regops.agent.read" not in spans.of("3"), "nobody knows when that began"
    assert spans.of("malformed") == []


async def test_what_an_agent_finds_at_its_start_is_no_part_of_a_trace(site: Site) -> None:
    """An agent that was started days after the last commit told of a span of days."""
    traced(site.leader, "3", "2026-01-01T00:00:00Z")
    spans = Spans()
    old = await site.leader.apply(platform=rego("platform", 1))
    async with site.agent(tracer=spans):
        await site.until_enforced(old.commit)
    async with site.agent(tracer=spans):
        await site.until_enforced(old.commit)
        assert spans.found == []
        traced(site.leader, "4")
        new = await site.leader.apply(platform=rego("platform", 2))
        await site.until_enforced(new.commit)
    assert spans.of("4") == WAY
    async with site.agent(tracer=spans):
        await site.until_enforced(new.commit)
    assert len(spans.found) == len(WAY), "what OPA has from before the restart is not told again"


async def test_a_restart_between_disk_and_proof_does_not_lose_the_trace(site: Site) -> None:
    """The bundle on disk has no trace, and what etcd said of the same commit afterwards was not looked at."""
    spans = Spans()
    first = await site.leader.apply(platform=rego("platform", 1))
    async with site.agent(tracer=spans):
        await site.until_enforced(first.commit)
        await site.opa.kill()
        traced(site.leader, "4")
        second = await site.leader.apply(platform=rego("platform", 2))

        async def saved() -> bool:
            found = await asyncio.to_thread(Disk(site.folder).load)
            return found is not None and found.commit == second.commit

        await eventually(saved)
    assert spans.found == []
    async with site.agent(tracer=spans) as agent:
        await eventually(lambda: agent.mirror.state is not None)
        await site.opa.start()
        await site.until_enforced(second.commit)
    assert spans.of("4") == WAY[1:], "it was read by the process before"
