"""What differs between two large trees, found without reading most of either.

A commit changes one of many projects: both trees begin and end with the same bytes. libgit2's own diff goes through
every entry, and takes ten times as long for 1,000 of them.
"""

from __future__ import annotations

import re
from typing import Final

from reconciler.adapters.git.objects import Entry

_ENTRY: Final = re.compile(rb"0*([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
_WHOLE: Final = re.compile(rb"(?:[0-7]+ [^\0]+\0.{20})*+", re.DOTALL)
_STEPS: Final = 64
"""Differing entries after which reading everything is cheaper than looking for the end of the difference."""

Pair = tuple[Entry | None, Entry | None]
"""An entry before and after; ``None`` where there is none."""


def differing(old: bytes, new: bytes) -> dict[bytes, Pair]:
    """The entries by name, before and after, that differ between two raw trees."""
    start = _last_boundary(old, _common(old, new))
    before, after = _Reader(old, start), _Reader(new, start)
    for _ in range(_STEPS):
        if before.rest() == after.rest():
            break
        if before.at <= after.at:  # whichever is behind
            before.step()
        else:
            after.step()
    else:
        before.read_all()
        after.read_all()
    names = before.entries.keys() | after.entries.keys()
    pairs = {name: (before.entries.get(name), after.entries.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class _Reader:
    """Reads a raw tree from an entry's beginning. ``at`` counts the bytes that are left, as a negative number: two
    readers with the same rest are at the same place."""

    def __init__(self, raw: bytes, start: int) -> None:
        self._raw = raw
        self._place = start
        self.entries: dict[bytes, Entry] = {}

    @property
    def at(self) -> int:
        return self._place - len(self._raw)

    def rest(self) -> bytes:
        return self._raw[self._place :]

    def step(self) -> None:
        found = _ENTRY.match(self._raw, self._place)
        if found is None:
            raise KeyError("a tree that cannot be read")
        self._keep((found[1], found[2], found[3]))
        self._place = found.end()

    def read_all(self) -> None:
        for entry in _ENTRY.findall(self._raw, self._place):
            self._keep(entry)
        self._place = len(self._raw)

    def _keep(self, entry: Entry) -> None:
        self.entries[entry[1]] = entry


def _common(old: bytes, new: bytes) -> int:
    """How many bytes both begin with."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _last_boundary(raw: bytes, end: int) -> int:
    """The end of the last entry that lies wholly before ``end``."""
    found = _WHOLE.match(raw, 0, end)
    return found.end() if found else 0
