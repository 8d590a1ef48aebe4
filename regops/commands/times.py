"""Times as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from reconciler.core.errors import StalledError
from reconciler.core.times import rfc3339

_AGO: Final = re.compile(r"(\d{1,6})([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_time(text: str, now: datetime | None = None) -> str:
    """RFC 3339 UTC of a time that is given so, or as how long ago: ``30s``, ``15m``, ``2h``, ``7d``, ``1w``. Without an
    offset the machine's own time zone is meant. Raises `StalledError` for anything else."""
    found = _AGO.fullmatch(text)
    try:
        if found:
            at = (now or datetime.now(UTC)) - timedelta(**{_UNITS[found[2]]: int(found[1])})
        else:
            at = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise StalledError(
            f"{text!r} is no time",
            remedy="Write 2026-01-31T12:00:00Z, or how long ago: 30s, 15m, 2h, 7d.",
        ) from error
    return rfc3339(at)
