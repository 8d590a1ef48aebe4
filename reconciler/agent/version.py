"""Order of OPA's version numbers (semantic versioning, as far as OPA uses it). Pure."""

from __future__ import annotations

import re

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


def older_than(version: str, minimum: str) -> bool:
    """Whether ``version`` comes before ``minimum``; ``False`` when either is no version. Suffixes are not looked at."""
    numbers, least = _VERSION.match(version), _VERSION.match(minimum)
    return bool(numbers and least) and _key(numbers) < _key(least)


def _key(match: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(int(part) for part in match.groups()) if match else ()
