"""Conditions in Flux's vocabulary (kstatus): pure functions from what a pass found to what a person reads.

`Ready` is always present; the others only while they are true. Invariants, from fluxcd/pkg's condition checker:
never `Reconciling` and `Stalled` together, `Ready` is not true while either of them or a negative condition is
(`HistoryRewritten` and `RecordDelayed` are notices: what they tell of keeps no policy from going live, so they stand
beside a true `Ready`).
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
RECORD_DELAYED: Final = "RecordDelayed"

CONDITIONS: Final = (
    READY,
    RECONCILING,
    STALLED,
    FETCH_FAILED,
    VALIDATION_FAILED,
    DRIFTED,
    PRUNE_BLOCKED,
    HISTORY_REWRITTEN,
    RECORD_DELAYED,
)
"""What the leader finds; `HEALTHY` is found by whoever shows the status."""
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
    milliseconds), created, updated, deleted, held (counts), digest (`Applied.digest`), renewed (whether nothing but
    ``applied`` and what is held was written)}.
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


@dataclass(frozen=True, slots=True)
class Findings:
    """What a pass found, as far as conditions need it. ``revision`` is ``<branch>@sha1:<commit>``."""

    revision: str
    height: int
    held: tuple[str, ...] = ()
    blocked: int = 0
    block_reason: str = ""
    block_message: str = ""
    commit: str = ""
    drifted: int = 0
    rewritten: bool = False
    suspended: bool = False
    pending: str = ""
    """What a changed platform waits for, in a person's words."""


def after_pass(found: Findings, before: Iterable[Condition]) -> tuple[Condition, ...]:
    """The conditions after a pass that ran to its end. While suspended, `Ready` keeps its last value as long as it is
    still true, and is unknown otherwise."""
    conditions = []
    if found.held:
        names = ", ".join(found.held[:5]) + (" …" if len(found.held) > 5 else "")  # noqa: PLR2004 a line's worth
        message = f"{len(found.held)} held at the last good version: {names}"
        conditions.append(_true(VALIDATION_FAILED, "ValidationFailed", message))
    if found.blocked:
        message = (
            f"{found.blocked} deletions wait, since {found.block_message}: "
            f"if they are meant, run `regops sync --confirm {found.commit}`"
        )
        conditions.append(_true(PRUNE_BLOCKED, found.block_reason, message))
    if found.drifted:
        conditions.append(_true(DRIFTED, "Suspended", f"{found.drifted} policies were edited by hand in etcd"))
    negative = tuple(conditions)
    stalled = negative[-1] if negative and not found.suspended else None
    if found.rewritten:
        message = f"{found.revision} does not contain the commit applied before; it was followed"
        conditions.append(_true(HISTORY_REWRITTEN, "HistoryRewritten", message))
    if stalled:
        conditions.insert(0, _true(STALLED, stalled.reason, stalled.message))
    elif found.pending and not found.suspended:
        conditions.insert(0, _true(RECONCILING, "PlatformPending", found.pending))
    conditions.insert(0, _while_suspended(negative, before) if found.suspended else _ready(found, stalled))
    return tuple(replace(condition, observed_generation=found.height) for condition in conditions)


def after_failure(
    reason: str, message: str, *, fetching: bool, stalled: bool, before: Iterable[Condition]
) -> tuple[Condition, ...]:
    """The conditions after a pass that broke off. What was found before (holds, blocks) still stands."""
    kept = [c for c in before if c.type in {VALIDATION_FAILED, PRUNE_BLOCKED, HISTORY_REWRITTEN}]
    generation = max((condition.observed_generation for condition in before), default=0)
    conditions = [
        Condition(READY, "False", reason, message),
        _true(STALLED, reason, message) if stalled else _true(RECONCILING, "ProgressingWithRetry", message),
        *([_true(FETCH_FAILED, reason, message)] if fetching else []),
    ]
    return (*(replace(condition, observed_generation=generation) for condition in conditions), *kept)


def while_working(message: str, before: Iterable[Condition]) -> tuple[Condition, ...]:
    """The conditions while something takes long. What else was found before still stands."""
    before = tuple(before)
    generation = max((condition.observed_generation for condition in before), default=0)
    kept = [c for c in before if c.type in {VALIDATION_FAILED, PRUNE_BLOCKED, HISTORY_REWRITTEN, RECORD_DELAYED}]
    reason = next((c.reason for c in before if c.type == RECONCILING and c.reason == "PlatformPending"), "Progressing")
    conditions = (Condition(READY, "Unknown", reason, message), _true(RECONCILING, reason, message))
    return (*(replace(condition, observed_generation=generation) for condition in conditions), *kept)


def without_work(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """What was found before the work that these tell of (`while_working`) began; all of them where there is none."""
    conditions = tuple(conditions)
    if not any(condition.type == READY and condition.reason == "Progressing" for condition in conditions):
        return conditions
    return tuple(condition for condition in conditions if condition.type not in {READY, RECONCILING})


def _ready(found: Findings, stalled: Condition | None) -> Condition:
    if stalled:
        return Condition(READY, "False", stalled.reason, stalled.message)
    if found.pending:
        return Condition(READY, "Unknown", "PlatformPending", found.pending)
    return Condition(READY, "True", "ReconciliationSucceeded", f"Applied revision: {found.revision}")


def _while_suspended(negative: tuple[Condition, ...], before: Iterable[Condition]) -> Condition:
    former = next((condition for condition in before if condition.type == READY), None)
    if former is None:
        return Condition(READY, "Unknown", "Suspended", "suspended before the first pass")
    good = former.status == "True" and not negative
    bad = former.status == "False" and former.reason in {condition.reason for condition in negative}
    if good or bad:
        return former
    return Condition(READY, "Unknown", "Suspended", "suspended: nothing is applied until `regops resume`")


def _true(kind: str, reason: str, message: str) -> Condition:
    return Condition(kind, "True", reason, message)
