"""Entries of the log of passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.core.passes import Enforced, PassChange, PassCommit, PassRecord, between

BEGUN = PassRecord("1", "applied", "push", "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.300Z", "me")
DONE = replace(
    BEGUN,
    commit="c2",
    before="c1",
    fetched_at="2026-01-01T00:00:00.100Z",
    validated_at="2026-01-01T00:00:00.250Z",
    applied_at="2026-01-01T00:00:00.300Z",
    changes=(PassChange("projects/a", "update", "c2", "Ann <ann@x>"),),
    commits=(PassCommit("c2", "Ann <ann@x>", "2026-01-01T00:00:00Z", "more"),),
    enforced=Enforced(2, 2, "2026-01-01T00:00:00.400Z", "2026-01-01T00:00:01.800Z"),
)


def test_an_entry_is_read_as_it_was_written() -> None:
    assert PassRecord.decode(DONE.encode()) == DONE
    assert PassRecord.decode(BEGUN.encode()) == BEGUN


def test_an_entry_of_a_later_version_is_read_too() -> None:
    assert PassRecord.decode(BEGUN.encode().replace(b'{"at"', b'{"novelty":1,"at"')) == BEGUN


def test_each_stage_has_its_seconds_once_it_was_reached() -> None:
    assert DONE.seconds() == {"fetch": 0.1, "validate": 0.15, "apply": 0.05, "total": 0.3, "enforced": 1.5}
    assert set(BEGUN.seconds().values()) == {None}
    assert replace(DONE, enforced=Enforced(3, 2, "2026-01-01T00:00:00.400Z", DONE.at)).seconds()["enforced"] is None


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        ("2026-01-01T00:00:01Z", "2026-01-01T00:00:00Z", 0.0),
        ("2026-01-01T00:00:00Z", "yesterday", None),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:00Z", None),
        (None, "2026-01-01T00:00:00Z", None),
    ],
)
def test_what_clocks_disagree_on_takes_no_time_and_what_is_no_time_is_unknown(
    first: str | None, second: str, seconds: float | None
) -> None:
    assert between(first, second) == seconds


def test_failures_for_one_reason_are_one_and_others_are_not() -> None:
    first = replace(BEGUN, outcome="failed", reason="FetchFailed", message="no route")
    second = replace(first, id="2", at="2026-01-01T00:00:09.000Z", message="refused")
    assert first.same_failure(second)
    again = first.again(second)
    assert (again.id, again.count, again.at, again.message) == ("1", 2, second.at, "refused")
    assert not first.same_failure(replace(second, reason="DiskFull"))
    assert not DONE.same_failure(DONE)


def test_only_what_applied_another_commit_has_moved() -> None:
    assert DONE.moved
    assert not replace(DONE, before="c2").moved
    assert not replace(DONE, outcome="failed").moved
