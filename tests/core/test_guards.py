"""Nothing is deleted on doubt."""

import pytest

from reconciler.core.guards import Limits, judge_deletions
from reconciler.core.model import PLATFORM, PolicyName, project_policy


def projects(count: int) -> list[PolicyName]:
    return [project_policy(f"p{number}") for number in range(count)]


@pytest.mark.parametrize(
    ("live", "allowed"), [(0, 2), (3, 2), (10, 2), (15, 3), (50, 10), (100, 20), (1000, 20), (100_000, 20)]
)
def test_one_pass_may_delete_a_fifth_but_always_two_and_never_more_than_twenty(live: int, allowed: int) -> None:
    assert Limits().allowed(live) == allowed


def test_a_few_deletions_pass() -> None:
    ruling = judge_deletions(projects(2), live=10, source_empty=False, confirmed=(), limits=Limits())
    assert len(ruling.allowed) == 2
    assert not ruling.blocked


@pytest.mark.parametrize(
    ("deletions", "empty", "reason"),
    [
        (projects(3), False, "TooManyDeletions"),
        ([PLATFORM], False, "PlatformDeleted"),
        ([PLATFORM, *projects(1)], False, "PlatformDeleted"),
        (projects(1), True, "SourceEmpty"),
    ],
)
def test_doubtful_deletions_are_all_blocked(deletions: list[PolicyName], *, empty: bool, reason: str) -> None:
    ruling = judge_deletions(deletions, live=10, source_empty=empty, confirmed=(), limits=Limits())
    assert (ruling.allowed, set(ruling.blocked), ruling.reason) == ((), set(deletions), reason)


def test_a_confirmation_covers_the_deletions_that_it_lists_and_no_others() -> None:
    more = [project_policy(f"q{number}") for number in range(3)]
    ruling = judge_deletions(
        [*projects(5), *more], live=20, source_empty=False, confirmed=projects(5), limits=Limits(ratio=0.1)
    )
    assert set(ruling.allowed) == set(projects(5))
    assert set(ruling.blocked) == set(more)


def test_confirmed_deletions_do_not_use_up_the_allowance_of_others() -> None:
    ruling = judge_deletions(
        [*projects(9), project_policy("q")], live=10, source_empty=False, confirmed=projects(9), limits=Limits()
    )
    assert not ruling.blocked
