"""The versions that Git alone tells: the branch's first-parent history, read once and then only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from reconciler.core.ledger import Entry, Ledger, Page
from reconciler.core.model import PolicyName
from reconciler.core.ports import BranchCommit, Source
from reconciler.core.versions import Seen, State, Version, judge

_BATCH = 512
"""Commits that are read in one turn."""


class BranchHistory:
    """All versions along one branch, numbered as the record numbers them while nobody rewrites it.

    A rewritten branch is read anew: without a record nobody knows which numbers the lost commits had.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ledger = Ledger()
        self._versions: list[Version] = []
        self._reading = asyncio.Lock()

    async def versions(self, head: str) -> Sequence[Version]:
        """Every version up to ``head``, oldest first; of one commit sorted by policy. All states are inferred."""
        async with self._reading:
            await self._follow(head)
            return self._versions

    async def _follow(self, head: str) -> None:
        ledger = self._ledger
        if head in ledger.positions and ledger.positions[head] == ledger.end - 1:
            return
        line = await self._source.line(head, ledger.positions)
        if ledger.entries and not await self._continues(line, ledger.entries[-1].commit):
            self._ledger = ledger = Ledger()
            self._versions = []
            line = await self._source.line(head)
        for start in range(0, len(line), _BATCH):
            part = line[start : start + _BATCH]
            found = await self._source.branch_commits(part)
            self._append([found[commit] for commit in part if commit in found])

    async def _continues(self, line: Sequence[str], last: str) -> bool:
        """Whether ``line`` goes on where the history ended: else the branch went back, or another way."""
        if not line:
            return False
        whole = await self._source.line(line[0], {last})
        return list(whole) == [line[0]]

    def _append(self, commits: Sequence[BranchCommit]) -> None:
        while commits:
            page = self._ledger.page(commits)
            self._ledger.add(page)
            self._versions += _versions(page, commits[: len(page.entries)])
            commits = commits[len(page.entries) :]


def of_commit(commit: BranchCommit, policy: PolicyName, number: int) -> Version | None:
    """The version of this number that a commit made of a policy; ``None`` when it did not change it."""
    if policy not in commit.changes:
        return None
    page = Page(1, (Entry(commit.info.commit, {policy: number}),))
    return next(iter(_versions(page, [commit])), None)


def _versions(page: Page, commits: Sequence[BranchCommit]) -> list[Version]:
    """The page's versions, with states as far as Git tells them."""
    known = {commit.info.commit: commit for commit in commits}
    entries = list(enumerate(page.entries, page.first))
    versions = judge(entries, known, Seen("", None, ""), line=known, told=())
    return [
        replace(each, state=State.HELD if each.reason else State.APPLIED, inferred=True, applied_at=())
        for each in versions
    ]
