"""The checker of the concurrency tests finds planted errors, and calls nothing an error that is none."""

from __future__ import annotations

import math

import pytest
from linearizable import Operation, is_linearizable

A, B, C = "a", "b", "c"


def write(expected: str | None, made: str, began: float, ended: float) -> Operation:
    return Operation("write", began, ended, expected, made)


def refused(expected: str | None, began: float, ended: float) -> Operation:
    return Operation("refused", began, ended, expected)


def read(made: str | None, began: float, ended: float) -> Operation:
    return Operation("read", began, ended, made=made)


@pytest.mark.parametrize(
    "history",
    [
        [],
        [write(A, B, 0, 1), read(B, 2, 3)],
        [write(A, B, 0, 10), read(A, 1, 2), read(B, 3, 4)],
        [write(A, B, 0, 10), refused(A, 0, 10)],
        [write(A, B, 0, 2), write(B, C, 1, 3), read(C, 4, 5)],
        [Operation("unknown", 0, math.inf, A, B), read(A, 1, 2), read(B, 3, 4)],
        [Operation("unknown", 0, math.inf, A, B), read(A, 1, 2), read(A, 3, 4)],
    ],
)
def test_what_could_have_happened_one_after_the_other_is_linearizable(history: list[Operation]) -> None:
    assert is_linearizable(history, A)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([write(A, B, 0, 1), write(A, C, 0, 1)], id="two writers won with the same version"),
        pytest.param([write(A, B, 0, 1), read(A, 2, 3)], id="a stale read after the write was acknowledged"),
        pytest.param([write(A, B, 0, 10), read(B, 1, 2), read(A, 3, 4)], id="a read went back"),
        pytest.param([refused(A, 0, 1)], id="refused although nobody had written"),
        pytest.param([write(A, B, 2, 3), refused(A, 0, 1)], id="refused before the other write had begun"),
        pytest.param([write(A, B, 0, 1), write(B, C, 2, 3), read(B, 4, 5)], id="an acknowledged write was lost"),
        pytest.param([Operation("unknown", 5, math.inf, A, B), read(B, 1, 2)], id="seen before it was sent"),
    ],
)
def test_a_planted_error_is_found(history: list[Operation]) -> None:
    assert not is_linearizable(history, A)


def test_thirty_two_racing_writers_are_judged_quickly() -> None:
    losers = [refused(A, 0, 10) for _ in range(31)]
    assert is_linearizable([write(A, B, 0, 10), *losers], A)
    assert not is_linearizable([write(A, B, 0, 10), write(A, C, 0, 10), *losers[1:]], A)
