"""Verdicts that were found once are not looked for again: in one process, and in the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest
from fakes.source import InMemorySource
from fixtures.opa import find_opa

from reconciler.adapters.opa import OpaCompiler
from reconciler.adapters.verdict_file import VerdictFile
from reconciler.assessing import CHUNK
from reconciler.core.live import LiveState
from reconciler.core.model import BlobIds, FileError, PolicyName, Verdict, project_policy
from reconciler.core.ports import Candidate
from reconciler.core.verdict_ports import VerdictKey
from reconciler.progress import Progress
from reconciler.validation import Judge
from reconciler.verdicts import FLEETING_SECONDS, Verdicts

SOME = CHUNK + 20
"""Policies that are compiled in two steps."""
ERROR = Verdict((FileError("projects/a/rego.rego", "is wrong"),))


class Counting(OpaCompiler):
    """The real compiler, which remembers whom it judged, and may be stopped after some steps."""

    def __init__(self, binary: Path, *, steps: int = 1000) -> None:
        super().__init__(binary)
        self.judged: set[PolicyName] = set()
        self.steps = steps
        self.stopped = asyncio.Event()

    async def validate(
        self, candidates: Sequence[Candidate], platform: Candidate | None
    ) -> Mapping[PolicyName, Verdict]:
        if self.steps == 0:
            self.stopped.set()
            await asyncio.Event().wait()
        self.steps -= 1
        self.judged |= {candidate.policy for candidate in candidates}
        return await super().validate(candidates, platform)


@pytest.fixture
def source() -> InMemorySource:
    source = InMemorySource()
    files = {
        f"policies/projects/p{number}/rego.rego": f"package projects.p{number}\n\nmark := {number}\n".encode()
        for number in range(SOME - 2)
    }
    files["policies/projects/old/rego.rego"] = b"package projects.old\n\nallow { input.x }\n"
    files["policies/projects/bad/rego.rego"] = b"package projects.bad\n\nx :=\n"
    source.commit(files)
    return source


class Process:
    """What a server has, on a file that outlives it."""

    def __init__(self, source: InMemorySource, path: Path, *, steps: int = 1000) -> None:
        self.source = source
        self.compiler = Counting(find_opa(), steps=steps)
        self.file = VerdictFile(path, self.compiler.version)
        self.progress = Progress()
        self.judge = Judge(source, self.compiler, verdicts=Verdicts(self.file), progress=self.progress)

    async def __aenter__(self) -> Self:
        await self.compiler.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.compiler.aclose()
        await self.file.aclose()

    async def resolve(self) -> tuple[set[PolicyName], set[str]]:
        """What would go live, and what would be held."""
        tree = await self.source.tree(await self.source.fetch())
        found = await self.judge.resolve(tree, LiveState())
        return set(found.targets), set(found.held)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.sqlite"


async def test_a_server_that_was_restarted_compiles_nothing_that_it_has_judged(
    source: InMemorySource, path: Path
) -> None:
    async with Process(source, path) as first:
        before = await first.resolve()
        assert len(first.compiler.judged) == SOME
    async with Process(source, path) as second:
        assert await second.resolve() == before
        assert second.compiler.judged == set()


async def test_a_first_sync_that_was_stopped_is_taken_up_where_it_was(source: InMemorySource, path: Path) -> None:
    async with Process(source, path, steps=1) as first:
        work = asyncio.ensure_future(first.resolve())
        await first.compiler.stopped.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    async with Process(source, path) as second:
        live, held = await second.resolve()
        assert (len(live), held) == (SOME - 1, {"projects/bad"})
        assert len(second.compiler.judged) == SOME - CHUNK


async def test_a_file_that_is_lost_costs_work_and_nothing_else(source: InMemorySource, path: Path) -> None:
    async with Process(source, path) as first:
        before = await first.resolve()
    path.write_bytes(  # noqa: ASYNC240 a moment
        b"rubbish" * 1000
    )
    async with Process(source, path) as second:
        assert await second.resolve() == before
        assert len(second.compiler.judged) == SOME


def key(number: int) -> VerdictKey:
    return VerdictKey(project_policy(f"p{number}"), BlobIds("a" * 40), None)


async def test_the_newest_stay_in_memory_and_what_is_pinned_stays_in_any_case() -> None:
    verdicts = Verdicts(remembered=2)
    await verdicts.keep({key(number): ERROR for number in range(3)})
    await verdicts.keep({key(number): ERROR for number in range(10, 14)}, pinned=True)
    known = await verdicts.find([key(number) for number in range(20)])
    assert set(known) == {key(number) for number in (1, 2, 10, 11, 12, 13)}
    verdicts.unpin()
    assert set(await verdicts.find([key(number) for number in range(20)])) == {key(12), key(13)}


async def test_that_something_took_too_long_is_not_kept_beyond_the_process(path: Path) -> None:
    """The machine was busy perhaps: the next process tries again."""
    slow = Verdict(ERROR.errors, lasting=False)

    async def fingerprint() -> str:
        return "opa"

    file = VerdictFile(path, fingerprint)
    verdicts = Verdicts(file)
    await verdicts.keep({key(1): slow, key(2): ERROR})
    assert (await verdicts.find([key(1)]))[key(1)] == slow
    assert await file.find([key(1), key(2)]) == {key(2): ERROR}
    await file.aclose()


async def test_that_something_took_too_long_is_forgotten_after_a_while() -> None:
    """One busy moment of the machine held a platform for as long as the process lived."""
    now = 0.0
    verdicts = Verdicts(clock=lambda: now)
    await verdicts.keep({key(1): Verdict(ERROR.errors, lasting=False)}, pinned=True)
    assert set(await verdicts.find([key(1)])) == {key(1)}
    now = FLEETING_SECONDS + 1
    assert await verdicts.find([key(1)]) == {}


def test_progress_is_told_once_it_takes_long_with_the_time_that_is_left() -> None:
    now = 0.0
    progress = Progress(clock=lambda: now)
    assert progress.says() is None
    progress.tell("validating", 0, 10_000)
    now = 1.0
    progress.tell("validating", 300, 10_000)
    assert progress.says() is None, "a second is not long"
    now = 10.0
    progress.tell("validating", 3000, 10_000)
    assert progress.says() == "validating: 3,000 of 10,000 policies, about 23 s left"
    progress.over()
    assert progress.says() is None
