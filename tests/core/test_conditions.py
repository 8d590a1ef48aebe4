"""Conditions keep kstatus' rules whatever a pass found."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.conditions import (
    FETCH_FAILED,
    HISTORY_REWRITTEN,
    NEGATIVE,
    READY,
    RECONCILING,
    STALLED,
    Condition,
    Findings,
    after_failure,
    after_pass,
    carry_over,
)

findings = st.builds(
    Findings,
    revision=st.just("main@sha1:" + "0" * 40),
    height=st.integers(0, 9),
    held=st.lists(st.sampled_from(["platform", "projects/a"]), max_size=7).map(tuple),
    blocked=st.integers(0, 3),
    block_reason=st.just("SourceEmpty"),
    drifted=st.integers(0, 2),
    rewritten=st.booleans(),
    suspended=st.booleans(),
)


def kinds(conditions: tuple[Condition, ...]) -> set[str]:
    return {condition.type for condition in conditions if condition.status == "True"}


def of(conditions: tuple[Condition, ...], kind: str) -> Condition:
    return next(condition for condition in conditions if condition.type == kind)


@dataclass(frozen=True)
class Failure:
    """A pass that broke off."""

    reason: str
    fetching: bool
    stalled: bool


SOUND = Findings("main@sha1:x", 1)

failures = st.builds(
    Failure, st.sampled_from(["FetchFailed", "StoreUnavailable", "Conflict"]), st.booleans(), st.booleans()
)


@given(st.lists(st.just(SOUND) | findings | failures, min_size=1, max_size=6))
def test_the_conditions_keep_the_rules_of_kstatus_whatever_happened(history: list[Findings | Failure]) -> None:
    """After the condition checker of fluxcd/pkg (``runtime/conditions/check``)."""
    conditions: tuple[Condition, ...] = ()
    for step in history:
        if isinstance(step, Findings):
            conditions = after_pass(step, conditions)
        else:
            conditions = after_failure(
                step.reason, "m", fetching=step.fetching, stalled=step.stalled, before=conditions
            )
        ready, true = of(conditions, READY), kinds(conditions)
        assert len({condition.type for condition in conditions}) == len(conditions), "each type at most once"
        assert all(condition.status == "True" for condition in conditions if condition.type != READY)
        assert all(condition.reason and condition.message for condition in conditions)
        assert not {RECONCILING, STALLED} <= true
        if ready.status == "True":
            assert not true & NEGATIVE
        if STALLED in true:
            assert (ready.status, ready.reason) == ("False", of(conditions, STALLED).reason)
        if isinstance(step, Failure):
            assert (ready.status, ready.reason) == ("False", step.reason)
            assert (STALLED in true, RECONCILING in true) == (step.stalled, not step.stalled)
            assert (FETCH_FAILED in true) == step.fetching
        elif step.suspended:
            assert not {RECONCILING, STALLED, FETCH_FAILED} & true
        else:
            assert (ready.status == "True") == (not true & NEGATIVE)
            assert (ready.status == "False") == (STALLED in true)
            assert ready.observed_generation == step.height


def test_a_failure_that_is_over_is_not_told_on_while_suspended() -> None:
    """Ready keeps its last value while suspended, but not the reason of a fetch that works again."""
    failed = after_failure("FetchFailed", "away", fetching=True, stalled=False, before=())
    ready = of(after_pass(Findings("main@sha1:x", 1, suspended=True), failed), READY)
    assert (ready.status, ready.reason) == ("Unknown", "Suspended")


def test_a_rewritten_history_is_a_notice_beside_ready() -> None:
    conditions = after_pass(Findings("main@sha1:x", 1, rewritten=True), ())
    assert kinds(conditions) == {READY, HISTORY_REWRITTEN}


def test_suspended_is_no_failure_and_ready_keeps_its_last_value() -> None:
    before = after_pass(Findings("main@sha1:x", 1), ())
    assert of(after_pass(Findings("main@sha1:y", 2, suspended=True), before), READY).message == before[0].message


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = carry_over(after_pass(Findings("main@sha1:x", 1), ()), (), "t1")
    second = carry_over(after_pass(Findings("main@sha1:y", 2), first), first, "t2")
    third = carry_over(after_failure("R", "m", fetching=True, stalled=False, before=second), second, "t3")
    assert [of(c, READY).last_transition_time for c in (first, second, third)] == ["t1", "t1", "t3"]
