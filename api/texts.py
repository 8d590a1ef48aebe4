"""JSON texts that people review: read so that no number changes its form, written so that a diff stays small."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NoReturn

from api.problems import ProblemError
from reconciler.core.json_scan import Scan, line_and_column
from reconciler.core.model import FileError

BODY: Final = "body"
"""The ``file`` of an error in a request's body."""
KEYS: Final = 100_000
"""Object keys in one request's body."""
_ERRORS: Final = 20
_BOM: Final = b"\xef\xbb\xbf"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"(?P<colon>[ \t\r\n]*+:)?')
_ENCODE: Final = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number, in its own digits: 1.0 stays 1.0, and 1e400 stays what it is."""

    text: str


class TooLongError(ValueError):
    """A text is longer than it may be."""


class _LooseError(ValueError):
    """The text is no strict JSON; the scanner says where."""


def parse_object(raw: bytes, nesting: int) -> dict[str, Any]:
    """The JSON object in a request's body. Raises 400 with line and column in the body of each error.

    Strict: UTF-8 without BOM, no duplicate keys, no NaN, no half surrogate pairs, at most ``nesting`` levels and
    `KEYS` keys.
    """
    if raw.startswith(_BOM):
        raise _malformed([FileError(BODY, "begins with a byte order mark (BOM): send UTF-8 without it", 1, 1)])
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        message = f"byte 0x{raw[error.start]:02x} is no UTF-8: send the body as UTF-8"
        raise _malformed([FileError(BODY, message, *line_and_column(before, len(before)))]) from error
    try:
        document, keys = _strict(text, nesting)
    except (ValueError, RecursionError) as error:
        raise _malformed(_problems(text, nesting)) from error
    if keys > KEYS:
        message = f"has more than {KEYS} keys, this is one too many: split the data"
        raise _malformed([FileError(BODY, message, *line_and_column(text, _key_after(text, KEYS)))])
    return document


def strict_object(text: str, nesting: int) -> dict[str, Any]:
    """The same of a file's text, with as many keys as it has; `ValueError` (or `RecursionError`) without a place."""
    return _strict(text, nesting)[0]


def dump(document: dict[str, Any], former: Any = None, *, limit: int | None = None) -> bytes:
    """The text to commit: two spaces, one final newline, nothing escaped without need; keys in the order in which
    ``former`` has them, new ones after them. Raises `TooLongError` as soon as ``limit`` bytes do not suffice: each
    number in nested lists takes a line of its own, so a short document may have a text a hundred times as long."""
    sheet = _Sheet(limit=limit)
    sheet.value(document, former, "\n")
    sheet.add("\n")
    return sheet.encoded()


def compact_size(document: dict[str, Any], limit: int) -> int:
    """Bytes of the shortest text that says the same. Raises `TooLongError` beyond ``limit``."""
    sheet = _Sheet(limit=limit, spaced=False)
    sheet.value(document, None, "")
    return len(sheet.encoded())


@dataclass(slots=True)
class _Sheet:
    """A text in the making; ``length`` counts characters, of which none has less than one byte."""

    limit: int | None
    spaced: bool = True
    parts: list[str] = field(default_factory=list)
    length: int = 0

    def add(self, part: str) -> None:
        self.parts.append(part)
        self.length += len(part)
        if self.limit is not None and self.length > self.limit:
            raise TooLongError

    def encoded(self) -> bytes:
        text = "".join(self.parts).encode()
        if self.limit is not None and len(text) > self.limit:
            raise TooLongError
        return text

    def value(self, value: Any, former: Any, indent: str) -> None:
        """``indent`` begins a line at the level of the value: a line feed and its spaces."""
        if isinstance(value, dict) and value:
            self._object(value, former if isinstance(former, dict) else {}, indent)
        elif isinstance(value, list) and value:
            self._array(value, former if isinstance(former, list) else [], indent)
        else:
            self.add(value.text if isinstance(value, Number) else _ENCODE(value))

    def _object(self, value: dict[str, Any], former: dict[str, Any], indent: str) -> None:
        inner, colon = (f"{indent}  ", ": ") if self.spaced else ("", ":")
        opening = "{"
        order = [key for key in former if key in value]
        order += [key for key in value if key not in former]
        for key in order:
            self.add(f"{opening}{inner}{_ENCODE(key)}{colon}")
            self.value(value[key], former.get(key), inner)
            opening = ","
        self.add(f"{indent}}}")

    def _array(self, value: list[Any], former: list[Any], indent: str) -> None:
        inner = f"{indent}  " if self.spaced else ""
        opening = "["
        for i, item in enumerate(value):
            self.add(f"{opening}{inner}")
            self.value(item, former[i] if i < len(former) else None, inner)
            opening = ","
        self.add(f"{indent}]")


# --- reading ---------------------------------------------------------------------------------------------------------


def _strict(text: str, nesting: int) -> tuple[dict[str, Any], int]:
    """The object, and how many keys it has on all levels."""
    document = json.loads(text, parse_float=Number, parse_int=Number, parse_constant=_refuse, object_pairs_hook=_unique)
    if not isinstance(document, dict):
        raise _LooseError("no object")
    return document, _examine(document, nesting)


def _refuse(constant: str) -> NoReturn:
    raise _LooseError(constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _LooseError("duplicate key")
    return found


def _examine(document: dict[str, Any], nesting: int) -> int:
    """Depth and whole characters, without recursion; the number of keys."""
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
        if not level:
            return keys
    if any(isinstance(value, dict | list) for value in level):
        raise _LooseError("too deep")
    _whole(*(value for value in level if isinstance(value, str)))
    return keys


def _whole(*texts: str) -> None:
    for text in texts:
        text.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair


def _key_after(text: str, count: int) -> int:
    """The offset of the key after the first ``count`` ones, in a text that is known to be JSON with so many."""
    keys = (found.start() for found in _STRING.finditer(text) if found["colon"])
    return next(islice(keys, count, None))


def _problems(text: str, nesting: int) -> list[FileError]:
    found = Scan(text, nesting).run().problems[:_ERRORS]
    if not found:
        start = len(text) - len(text.lstrip(" \t\r\n"))
        return [FileError(BODY, "must be a JSON object: {…}", *line_and_column(text, start))]
    return [FileError(BODY, problem.message, *line_and_column(text, problem.offset)) for problem in found]


def _malformed(errors: list[FileError]) -> ProblemError:
    return ProblemError(400, "validation_error", f"the request's body cannot be read: {errors[0]}", errors=errors)
