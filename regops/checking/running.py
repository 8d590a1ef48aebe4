"""A review, from the repository to what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconciler.core.errors import StalledError
from reconciler.core.guards import Limits
from reconciler.settings import Settings
from regops import compose
from regops.checking.findings import Review
from regops.checking.rego_tests import run_tests
from regops.checking.replay import replay
from regops.checking.reviewing import compare


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
    places = compose.open_pair(settings, wanted.folder, path=wanted.path, base=wanted.base, head=wanted.head)
    async with places as (source, pair, files), compose.open_judge(settings, source) as judge:
        say(f"comparing with {pair.base[:12]}")
        found = await compare(source, judge, pair.old, pair.new, limits)
        if not found.tree.found and not found.blocked:
            raise StalledError(
                f"there is no folder {wanted.path!r} in {wanted.head or wanted.folder}",
                reason="NoPolicies",
                remedy="Name it with --path.",
            )
        tests = None
        if wanted.tests:
            say("running the Rego unit tests")
            tests = await run_tests(opa, files)
        replayed = None
        if wanted.replay:
            say("replaying recorded decisions")
            replayed = await replay(
                opa,
                (found.old_bundle, found.new_bundle),
                wanted.replay,
                limit=wanted.replay_limit,
                examples=wanted.examples,
                progress=tick,
            )
    return Review(
        base=pair.base,
        head=pair.head,
        path=wanted.path,
        total=len(found.tree.policies) + sum(1 for name in found.tree.invalid if name not in found.tree.policies),
        policies=found.findings,
        warnings=found.resolution.warnings,
        ignored=found.tree.ignored,
        blocked=tuple(found.blocked),
        blocked_reason=found.blocked_reason,
        tests=tests,
        min_coverage=wanted.min_coverage,
        replay=replayed,
    )
