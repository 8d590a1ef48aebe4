"""The order in which commits were recorded, and the version numbers that follow from it. Pure.

While nobody rewrites the branch, that order is its first-parent history, and a version's number the ordinal of the
policy's change in it: whoever reads Git finds the same. A rewritten branch is appended, so that numbers go on from the
highest one. The order is kept in pages, each inserted only where none has its place yet: of two recorders one is first,
and the other takes over what it finds. So both agree on every number, whatever each of them saw of the branch.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from reconciler.core.model import PolicyName
from reconciler.core.ports import BranchCommit

PAGE_COMMITS: Final = 256
"""At most so many commits share a page."""
PAGE_VERSIONS: Final = 4096
"""A page is full with so many versions; one commit's always share a page."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A recorded commit and the number of each version that it brought."""

    commit: str
    numbers: Mapping[PolicyName, int]


@dataclass(frozen=True, slots=True)
class Page:
    """Consecutive entries. ``first`` is the position of the first one, counted from 1; the next page begins at
    ``end``."""

    first: int
    entries: tuple[Entry, ...]

    @property
    def end(self) -> int:
        """The position after the last entry."""
        return self.first + len(self.entries)


@dataclass(slots=True)
class Ledger:
    """All pages, as far as they were read. ``numbers`` has the highest number of each policy."""

    entries: list[Entry] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    numbers: dict[PolicyName, int] = field(default_factory=dict)
    last: Page | None = None

    @property
    def end(self) -> int:
        """The position of the entry that comes next."""
        return len(self.entries) + 1

    def add(self, page: Page) -> None:
        """Append a page. `ValueError` when it does not begin where this one ends."""
        if page.first != self.end:
            raise ValueError(f"a page at {page.first} where one at {self.end} must follow")
        for position, entry in enumerate(page.entries, page.first):
            self.positions[entry.commit] = position
            self.numbers.update(entry.numbers)
        self.entries.extend(page.entries)
        self.last = page

    def page(self, commits: Iterable[BranchCommit]) -> Page:
        """The page that comes next: as many of these commits, oldest first, as it holds. None is in here yet."""
        numbers = dict(self.numbers)
        entries: list[Entry] = []
        versions = 0
        for commit in commits:
            versions += len(commit.changes)
            if entries and (len(entries) == PAGE_COMMITS or versions > PAGE_VERSIONS):
                break
            own = {policy: numbers.get(policy, 0) + 1 for policy in sorted(commit.changes)}
            numbers |= own
            entries.append(Entry(commit.info.commit, own))
        return Page(self.end, tuple(entries))

    def before(self, position: int) -> Container[str]:
        """The commits that have a position below this one."""
        return _Before(self.positions, position)

    def between(self, first: int, last: int) -> Sequence[tuple[int, Entry]]:
        """The entries from position ``first`` to ``last``, both included, with their positions."""
        return list(enumerate(self.entries[first - 1 : last], first))


@dataclass(frozen=True, slots=True)
class _Before:
    positions: Mapping[str, int]
    end: int

    def __contains__(self, commit: object) -> bool:
        return self.positions.get(str(commit), self.end) < self.end
