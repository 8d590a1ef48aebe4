"""An exact JSON scanner (RFC 8259) for the error path: what is wrong, and at which line and column.

The happy path uses `json`, whose C scanner is fast but neither sees a duplicate key nor knows where anything stood.
This one is slow and knows both. It goes on after what does not hinder it (a duplicate key, half a surrogate pair) and
stops at the first thing that is no JSON, or after `MOST_PROBLEMS`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[-+]?[A-Za-z0-9_.+-]+")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u([0-9a-fA-F]{4}))')
_HIGH, _LOW = range(0xD800, 0xDC00), range(0xDC00, 0xE000)
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

MAX_DIGITS = 4300
"""Python reads no longer integer (CVE-2020-10735), and no policy needs one."""

MOST_PROBLEMS = 100
"""Nobody reads more, and each costs a look back through the text."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one offset (in characters) of the text."""

    offset: int
    message: str


class _Stop(Exception):  # noqa: N818 it ends the scan, it is nobody's error
    pass


@dataclass(slots=True)
class Scan:
    """The findings of one scan: ``problems`` in the order of the text; ``keys`` the offset of each object key by its
    path from the top (array elements have no path), of the first one where a key occurs twice."""

    text: str
    nesting: int
    problems: list[Problem] = field(default_factory=list)
    keys: dict[Path, int] = field(default_factory=dict)
    _at: int = 0

    def run(self) -> Scan:
        """Scan the whole text."""
        try:
            self._value((), 0)
            self._space()
            if self._at < len(self.text):
                self._stop("there is something after the end of the JSON object: remove it")
        except _Stop:
            pass
        return self

    def _report(self, offset: int, message: str) -> None:
        self.problems.append(Problem(offset, message))
        if len(self.problems) >= MOST_PROBLEMS:
            raise _Stop

    def _stop(self, message: str, offset: int | None = None) -> None:
        self._report(self._at if offset is None else offset, message)
        raise _Stop

    def _space(self) -> str:
        """Skip white space; the next character, empty at the end."""
        match = _SPACE.match(self.text, self._at)
        self._at = match.end() if match else self._at
        return self.text[self._at : self._at + 1]

    def _value(self, path: Path | None, depth: int) -> None:
        character = self._space()
        if character in {"{", "["} and depth >= self.nesting:
            self._stop(f"the JSON is nested deeper than {self.nesting} levels: flatten it")
        if character == "{":
            self._object(path, depth + 1)
        elif character == "[":
            self._array(depth + 1)
        elif character == '"':
            self._string()
        else:
            self._scalar(character)

    def _object(self, path: Path | None, depth: int) -> None:
        self._at += 1
        seen: dict[str, int] = {}
        if self._space() == "}":
            self._at += 1
            return
        while True:
            self._key(path, seen, depth)
            if self._separator("}", "object"):
                return

    def _key(self, path: Path | None, seen: dict[str, int], depth: int) -> None:
        character, start = self._space(), self._at
        if character != '"':
            self._stop(_no_key(character))
        key = self._string()
        first = seen.setdefault(key, start)
        if first != start:
            line = line_and_column(self.text, first)[0]
            self._report(start, f'the key "{_short(key)}" stands twice in this object (first in line {line}): keep one')
        below = None if path is None else (*path, key)
        if below is not None:
            self.keys.setdefault(below, start)
        if self._space() != ":":
            self._stop(f'expected ":" after the key "{_short(key)}"')
        self._at += 1
        self._value(below, depth)

    def _array(self, depth: int) -> None:
        self._at += 1
        if self._space() == "]":
            self._at += 1
            return
        while True:
            self._value(None, depth)
            if self._separator("]", "array"):
                return

    def _separator(self, closing: str, what: str) -> bool:
        """Step over a comma (``False``) or the closing bracket (``True``)."""
        character, start = self._space(), self._at
        if character == closing:
            self._at += 1
            return True
        if character != ",":
            self._stop(f'expected "," or "{closing}" in this {what}' + (_END if not character else _hint(character)))
        self._at += 1
        if self._space() == closing:
            self._stop(f'remove the comma before "{closing}": JSON allows none there', start)
        return False

    def _string(self) -> str:
        """Read a string; lone surrogates in it are reported and replaced."""
        start, parts = self._at, list[str]()
        self._at += 1
        while True:
            plain = _PLAIN.match(self.text, self._at)
            parts.append(plain.group() if plain else "")
            self._at = plain.end() if plain else self._at
            character = self.text[self._at : self._at + 1]
            if character == '"':
                self._at += 1
                return "".join(parts)
            if character == "\\":
                parts.append(self._escape())
            elif not character:
                self._stop('this string has no closing quote (")', start)
            else:
                self._stop(
                    "a string has a line break or another control character in it: write it as \\n, \\t or \\u00XX"
                )

    def _escape(self) -> str:
        match = _ESCAPE.match(self.text, self._at)
        if match is None:
            self._stop('a backslash in a string must begin one of \\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX')
            raise AssertionError
        start, escape = self._at, match.group()
        self._at = match.end()
        if match[1] is None:
            return _SIMPLE[escape[1]]
        code = int(match[1], 16)
        if code in _HIGH:
            low = _ESCAPE.match(self.text, self._at)
            second = int(low[1], 16) if low and low[1] else 0
            if low and second in _LOW:
                self._at = low.end()
                return chr(0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00))
        if code in _HIGH or code in _LOW:
            self._report(start, f"{escape} is half of a surrogate pair without the other: write the whole character")
            return "\ufffd"
        return chr(code)

    def _scalar(self, character: str) -> None:
        start = self._at
        word_match = _WORD.match(self.text, start)
        word = word_match.group() if word_match else ""
        if word in {"true", "false", "null"}:
            self._at += len(word)
        elif word and _NUMBER.fullmatch(word):
            self._number(word)
            self._at += len(word)
        elif word:
            self._stop(f'"{_short(word)}" is no JSON value{_remedy(word)}')
        else:
            self._stop("expected a JSON value" + (_END if not character else _hint(character)))

    def _number(self, word: str) -> None:
        if word.lstrip("-").isdigit():
            if len(word) > MAX_DIGITS:
                self._report(self._at, f"a number has more than {MAX_DIGITS} digits: write it as a string")
        elif math.isinf(float(word)):
            self._report(self._at, f"the number {_short(word)} is too large to be exchanged: write it as a string")


_END = "; the file ends here"


def line_and_column(text: str, offset: int) -> tuple[int, int]:
    """Both from 1; a column counts characters, a line ends with a line feed."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[:limit] + "…"


def _hint(character: str) -> str:
    if character in {"/", "#"}:
        return "; JSON has no comments"
    if character == "'":
        return '; JSON strings stand in double quotes (")'
    return f', not "{character}"'


def _no_key(character: str) -> str:
    if not character:
        return 'expected a key or "}"' + _END
    return 'expected a key in double quotes (")' + _hint(character)


def _remedy(word: str) -> str:
    plain = word.lstrip("+-").lower()
    if plain in {"nan", "infinity", "inf"}:
        return ": write a number, a string or null"
    if plain in {"true", "false", "null", "none"}:
        return ": JSON has true, false and null, in lower case"
    if plain[:1].isdigit() or plain[:1] == ".":
        return ": write a number without leading zeros, plus sign or bare point (0.5, 10, 1e3)"
    return ": text stands in double quotes"
