"""The ledger as this recorder knows it, kept in step with what others write."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from typing import Final

from reconciler.core.errors import COMMIT_NOT_FOUND, TransientError
from reconciler.core.ledger import PAGE_COMMITS, Ledger
from reconciler.core.ports import BranchCommit, Source
from reconciler.core.record_ports import Bookmark, VersionStore

_COMMITS_KEPT: Final = 20_000
_CHANGES_KEPT: Final = 100_000
_BATCH: Final = 256


class SharedLedger:
    """Reads the pages that anybody has written, and gives places to commits that have none."""

    def __init__(self, source: Source, store: VersionStore) -> None:
        self._source = source
        self._store = store
        self._mark: Bookmark | None = None
        self._commits: dict[str, BranchCommit] = {}
        self._changes = 0
        self.ledger = Ledger()

    def moved(self, position: int) -> None:
        """This recorder has moved the bookmark."""
        if self._mark is not None:
            self._mark = Bookmark(self._mark.generation, max(self._mark.position, position))

    async def lost(self) -> bool:
        """Whether somebody has emptied the database, or restored an older one, since it was read last."""
        return self._mark is not None and self._older(await self._store.bookmark(), self._mark)

    async def follow(self) -> Bookmark:
        """The bookmark, with the ledger as far as anybody has written it. `TransientError` when the record is damaged:
        it is begun anew then."""
        mark = await self._store.bookmark()
        known, self._mark = self._mark, mark
        if known is None or self._older(mark, known):
            self.ledger = Ledger()
        if not await self._read_pages(mark):
            self.ledger = Ledger()  # what was remembered may be of a time before somebody restored the database
            if not await self._read_pages(mark):
                await self._begin_anew(mark, "pages of the record are missing")
        if known is None and mark.position > 1 and self.ledger.numbers and await self._store.empty(mark.generation):
            await self._begin_anew(mark, "the record's versions are missing")
        return mark

    async def claim(self, generation: str, head: str) -> bool:
        """Give every commit of the line to ``head`` its place, or find the one that it has. False when nobody can: the
        branch has gone another way since, and a new clone of it does not have this commit."""
        while head not in self.ledger.positions:
            line = await self.line(head, self.ledger.positions)
            if not line:
                return False
            await self._claim_line(generation, line)
        return True

    async def line(self, head: str, known: Container[str] = ()) -> Sequence[str]:
        """The first-parent history of ``head``, as far as what is known; none when the mirror has it no longer: another
        recorder has given it its place, and this one can tell nothing of it."""
        try:
            return await self._source.line(head, known)
        except TransientError as error:
            if error.reason != COMMIT_NOT_FOUND:
                raise
            return ()

    async def commits(self, names: Sequence[str]) -> Mapping[str, BranchCommit]:
        """What these commits changed, as far as the mirror has them. What was read to claim them is let go."""
        found: dict[str, BranchCommit] = {}
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            commits = await self._read(part)
            found |= {name: commits[name] for name in part if name in commits}
        self._commits, self._changes = {}, 0
        return found

    def _older(self, mark: Bookmark, known: Bookmark) -> bool:
        return mark.generation != known.generation or mark.position < known.position

    async def _begin_anew(self, mark: Bookmark, what: str) -> None:
        """Every number after a page that is missing is doubtful."""
        self._mark = None
        await self._store.clear(mark.generation)
        raise TransientError(f"{what}; it is begun anew from Git", reason="RecordDamaged")

    async def _read_pages(self, mark: Bookmark) -> bool:
        """Read the pages that the ledger lacks. False when some are missing, or its last one is not the record's."""
        ledger, last = self.ledger, self.ledger.last
        pages = await self._store.pages(mark.generation, last.first if last else 1)
        if last is not None:
            if not pages or pages[0] != last:
                return False
            pages = pages[1:]
        while pages:
            for page in pages:
                if page.first != ledger.end:
                    return False
                ledger.add(page)
            pages = await self._store.pages(mark.generation, ledger.end)
        return mark.position <= ledger.end

    async def _claim_line(self, generation: str, line: Sequence[str]) -> None:
        """Claim the places of these commits until another recorder was first: the line must be read again then. The
        next ones are read while some are claimed."""
        parts = [line[start : start + PAGE_COMMITS] for start in range(0, len(line), PAGE_COMMITS)]
        ahead = asyncio.ensure_future(self._read(parts[0]))
        try:
            for number, part in enumerate(parts, 1):
                commits = await ahead
                if number < len(parts):
                    ahead = asyncio.ensure_future(self._read(parts[number]))
                if not await self._claim_part(generation, part, commits):
                    return
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _claim_part(self, generation: str, part: Sequence[str], commits: Mapping[str, BranchCommit]) -> bool:
        """Claim the places of these commits; false once another recorder was first."""
        if missing := [commit for commit in part if commit not in commits]:
            raise TransientError(f"the mirror has no commit {missing[0]} any more", reason=COMMIT_NOT_FOUND)
        left = [commits[commit] for commit in part]
        while left:
            page = self.ledger.page(left)
            stored = await self._store.claim(generation, page)
            self.ledger.add(stored)
            if stored != page:
                return False
            del left[: len(page.entries)]
        return True

    async def _read(self, names: Sequence[str]) -> Mapping[str, BranchCommit]:
        """Kept, since it is needed twice; unless that would be too much."""
        new = [name for name in names if name not in self._commits]
        if new:
            if len(self._commits) + len(new) > _COMMITS_KEPT or self._changes > _CHANGES_KEPT:
                self._commits, self._changes = {}, 0
                new = list(names)
            found = await self._source.branch_commits(new)
            self._commits |= found
            self._changes += sum(len(commit.changes) for commit in found.values())
        return self._commits
