"""Conditions keep kstatus' rules whatever a pass found."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.conditions import (
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


@given(st.lists(findings, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_ready_is_always_there_and_never_beside_a_negative_condition(
    history: list[Findings], fetching: bool, stalled: bool
) -> None:
    conditions: tuple[Condition, ...] = ()
    for found in history:
        conditions = after_pass(found, conditions)
        assert sum(condition.type == READY for condition in conditions) == 1
        assert not {RECONCILING, STALLED} <= kinds(conditions)
        if not found.suspended and of(conditions, READY).status == "True":
            assert not kinds(conditions) & NEGATIVE
    failed = after_failure("FetchFailed", "m", fetching=fetching, stalled=stalled, before=conditions)
    assert of(failed, READY).status == "False"
    assert len(kinds(failed) & {RECONCILING, STALLED}) == 1


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
