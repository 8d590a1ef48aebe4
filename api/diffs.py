"""What a commit would change, as ``git diff`` shows it: unified, with three lines of context. Pure.

The time it takes grows with the texts and little more, whatever is in them; `difflib` alone takes minutes for a
megabyte in which a hundred lines occur again and again. The price is that where much has changed in many equal lines
the diff is correct, but not the shortest.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Literal

_LINE: Final = re.compile(r"[^\n]*\n|[^\n]+")
_SMALL: Final = 1024
"""Pairs of lines that are compared one by one."""
_DEPTH: Final = 8
"""How often a part is taken apart by the lines that occur once in it."""

Block = tuple[int, int, int]
"""Equal lines: where they begin in each text, and how many they are."""
Lines = Sequence[str]
Opcode = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]


class _Known(difflib.SequenceMatcher[str]):
    """Groups opcodes that were found elsewhere."""

    opcodes: list[Opcode]

    def get_opcodes(self) -> list[Opcode]:
        return self.opcodes


def unified(path: str, old: bytes | None, new: bytes | None) -> str:
    """The diff of one file; ``None`` where there is none. Lines end at a line feed, as git's do, and nowhere else."""
    before, after = (_LINE.findall((text or b"").decode("utf-8", "replace")) for text in (old, new))
    matcher = _Known(None, (), ())
    matcher.opcodes = list(_opcodes(before, after))
    named = f"--- {'/dev/null' if old is None else f'a/{path}'}\n+++ {'/dev/null' if new is None else f'b/{path}'}\n"
    hunks = "".join(_hunk(group, before, after) for group in matcher.get_grouped_opcodes())
    return f"{named}{hunks}"


def _hunk(group: Sequence[tuple[str, int, int, int, int]], before: Lines, after: Lines) -> str:
    first, last = group[0], group[-1]
    said = [f"@@ -{_range(first[1], last[2])} +{_range(first[3], last[4])} @@\n"]
    for tag, a, a_end, b, b_end in group:
        if tag == "equal":
            said += (_line(" ", line) for line in before[a:a_end])
            continue
        said += (_line("-", line) for line in before[a:a_end])
        said += (_line("+", line) for line in after[b:b_end])
    return "".join(said)


def _line(mark: str, line: str) -> str:
    return f"{mark}{line}" if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"


def _range(start: int, end: int) -> str:
    """POSIX diff, "Diff -u Output Format": an empty range is named by the line before it."""
    length = end - start
    return str(start + 1) if length == 1 else f"{start + 1 if length else start},{length}"


def _opcodes(before: Lines, after: Lines) -> Iterator[Opcode]:
    a = b = equal = 0
    for at, bt, size in [
        *_blocks(before, after, (0, len(before), 0, len(after)), _DEPTH),
        (len(before), len(after), 0),
    ]:
        if (at, bt) == (a, b) and size:
            equal += size
        else:
            if equal:
                yield "equal", a - equal, a, b - equal, b
            if (at, bt) != (a, b):
                yield "replace", a, at, b, bt
            equal = size
        a, b = at + size, bt + size


def _blocks(before: Lines, after: Lines, part: tuple[int, int, int, int], depth: int) -> Iterator[Block]:
    """The equal lines of a part (from and to in each text), in order."""
    a, a_end, b, b_end = part
    start = 0
    while a + start < a_end and b + start < b_end and before[a + start] == after[b + start]:
        start += 1
    end = 0
    while a + start < a_end - end and b + start < b_end - end and before[a_end - end - 1] == after[b_end - end - 1]:
        end += 1
    if start:
        yield a, b, start
    yield from _inner(before, after, (a + start, a_end - end, b + start, b_end - end), depth)
    if end:
        yield a_end - end, b_end - end, end


def _inner(before: Lines, after: Lines, part: tuple[int, int, int, int], depth: int) -> Iterator[Block]:
    a, a_end, b, b_end = part
    if (a_end - a) * (b_end - b) <= _SMALL:
        found = difflib.SequenceMatcher(None, before[a:a_end], after[b:b_end], autojunk=False).get_matching_blocks()
        yield from ((a + at, b + bt, size) for at, bt, size in found if size)
        return
    anchors = _anchors(before, after, part) if depth else []
    if not anchors:
        return
    for at, bt in [*anchors, (a_end, b_end)]:
        yield from _blocks(before, after, (a, at, b, bt), depth - 1)
        if at < a_end:
            yield at, bt, 1
        a, b = at + 1, bt + 1


def _anchors(before: Lines, after: Lines, part: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """Lines that occur once on either side: the longest run of them in the same order (patience diff)."""
    a, a_end, b, b_end = part
    once = {line for line, count in Counter(before[a:a_end]).items() if count == 1}
    once &= {line for line, count in Counter(after[b:b_end]).items() if count == 1}
    place = {after[i]: i for i in range(b, b_end) if after[i] in once}
    pairs = [(i, place[before[i]]) for i in range(a, a_end) if before[i] in once]
    tails: list[int] = []
    ends: list[int] = []
    before_it: list[int] = []
    for number, (_, at) in enumerate(pairs):
        length = bisect_left(tails, at)
        before_it.append(ends[length - 1] if length else -1)
        tails[length : length + 1], ends[length : length + 1] = [at], [number]
    chain, step = list[tuple[int, int]](), ends[-1] if ends else -1
    while step >= 0:
        chain.append(pairs[step])
        step = before_it[step]
    return chain[::-1]
