"""A platform that concerns more projects than other changes should wait for: it is proven beside the passes.

The real loop on etcd, Git's fake and OPA; the compiler waits where a test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
from fakes.source import InMemorySource
from fixtures.engine import Engine
from fixtures.etcd import EtcdServer, eventually
from fixtures.opa import find_opa
from prometheus_client import CollectorRegistry

from reconciler.adapters.opa import OpaCompiler
from reconciler.core.errors import TransientError
from reconciler.core.model import PLATFORM, BlobIds, PolicyName, Verdict, project_policy
from reconciler.core.ports import Candidate
from reconciler.metrics import LoopMetrics
from reconciler.progress import Progress, Works
from reconciler.proving import Prover
from reconciler.reconcile import PassResult
from reconciler.resolution import PLATFORM_PENDING, Pending, Resolution

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY = 6
"""Projects that refer to the platform, in a world where two are few."""
FREE, NEW = project_policy("free"), project_policy("new")
Start = Callable[..., Engine]


def lib(body: str) -> dict[str, bytes | None]:
    return {"policies/platform/rego.rego": f"package platform.lib\n\n{body}\n".encode()}


OLD, NEXT = lib("ok(x) if x == 1"), lib("ok(x) if x in {1, 2}")
BREAKING = lib("fine(x) if x == 1")


def free(mark: int, name: str = "free") -> dict[str, bytes | None]:
    return {f"policies/projects/{name}/rego.rego": f"package projects.{name}\n\nmark := {mark}\n".encode()}


def referring(name: str, mark: int = 0) -> dict[str, bytes | None]:
    text = f"package projects.{name}\n\nmark := {mark}\n\nallow if data.platform.lib.ok(input.x)\n"
    return {f"policies/projects/{name}/rego.rego": text.encode()}


class Gated(OpaCompiler):
    """The real compiler, which waits before it judges projects with a platform that has this in its text."""

    def __init__(self, binary: Path) -> None:
        super().__init__(binary)
        self.waits_for = b""
        self.gate = asyncio.Event()
        self.judged: list[PolicyName] = []

    async def validate(
        self, candidates: Sequence[Candidate], platform: Candidate | None
    ) -> Mapping[PolicyName, Verdict]:
        if platform is not None and self.waits_for and self.waits_for in platform.content.rego:
            await self.gate.wait()
        self.judged += [candidate.policy for candidate in candidates]
        return await super().validate(candidates, platform)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_compiler() -> AsyncIterator[Gated]:
    async with Gated(find_opa()) as compiler:
        yield compiler


@pytest.fixture
def compiler(one_compiler: Gated) -> Gated:
    one_compiler.waits_for, one_compiler.gate, one_compiler.judged = b"", asyncio.Event(), []
    return one_compiler


@pytest.fixture
def source() -> InMemorySource:
    source = InMemorySource()
    files = {**OLD, **free(0)}
    for number in range(MANY):
        files |= referring(f"p{number}")
    source.commit(files)
    return source


@pytest.fixture
def start(tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: Gated, source: InMemorySource) -> Start:
    return lambda **more: Engine(
        tmp_path, etcd_server.endpoint, prefix, compiler, source, judging={"at_once": 2}, **more
    )


async def push(engine: Engine, source: InMemorySource, files: Mapping[str, bytes | None]) -> str:
    commit = source.commit(files)
    engine.push()
    await engine.until_applied(commit)
    return commit


async def rego(engine: Engine, policy: PolicyName) -> bytes:
    return (await engine.live()).get(f"{policy}/rego.rego", b"")


async def test_other_changes_go_on_while_a_platform_is_proven_and_then_it_goes_live(
    start: Start, source: InMemorySource, compiler: Gated
) -> None:
    async with start().running() as engine:
        await engine.settled()
        compiler.waits_for = b"{1, 2}"
        changed = await push(engine, source, NEXT)
        held = await engine.held()
        assert (held[PLATFORM].reason, held[PLATFORM].commit) == (PLATFORM_PENDING, changed)
        assert "6 projects" in held[PLATFORM].errors[0].message

        await push(engine, source, free(1))
        assert b"mark := 1" in await rego(engine, FREE), "it depends on no platform"
        await push(engine, source, free(7, "new"))
        assert b"mark := 7" in await rego(engine, NEW)
        assert b"{1, 2}" not in await rego(engine, PLATFORM)

        compiler.gate.set()
        await engine.until(lambda: _has(engine, PLATFORM, b"{1, 2}"))
        await engine.until_ready("True")
        assert await engine.held() == {}
        assert engine.metric("platform_pending_projects") == 0


async def _has(engine: Engine, policy: PolicyName, text: bytes) -> bool:
    return text in await rego(engine, policy)


async def test_meanwhile_the_status_says_what_is_waited_for_and_nothing_stalls(
    start: Start, source: InMemorySource, compiler: Gated
) -> None:
    async with start().running() as engine:
        await engine.settled()
        compiler.waits_for = b"{1, 2}"
        await push(engine, source, NEXT)
        conditions = await engine.until_ready("Unknown", "PlatformPending")
        assert conditions["Reconciling"].status == "True"
        assert "6 projects" in conditions["Reconciling"].message
        assert "Stalled" not in conditions
        assert "ValidationFailed" not in conditions
        assert engine.metric("platform_pending_projects") == MANY
        compiler.gate.set()
        await engine.until_ready("True")


async def test_what_refers_to_the_platform_or_came_with_it_waits_with_it(
    start: Start, source: InMemorySource, compiler: Gated
) -> None:
    """One commit's policies change together, and who calls the platform may need the one that comes."""
    async with start().running() as engine:
        await engine.settled()
        compiler.waits_for = b"{1, 2}"
        await push(engine, source, {**NEXT, **free(1)})
        assert b"mark := 1" not in await rego(engine, FREE), "it was changed in one commit with the platform"
        await push(engine, source, referring("p0", 5))
        assert b"mark := 5" not in await rego(engine, project_policy("p0"))
        held = await engine.held()
        assert {name for name, each in held.items() if each.reason == PLATFORM_PENDING} == {
            PLATFORM,
            FREE,
            project_policy("p0"),
        }
        compiler.gate.set()
        await engine.until(lambda: _has(engine, PLATFORM, b"{1, 2}"))
        assert b"mark := 1" in await rego(engine, FREE)
        assert b"mark := 5" in await rego(engine, project_policy("p0"))
        await engine.until_ready("True")


async def test_a_platform_that_turns_out_to_break_projects_is_held_naming_them(
    start: Start, source: InMemorySource
) -> None:
    async with start().running() as engine:
        await engine.settled()
        source.commit(BREAKING)
        engine.push()
        await engine.until_ready("False")
        held = await engine.held()
        assert held[PLATFORM].reason == "BreaksProjects"
        assert "projects/p0 would break" in held[PLATFORM].errors[0].message
        await push(engine, source, free(1))
        assert b"mark := 1" in await rego(engine, FREE)


async def test_a_newer_platform_takes_the_place_of_one_that_is_being_proven(
    start: Start, source: InMemorySource, compiler: Gated
) -> None:
    newest = lib("ok(x) if x in {1, 2, 3}")
    async with start().running() as engine:
        await engine.settled()
        compiler.waits_for = b"{1, 2}"
        await push(engine, source, NEXT)
        await push(engine, source, newest)
        compiler.gate.set()
        await engine.until(lambda: _has(engine, PLATFORM, b"{1, 2, 3}"))
        await engine.until_ready("True")


async def test_a_leader_that_begins_anew_proves_it_too(start: Start, source: InMemorySource, compiler: Gated) -> None:
    async with start().running() as engine:
        await engine.settled()
        compiler.waits_for = b"{1, 2}"
        await push(engine, source, NEXT)
    compiler.gate.set()
    async with start().running() as engine:
        await engine.until(lambda: _has(engine, PLATFORM, b"{1, 2}"))
        await engine.until_ready("True")


async def test_what_is_known_already_is_not_compiled_again(
    start: Start, source: InMemorySource, compiler: Gated
) -> None:
    async with start().running() as engine:
        await engine.settled()
        await push(engine, source, NEXT)
        await engine.until(lambda: _has(engine, PLATFORM, b"{1, 2}"))
        compiler.judged.clear()
        await push(engine, source, OLD)
        await push(engine, source, NEXT)
        assert await rego(engine, PLATFORM) == NEXT["policies/platform/rego.rego"]
        assert compiler.judged == []


async def test_few_projects_are_waited_for(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: Gated, source: InMemorySource
) -> None:
    engine = Engine(tmp_path, etcd_server.endpoint, prefix, compiler, source, judging={"at_once": MANY})
    async with engine.running():
        await engine.settled()
        await push(engine, source, NEXT)
        assert await rego(engine, PLATFORM) == NEXT["policies/platform/rego.rego"]


# --- leads that end, and defects -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passed:
    """What a prover looks at of a pass."""

    resolution: Resolution


def waiting(projects: int = 1) -> Passed:
    versions = {project_policy(f"p{number}"): BlobIds("a" * 40) for number in range(projects)}
    return Passed(Resolution({}, {}, pending=Pending(BlobIds("f" * 40), versions, projects)))


class Proves:
    """A judge that fails as often as told, and then knows everything."""

    def __init__(self, *failures: Exception, gate: asyncio.Event | None = None) -> None:
        self.failures = list(failures)
        self.gate = gate
        self.asked = 0

    async def prove(
        self, pending: Pending, *, wanted: Callable[[], bool] = lambda: True, progress: Progress | None = None
    ) -> None:
        del pending, wanted, progress
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)

    def unpin(self) -> None:
        pass


@contextlib.asynccontextmanager
async def proving(prover: Prover) -> AsyncIterator[None]:
    task = asyncio.ensure_future(prover.run())
    await asyncio.sleep(0)
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def prover_of(judge: Proves, proven: asyncio.Event) -> Prover:
    return Prover(judge, proven.set, progress=Progress(), metrics=LoopMetrics(CollectorRegistry()))


async def test_what_waited_when_the_lead_was_lost_is_proven_when_it_is_won_back() -> None:
    """The same replica found the same platform waiting, took it for news of before, and waited for ever."""
    gate, proven = asyncio.Event(), asyncio.Event()
    judge = Proves(gate=gate)
    prover = prover_of(judge, proven)
    async with proving(prover):
        prover.saw(cast("PassResult", waiting()))
        await eventually(lambda: judge.asked == 1)
    gate.set()
    async with proving(prover):
        prover.saw(cast("PassResult", waiting()))
        await asyncio.wait_for(proven.wait(), 5)
    assert judge.asked == 2


async def test_a_defect_in_the_proving_is_logged_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the process, and then that of each replica that took over."""
    monkeypatch.setattr("reconciler.proving._RETRY_SECONDS", 0.01)
    proven = asyncio.Event()
    judge = Proves(RecursionError("too deep"), TransientError("away", reason="CompilerUnavailable"))
    prover = prover_of(judge, proven)
    async with proving(prover):
        prover.saw(cast("PassResult", waiting()))
        await asyncio.wait_for(proven.wait(), 5)
    assert judge.asked == 3


async def test_progress_that_no_pass_follows_leaves_the_status_as_it_was(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Progressing` stayed in the status until the next poll, and sync was Unknown for as long."""
    monkeypatch.setattr("reconciler.loop._TELL_SECONDS", 0.02)
    now = 0.0
    works = Works(passes=Progress(clock=lambda: now))
    engine = start()
    engine.contender._works = works
    async with engine.running():
        await engine.settled()
        before = await engine.until_ready("True")
        works.passes.tell("validating", 0, 10_000)
        now = 10.0
        works.passes.tell("validating", 100, 10_000)
        assert "100 of 10,000" in (await engine.until_ready("Unknown", "Progressing"))["Ready"].message
        works.passes.over()
        assert await engine.until_ready("True") == before
