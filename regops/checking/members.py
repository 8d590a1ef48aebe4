"""The JSON objects in a stream, one after the other, in bounded memory: lines, arrays, arrays after arrays.

OPA's log is one object a line; what it uploads are arrays, which a receiver may have put one behind the other without
anything between. Both are objects with brackets, commas and white space around them, and that is all that is asked for.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

CHUNK: Final = 1 << 20
LONGEST: Final = 64 << 20
"""Characters of one object."""
_BETWEEN: Final = re.compile(r"[\s,\[\]\ufeff]*")
_BLANKS: Final = re.compile(r"[ \t\r]*")
_OPENING: Final = re.compile(r"[ \t\r,\[\]]*")
_NEAR_END: Final = 16
"""An error so near to the end of what was read may come of the cut: no literal and no escape is longer."""
_CUT_TEXT: Final = "Unterminated string"


@dataclass(frozen=True, slots=True)
class Member:
    """An object, where it begins (lines and columns count from 1), and its length in characters."""

    value: Any
    line: int
    column: int
    size: int


@dataclass(frozen=True, slots=True)
class Unparsed:
    """What is none, and why; what follows is looked at from the next line on."""

    why: str
    line: int
    column: int


class Members:
    """Iterate over it once."""

    def __init__(self, stream: IO[bytes], *, chunk: int = CHUNK, longest: int = LONGEST) -> None:
        self._stream = stream
        self._chunk = chunk
        self._longest = longest
        self._bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._decoder = json.JSONDecoder(parse_constant=_no_number)
        self._text = ""
        self._at = 0
        self._line = self._column = 1
        self._ascii = True
        self._ended = False

    def __iter__(self) -> Iterator[Member | Unparsed]:
        """Raises what reading the stream raises."""
        while self._to_next():
            line, column = self._line, self._column
            found = self._member()
            if isinstance(found, str):
                yield Unparsed(found, line, column)
                self._skip_line(column)
            else:
                value, size = found
                yield Member(value, line, column, size)

    def _to_next(self) -> bool:
        """Go to the next character that is not between objects; false at the end."""
        self._over(_BETWEEN)
        return self._at < len(self._text)

    def _over(self, pattern: re.Pattern[str]) -> int:
        """Go past what matches; how many characters these were."""
        passed = 0
        while True:
            found = pattern.match(self._text, self._at)
            end = found.end() if found else self._at
            passed += end - self._at
            self._advance(end)
            if self._at < len(self._text) or not self._more():
                return passed

    def _member(self) -> tuple[Any, int] | str:
        """The object that begins here, and its length; or why there is none."""
        if self._text[self._at] != "{":
            return "no JSON object"
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _NEAR_END or error.msg.startswith(_CUT_TEXT)
                if cut and len(self._text) - self._at > self._longest:
                    return f"longer than {self._longest} characters"
                if not (cut and self._more()):
                    return f"no JSON: {error.msg}"
            except (ValueError, RecursionError) as error:
                return f"no JSON: {error}"
            else:
                return self._taken(value, end)

    def _taken(self, value: Any, end: int) -> tuple[Any, int] | str:
        size = end - self._at
        if not self._ascii:
            try:
                self._text[self._at : end].encode()
            except UnicodeEncodeError:
                return "no UTF-8"
        self._advance(end)
        return value, size

    def _skip_line(self, column: int) -> None:
        """Go to the next line that may begin another object; one that is indented deeper belongs to the one, begun at
        ``column``, that cannot be read."""
        while True:
            while (end := self._text.find("\n", self._at)) < 0:
                self._advance(len(self._text))
                if not self._more():
                    return
            self._advance(end + 1)
            indent = self._over(_BLANKS)
            self._over(_OPENING)
            if self._at == len(self._text) or (indent < column and self._text[self._at] not in "}\n"):
                return

    def _more(self) -> bool:
        """Read on, as much again as is waiting, so that a long object is not looked at too often."""
        if self._ended:
            return False
        waiting = self._text[self._at :]
        data = self._stream.read(max(self._chunk, len(waiting)))
        self._ended = not data
        self._text, self._at = waiting + self._bytes.decode(data, final=self._ended), 0
        self._ascii = self._text.isascii()
        return len(self._text) > len(waiting) or not self._ended

    def _advance(self, end: int) -> None:
        lines = self._text.count("\n", self._at, end)
        if lines:
            self._line += lines
            self._column = end - self._text.rfind("\n", self._at, end)
        else:
            self._column += end - self._at
        self._at = end


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
