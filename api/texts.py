"""JSON texts that people review: read so that no number changes its form, written so that a diff stays small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from api.problems import ProblemError
from reconciler.core.json_scan import Scan, line_and_column
from reconciler.core.model import FileError

BODY: Final = "body"
"""The ``file`` of an error in a request's body."""
KEYS: Final = 100_000
"""Object keys in one document."""
_ERRORS: Final = 20


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number, in its own digits: 1.0 stays 1.0, and 1e400 stays what it is."""

    text: str


class _LooseError(ValueError):
    """The text is no strict JSON; the scanner says where."""


def parse_object(raw: bytes, nesting: int) -> dict[str, Any]:
    """The JSON object in a request's body. Raises 400 with line and column in the body of each error.

    Strict: UTF-8 without BOM, no duplicate keys, no NaN, no half surrogate pairs, at most ``nesting`` levels.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = line_and_column(raw[: error.start].decode("utf-8", "replace"), error.start)
        raise _malformed([FileError(BODY, "is not UTF-8: send it as UTF-8", line, column)]) from error
    try:
        return strict_object(text, nesting)
    except (ValueError, RecursionError) as error:
        raise _malformed(_problems(text, nesting)) from error


def strict_object(text: str, nesting: int) -> dict[str, Any]:
    """The same of a text; `ValueError` (or `RecursionError`) without a place."""
    document = json.loads(text, parse_float=Number, parse_int=Number, parse_constant=_refuse, object_pairs_hook=_unique)
    if not isinstance(document, dict):
        raise _LooseError("no object")
    _examine(document, nesting)
    return document


def dump(document: dict[str, Any], former: Any = None) -> bytes:
    """The text to commit: two spaces, one final newline, nothing escaped without need; keys in the order in which
    ``former`` has them, new ones after them."""
    return ("".join(_lines(document, former, "\n")) + "\n").encode()


def _lines(value: Any, former: Any, indent: str) -> Iterator[str]:
    inner = f"{indent}  "
    if isinstance(value, dict) and value:
        before = former if isinstance(former, dict) else {}
        order = [key for key in before if key in value] + [key for key in value if key not in before]
        for i, key in enumerate(order):
            yield f"{',' if i else '{'}{inner}{_string(key)}: "
            yield from _lines(value[key], before.get(key), inner)
        yield f"{indent}}}"
    elif isinstance(value, list) and value:
        before_items = former if isinstance(former, list) else []
        for i, item in enumerate(value):
            yield f"{',' if i else '['}{inner}"
            yield from _lines(item, before_items[i] if i < len(before_items) else None, inner)
        yield f"{indent}]"
    elif isinstance(value, Number):
        yield value.text
    else:
        yield json.dumps(value, ensure_ascii=False)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> NoReturn:
    raise _LooseError(constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _LooseError("duplicate key")
    return found


def _examine(document: dict[str, Any], nesting: int) -> None:
    """Depth, number of keys and whole characters, without recursion."""
    level: list[Any] = [document]
    keys = 0
    for _ in range(nesting):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                keys += len(value)
                _whole(*value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _whole(value)
        level = below
        if keys > KEYS:
            raise ProblemError(400, "validation_error", f"the body has more than {KEYS} keys: split the data")
        if not level:
            return
    if any(isinstance(value, dict | list) for value in level):
        raise _LooseError("too deep")
    _whole(*(value for value in level if isinstance(value, str)))


def _whole(*texts: str) -> None:
    for text in texts:
        text.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair


def _problems(text: str, nesting: int) -> list[FileError]:
    found = Scan(text, nesting).run().problems[:_ERRORS]
    if not found:
        return [FileError(BODY, "must be a JSON object", 1, 1)]
    return [FileError(BODY, problem.message, *line_and_column(text, problem.offset)) for problem in found]


def _malformed(errors: list[FileError]) -> ProblemError:
    return ProblemError(400, "validation_error", f"the request's body cannot be read: {errors[0]}", errors=errors)
