"""Conditions in Flux's vocabulary (kstatus): pure functions from what a pass found to what a person reads.

`Ready` is always present; the others only while they are true. Invariants, from fluxcd/pkg's condition checker:
never `Reconciling` and `Stalled` together, `Ready` is not true while either of them or a negative condition is
(`HistoryRewritten` is a notice: the rewritten history *was* followed, so it stands beside a true `Ready`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from reconciler.core.records import Record

READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
FETCH_FAILED: Final = "FetchFailed"
VALIDATION_FAILED: Final = "ValidationFailed"
DRIFTED: Final = "Drifted"
PRUNE_BLOCKED: Final = "PruneBlocked"
HISTORY_REWRITTEN: Final = "HistoryRewritten"
HEALTHY: Final = "Healthy"

NEGATIVE: Final = frozenset({RECONCILING, STALLED, FETCH_FAILED, VALIDATION_FAILED, DRIFTED, PRUNE_BLOCKED})


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. ``status`` is ``True``, ``False`` or ``Unknown`` as text; ``last_transition_time`` RFC 3339 UTC.

    ``observed_generation`` is the height (commits reachable) of the commit that the condition speaks about.
    """

    type: str
    status: str
    reason: str
    message: str
    last_transition_time: str = ""
    observed_generation: int = 0


@dataclass(frozen=True, slots=True)
class StatusRecord(Record):
    """``status``: what the leader last found, for every replica to show.

    Revisions are bare commit ids; the face that shows them adds branch and ``sha1:``. ``last_apply`` has the timings
    of the last pass that wrote: {commit, trigger, seen_at, fetched_at, validated_at, applied_at (RFC 3339 with
    milliseconds), created, updated, deleted, held (counts)}.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"last_apply", "foreign_keys", "warnings"})

    conditions: tuple[Condition, ...]
    source: Mapping[str, str]
    last_attempted_revision: str | None
    last_handled_reconcile_at: str | None
    blocked_deletions: tuple[str, ...]
    ignored_files: tuple[str, ...]
    leader: str
    at: str
    foreign_keys: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    last_apply: Mapping[str, Any] | None = None

    @classmethod
    def _build(cls, document: dict[str, Any]) -> StatusRecord:
        lists = ("blocked_deletions", "ignored_files", "foreign_keys", "warnings")
        return cls(
            **{
                **document,
                **{name: tuple(document.get(name) or ()) for name in lists},
                "conditions": tuple(Condition(**condition) for condition in document["conditions"]),
            }
        )


def carry_over(conditions: Iterable[Condition], before: Iterable[Condition], now: str) -> tuple[Condition, ...]:
    """Give each condition its transition time: the former one where its status did not change, else ``now``."""
    former = {condition.type: condition for condition in before}
    return tuple(
        replace(
            condition,
            last_transition_time=former[condition.type].last_transition_time
            if condition.type in former and former[condition.type].status == condition.status
            else now,
        )
        for condition in conditions
    )
