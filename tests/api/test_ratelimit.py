"""The bounds of the write path, on a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import ratelimit
from api.problems import ProblemError
from api.ratelimit import Gate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def gate(clock: Clock, *, concurrent: int = 256, rate: float = 50.0, burst: int = 100) -> Gate:
    return Gate(concurrent, rate, burst, clock=clock)


def tries(gate: Gate, caller: str, count: int) -> int:
    """How many of so many writes, one after the other, are let in."""
    done = 0
    for _ in range(count):
        try:
            with gate.enter(caller):
                done += 1
        except ProblemError as problem:
            if (problem.status, problem.code) != (429, "too_many_requests"):
                raise
    return done


def test_a_caller_may_spend_its_burst_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    bounded = gate(clock)
    assert tries(bounded, "a", 150) == 100
    clock.now += 1.0
    assert tries(bounded, "a", 150) == 50
    clock.now += 3600.0
    assert tries(bounded, "a", 150) == 100


def test_one_callers_haste_costs_another_nothing() -> None:
    bounded = gate(Clock())
    tries(bounded, "a", 200)
    assert tries(bounded, "b", 100) == 100


def test_whoever_waits_as_long_as_it_was_told_is_let_in() -> None:
    clock = Clock()
    slow = gate(clock, rate=0.2, burst=1)
    assert tries(slow, "a", 1) == 1
    with pytest.raises(ProblemError) as caught, slow.enter("a"):
        pass
    assert caught.value.headers["Retry-After"] == "5"
    clock.now += 5
    assert tries(slow, "a", 1) == 1


def test_an_attempt_that_is_refused_costs_nothing() -> None:
    clock = Clock()
    bounded = gate(clock, rate=1.0, burst=1)
    assert tries(bounded, "a", 50) == 1
    clock.now += 1.0
    assert tries(bounded, "a", 1) == 1


def test_more_writes_at_once_than_the_replica_takes_are_told_to_come_again() -> None:
    bounded = gate(Clock(), concurrent=2)
    with bounded.enter("a"), bounded.enter("b"):
        with pytest.raises(ProblemError) as caught, bounded.enter("c"):
            pass
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        assert caught.value.headers["Retry-After"] == "1"
    assert tries(bounded, "c", 1) == 1


def test_a_write_that_fails_makes_room_again() -> None:
    bounded = gate(Clock(), concurrent=1)
    with pytest.raises(RuntimeError), bounded.enter("a"):
        raise RuntimeError
    assert tries(bounded, "a", 1) == 1


def test_the_caller_not_seen_for_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "CALLERS", 3)
    bounded = gate(Clock(), rate=0.001, burst=1)
    for caller in ("a", "b", "c", "a"):
        tries(bounded, caller, 1)
    assert tries(bounded, "d", 1) == 1
    assert tries(bounded, "a", 1) == 0
    assert tries(bounded, "b", 1) == 1
    assert len(bounded._buckets) == 3


@given(steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30)), max_size=30))
def test_no_caller_ever_gets_more_than_burst_and_rate_together(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    bounded = gate(clock, rate=5.0, burst=10)
    started, done = clock.now, 0
    for seconds, count in steps:
        clock.now += seconds
        done += tries(bounded, "a", count)
        assert done <= 10 + 5.0 * (clock.now - started) + 1e-6
