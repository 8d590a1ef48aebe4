"""Who is silent for long counts no more, and nobody else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from reconciler.core.records import Receipt
from reconciler.core.silence import forgotten
from reconciler.core.times import rfc3339

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def receipt(since: timedelta, seen: timedelta | None) -> Receipt:
    seen_at = None if seen is None else rfc3339(NOW - seen)
    return Receipt("a", "east", "all", "1" * 40, rfc3339(NOW - since), seen_at=seen_at)


def test_silence_is_measured_from_the_last_word_and_not_from_the_last_commit() -> None:
    """It was measured from ``since``: where nobody had committed for a week, an agent that was killed was forgotten
    with the end of its lease, and the status said Healthy."""
    for days, hours, gone in ((8, 1, False), (8, 24 * 6, False), (8, 24 * 7 + 1, True), (400, 1, False)):
        assert forgotten(receipt(timedelta(days=days), timedelta(hours=hours)), NOW) is gone


def test_how_long_is_a_setting() -> None:
    silent = receipt(timedelta(days=30), timedelta(hours=2))
    assert forgotten(silent, NOW, timedelta(hours=1))
    assert not forgotten(silent, NOW, timedelta(hours=3))


@pytest.mark.parametrize("seen_at", [None, "", "yesterday", "2020-01-01T00:00:00", 7])
def test_who_does_not_say_when_it_was_seen_counts_until_a_person_forgets_it(seen_at: str | None) -> None:
    old = Receipt("a", "east", "all", "1" * 40, "2020-01-01T00:00:00Z", seen_at=seen_at)
    assert not forgotten(old, NOW)


def test_a_receipt_of_an_agent_that_does_not_say_it_yet_is_read() -> None:
    former = Receipt("a", "east", "all", None, "x").encode().replace(b',"seen_at":null', b"")
    assert b"seen_at" not in former
    assert Receipt.decode(former).seen_at is None
