"""JSON that every reader understands alike (RFC 8725 section 2.4: duplicate claims), as an object. Pure."""

from __future__ import annotations

import json
import math
from typing import Any, Final

NESTING: Final = 32
"""Levels of objects and arrays that a token or key set may have."""
_DIGITS: Final = 400
"""A double's largest has 309."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """The object that ``raw`` is. Raises `ValueError`, in a few words without the text itself, for anything else.

    Refused: another encoding than UTF-8, a name twice in one object, NaN and numbers beyond a double, half a surrogate
    pair, deep nesting.
    """
    try:
        found = json.loads(
            raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite, parse_int=_short
        )
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("has half a surrogate pair") from error
    except json.JSONDecodeError as error:
        raise ValueError("is not JSON") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 one error for all that is wrong with the text
    if _deeper(found):
        raise ValueError("is nested too deeply")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("has a name twice in one object")
    return result


def _refuse(_constant: str) -> Any:
    raise ValueError("has a number that is no JSON")


def _short(literal: str) -> int:
    if len(literal) > _DIGITS:
        raise ValueError("has a number that is too large")
    return int(literal)


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise ValueError("has a number that is too large")
    return number


def _deeper(found: dict[str, Any]) -> bool:
    level: list[Any] = [found]
    for _ in range(NESTING):
        below = (value.values() if isinstance(value, dict) else value for value in level)
        level = [item for items in below for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True
