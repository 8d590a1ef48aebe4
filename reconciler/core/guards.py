"""Never delete on doubt: which deletions of a plan may happen now. Pure; after Config Sync's and octoDNS' guards.

A deletion is covered when a person confirmed it at a commit that the head contains. Of the others, all are blocked
when the source is empty, when the platform is among them, or when there are more than
min(cap, max(floor, ratio x live)) of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from reconciler.core.model import PLATFORM, PolicyName

SOURCE_EMPTY: Final = "SourceEmpty"
PLATFORM_DELETED: Final = "PlatformDeleted"
TOO_MANY: Final = "TooManyDeletions"
BLOCKED: Final = frozenset({SOURCE_EMPTY, PLATFORM_DELETED, TOO_MANY})
"""Why deletions are blocked."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many deletions pass without a person: see `GuardSettings`."""

    ratio: float = 0.2
    floor: int = 2
    cap: int = 20

    def allowed(self, live: int) -> int:
        """How many of ``live`` policies one pass may delete."""
        return min(self.cap, max(self.floor, int(self.ratio * live)))


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the guard lets pass and what it blocks; ``reason`` and ``message`` are empty when nothing is blocked."""

    allowed: tuple[PolicyName, ...] = ()
    blocked: tuple[PolicyName, ...] = ()
    reason: str = ""
    message: str = ""


def judge_deletions(
    deletions: Collection[PolicyName],
    *,
    live: int,
    source_empty: bool,
    confirmed: Collection[str],
    limits: Limits,
) -> Ruling:
    """Decide about the policies that are live and no longer in Git. ``live`` counts the policies live before."""
    covered = tuple(sorted(name for name in deletions if name in confirmed))
    doubtful = tuple(sorted(name for name in deletions if name not in confirmed))
    if not doubtful:
        return Ruling(allowed=covered)
    reason, message = _doubt(doubtful, live=live, source_empty=source_empty, limits=limits)
    if reason:
        return Ruling(allowed=covered, blocked=doubtful, reason=reason, message=message)
    return Ruling(allowed=tuple(sorted(deletions)))


def _doubt(doubtful: tuple[PolicyName, ...], *, live: int, source_empty: bool, limits: Limits) -> tuple[str, str]:
    if source_empty:
        return SOURCE_EMPTY, f"the commit has no policies at all, and {len(doubtful)} are live"
    if PLATFORM in doubtful:
        return PLATFORM_DELETED, "the commit deletes the platform policy"
    allowed = limits.allowed(live)
    if len(doubtful) > allowed:
        return (
            TOO_MANY,
            f"the commit deletes {len(doubtful)} of {live} live policies, {allowed} may go at once",
        )
    return "", ""
