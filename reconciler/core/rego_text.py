"""What can be told of Rego without parsing it: where brackets stand, and the ``package`` line.

Only for limits *before* parsing and for places in messages. What a policy may read is never decided by text.
Grammar: strings, raw strings, comments and template strings as OPA's scanner reads them
(``v1/ast/internal/scanner/scanner.go``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_CODE = re.compile(
    r"""
      (?P<template>\$["`])                          # the code in a template string is code
    | (?P<skip>"(?:[^"\\\n]|\\.)*"?|`[^`]*`?|\#[^\n]*)
    | (?P<open>[\[({]) | (?P<close>[\])}])
    """,
    re.VERBOSE,
)
_PART = {
    '"': re.compile(r'(?:[^"\\{\n]|\\.)*(?P<end>["{\n])?'),
    "`": re.compile(r"(?:[^`\\{]|\\.|\\)*(?P<end>[`{])?", re.DOTALL),
}
_LEADING: Final = re.compile(r"(?:\s|#[^\n]*(?:\n|\Z))*")
_PACKAGE: Final = re.compile(
    r"""package[ \t]+(?P<head>[A-Za-z_][A-Za-z0-9_]*)(?P<tail>(?:\.[A-Za-z_][A-Za-z0-9_]*|\["[^"\\\n]*"\])*)"""
)
_SEGMENT: Final = re.compile(r'\.([A-Za-z_][A-Za-z0-9_]*)|\["([^"\\\n]*)"\]')
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYWORDS: Final = frozenset(
    {"as", "contains", "default", "else", "every", "false", "if", "import", "in", "not", "null", "package", "some"}
    | {"true", "with", "and", "or", "data", "input"}
)
Offset = int


@dataclass(frozen=True, slots=True)
class PackageLine:
    """The ``package`` statement as written; ``path`` is without ``data``."""

    path: tuple[str, ...]
    offset: Offset
    text: str


def declared_package(text: str) -> PackageLine | None:
    """The package statement, which by Rego's grammar is the first thing in a module; ``None`` where it is not."""
    leading = _LEADING.match(text)
    match = _PACKAGE.match(text, leading.end() if leading else 0)
    if match is None:
        return None
    tail = tuple(name or quoted for name, quoted in _SEGMENT.findall(match["tail"]))
    return PackageLine((match["head"], *tail), match.start(), match.group())


def render_path(path: tuple[str, ...]) -> str:
    """A path as Rego writes it in every version: ``projects["a-b"].authz``."""
    head, *tail = path
    return head + "".join(f".{part}" if _plain(part) else f'["{part}"]' for part in tail)


def _plain(segment: str) -> bool:
    return _IDENTIFIER.fullmatch(segment) is not None and segment not in _KEYWORDS


def too_deep(text: str, nesting: int) -> Offset | None:
    """Where brackets outside strings and comments are first nested deeper than ``nesting``; ``None`` if nowhere."""
    if sum(map(text.count, "[({")) <= nesting:
        return None
    depth = 0
    for offset, step in _brackets(text):
        depth = max(depth + step, 0)
        if depth > nesting:
            return offset
    return None


def _brackets(text: str) -> Iterator[tuple[Offset, int]]:
    """+1 for each opening and -1 for each closing bracket, those around code in template strings included."""
    templates: list[tuple[str, int]] = []  # quote and number of brackets open within the code of a template string
    at = 0
    while match := _CODE.search(text, at):
        at = match.end()
        quote = ""
        if match["template"]:
            quote = match.group()[1]
        elif match["open"]:
            yield match.start(), 1
            templates[-1:] = [(mark, count + 1) for mark, count in templates[-1:]]
        elif match["close"]:
            yield match.start(), -1
            if templates and templates[-1][1] == 0:
                quote = templates.pop()[0]
            else:
                templates[-1:] = [(mark, count - 1) for mark, count in templates[-1:]]
        if quote:
            part = _PART[quote].match(text, at)
            at = part.end() if part else at
            if part and part["end"] == "{":
                yield at - 1, 1
                templates.append((quote, 0))
