"""A review, from the repository to what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.core.errors import StalledError
from reconciler.core.guards import Limits
from reconciler.core.ports import Source
from reconciler.settings import Settings
from regops import compose
from regops.checking.changing import changing
from regops.checking.failing import explained
from regops.checking.findings import Replay, Review, Tests
from regops.checking.rego_tests import marked, measure, run_tests
from regops.checking.replay import replay
from regops.checking.reviewing import Compared, State, bundle, compare
from regops.checking.tested import Tested, files_of
from regops.revisions import TestFiles, open_pair


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for. ``head`` ``None``: the files in ``folder``."""

    folder: Path
    path: str
    base: str
    head: str | None
    tests: bool = True
    min_coverage: float | None = None
    replay: tuple[str, ...] = ()
    replay_limit: int | None = None
    examples: int = 3


async def review(settings: Settings, wanted: Wanted, say: Callable[[str], None], tick: Callable[[int], None]) -> Review:
    """Compare, test, replay. ``say`` is told what begins, ``tick`` how many decisions were replayed so far."""
    guard = settings.guard
    limits = Limits(ratio=guard.ratio, floor=guard.floor, cap=guard.cap)
    opa = compose.opa_binary(settings)
    places = open_pair(settings, wanted.folder, path=wanted.path, base=wanted.base, head=wanted.head)
    async with places as (source, pair, test_files), compose.open_judge(settings, source) as judge:
        say(f"comparing with {pair.base[:12]}")
        found = await compare(source, judge, pair, limits)
        if not found.new.tree.found and not found.blocked:
            raise StalledError(
                f"there is no folder {wanted.path!r} in {wanted.head or wanted.folder}",
                reason="NoPolicies",
                remedy="Name it with --path.",
            )
        tests = None
        if wanted.tests:
            say("running the Rego unit tests")
            tests = await _tests(settings, opa, source, found, test_files)
        replayed = None
        if wanted.replay:
            say("replaying recorded decisions")
            replayed = await replay(
                opa,
                (await bundle(source, found.old.targets), await bundle(source, found.new.targets)),
                wanted.replay,
                limit=wanted.replay_limit,
                examples=wanted.examples,
                progress=tick,
            )
            replayed = replace(replayed, changing=await _changing(opa, source, found, replayed))
    tree, former = found.new.tree, found.old.tree
    names = {str(name) for each in (tree, former) for name in (*each.policies, *each.invalid)}
    return Review(
        base=pair.base,
        head=pair.head,
        tip=pair.tip,
        path=pair.path,
        total=len(tree.policies) + sum(1 for name in tree.invalid if name not in tree.policies),
        known=len(names | {each.policy for each in found.findings}),
        notes=found.notes,
        policies=found.findings,
        warnings=found.new.resolution.warnings,
        ignored=tree.ignored,
        blocked=tuple(found.blocked),
        blocked_reason=found.blocked_reason,
        tests=tests,
        min_coverage=wanted.min_coverage,
        replay=replayed,
    )


async def _changing(opa: Path, source: Source, found: Compared, replayed: Replay) -> dict[str, list[str]]:
    """The builtins whose answers change by themselves, of either revision."""
    asked = {each.policy for each in replayed.rules}
    sides = [await changing(opa, source, state.targets, asked) for state in (found.old, found.new)]
    return {name: sorted({*sides[0].get(name, ()), *sides[1].get(name, ())}) for name in sorted({*sides[0], *sides[1]})}


async def _tests(settings: Settings, opa: Path, source: Source, found: Compared, test_files: TestFiles) -> Tests:
    """The tests of what would be live. What fails is asked of the branch too: who did not break it need not mend it."""

    async def files(state: State) -> Tested:
        return await files_of(source, state.targets, await test_files(state.commit), state.resolution.held)

    refused = settings.policy.refused_builtins
    new = await files(found.new)
    tests = await run_tests(opa, new, refused)
    if tests.failures or tests.error:
        tests = marked(tests, await run_tests(opa, await files(found.old), refused))
        tests = await explained(opa, new, refused, tests)
    if tests.spoiled or tests.error:
        return tests
    return replace(tests, coverage=await measure(opa, new.without({each.file for each in tests.failures}), refused))
