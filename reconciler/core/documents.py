"""What is wrong with a policy's two files before OPA sees them: bytes, text and JSON, each with line and column.

Messages are for a person who has never seen regops: what is wrong, and the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from reconciler.core.json_scan import Problem, Scan, line_and_column
from reconciler.core.limits import Limits
from reconciler.core.model import DATA_FILE, REGO_FILE, Content, FileError, PolicyName, package_of
from reconciler.core.rego_text import render_path, too_deep

_BOM: Final = b"\xef\xbb\xbf"
_LFS: Final = b"version https://git-lfs.github.com/spec/"


class _NotStrictError(ValueError):
    """JSON that Python would read, and others would not or otherwise."""


@dataclass(frozen=True, slots=True)
class Documents:
    """A policy's files as text and JSON, and what is wrong with them.

    ``rego`` is ``None`` when its text must not be given to OPA; ``data`` is ``None`` when there is none or it is bad.
    """

    rego: str | None
    data: dict[str, Any] | None
    errors: tuple[FileError, ...] = ()


def check_documents(policy: PolicyName, content: Content, limits: Limits) -> Documents:
    """Everything that can be said of both files without OPA."""
    rego, rego_errors = check_rego(policy, content.rego, limits)
    if content.data is None:
        return Documents(rego, None, rego_errors)
    data, data_errors = check_data(policy, content.data, limits)
    return Documents(rego, data, (*rego_errors, *data_errors)[: limits.errors])


def check_rego(policy: PolicyName, raw: bytes, limits: Limits) -> tuple[str | None, tuple[FileError, ...]]:
    """The Rego text, or why it is none: size, encoding, Git LFS pointer, emptiness, nesting."""
    file = f"{policy}/{REGO_FILE}"
    text, error = _text(file, raw, limits.rego_bytes)
    if text is None or error is not None:
        return None, (error,) if error else ()
    if not _code(text):
        write = f"package {render_path(package_of(policy))}"
        return None, (FileError(file, f"has no Rego in it: a policy begins with `{write}`", 1, 1),)
    deep = too_deep(text, limits.nesting)
    if deep is not None:
        message = f"brackets are nested deeper than {limits.nesting} levels: split the expression into rules"
        return None, (FileError(file, message, *line_and_column(text, deep)),)
    return text, ()


def check_data(policy: PolicyName, raw: bytes, limits: Limits) -> tuple[dict[str, Any] | None, tuple[FileError, ...]]:
    """The JSON object, or why it is none; at most ``limits.errors`` errors, in the order of the text."""
    file = f"{policy}/{DATA_FILE}"
    text, error = _text(file, raw, limits.data_bytes)
    if text is None or error is not None:
        return None, (error,) if error else ()
    if not text.strip(" \t\r\n"):
        return None, (FileError(file, "is empty: write {} or delete the file", 1, 1),)
    data = _strict(text, limits.nesting)
    if data is not None:
        return data, ()
    problems = Scan(text, limits.nesting).run().problems or [_not_an_object(policy, text)]
    return None, tuple(_place(file, text, problems[: limits.errors]))


def _text(file: str, raw: bytes, limit: int) -> tuple[str | None, FileError | None]:
    """The bytes as text: UTF-8 without byte order mark and NUL, within the limit, and no Git LFS pointer."""
    if len(raw) > limit:
        return None, FileError(file, f"is {len(raw)} bytes; the limit is {limit}: make it smaller")
    if raw.startswith(_BOM):
        return None, FileError(file, "begins with a byte order mark (BOM): save it as UTF-8 without BOM", 1, 1)
    if raw.startswith(_LFS):
        return None, FileError(file, f"this is a Git LFS pointer, not the file: commit the file itself{_UNTRACK}", 1, 1)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        message = f"byte 0x{raw[error.start]:02x} is no UTF-8: save the file as UTF-8"
        return None, FileError(file, message, *line_and_column(before, len(before)))
    if "\0" in text:
        place = line_and_column(text, text.index("\0"))
        return None, FileError(file, "has a NUL character in it: save it as UTF-8 text", *place)
    return text, None


_UNTRACK = " (`git lfs untrack`, then add it again)"


def _code(text: str) -> bool:
    """Whether there is anything but white space and comments."""
    return any(line.strip() and not line.strip().startswith("#") for line in text.splitlines())


def _strict(text: str, nesting: int) -> dict[str, Any] | None:
    """The JSON object, ``None`` when anything at all is wrong with it: the scanner then says what."""
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):  # also no digit limit: CPython refuses more than 4,300 digits
        return None
    if not isinstance(data, dict) or _deeper(data, nesting):
        return None
    return None if "\\ud" in text.lower() and _has_surrogate(text, nesting) else data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _NotStrictError
    return result


def _refuse(_constant: str) -> Any:
    raise _NotStrictError


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise _NotStrictError
    return number


def _has_surrogate(text: str, nesting: int) -> bool:
    return bool(Scan(text, nesting).run().problems)


def _deeper(data: dict[str, Any], nesting: int) -> bool:
    """Whether objects and arrays are nested more than ``nesting`` levels, level by level."""
    level: list[Any] = [data]
    for _ in range(nesting):
        below = (value.values() if isinstance(value, dict) else value for value in level)
        level = [item for items in below for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def _not_an_object(policy: PolicyName, text: str) -> Problem:
    offset = len(text) - len(text.lstrip(" \t\r\n"))
    root = render_path(("data", *package_of(policy)))
    return Problem(offset, f'the top must be a JSON object, loaded at {root}: give the value a name, {{"items": …}}')


def _place(file: str, text: str, problems: Iterable[Problem]) -> Iterable[FileError]:
    for problem in problems:
        yield FileError(file, problem.message, *line_and_column(text, problem.offset))
