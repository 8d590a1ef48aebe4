"""What people ask of the past: from the record, and from Git where the record has nothing (any more)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.ledger import Entry
from reconciler.core.model import Content, PolicyName
from reconciler.core.ports import BranchCommit, Source
from reconciler.core.record_ports import VersionStore
from reconciler.core.versions import Seen, State, StoredVersion, Version, judge, live_at

log = logging.getLogger(__name__)

NO_RECORD = "no MongoDB is configured: numbers, times and states are read from Git alone"
RECORD_AWAY = "MongoDB is out of reach: numbers, times and states are read from Git alone"
RECORD_REFUSED = "MongoDB refuses to answer (the log says why): numbers, times and states are read from Git alone"
NOT_RECORDED = "it is not recorded yet: numbers, times and states are read from Git alone"


class Repository(Source, Protocol):
    """The branch, with its head as far as this replica knows it."""

    async def head(self) -> str | None:
        """The branch's head without asking the remote."""
        ...


@dataclass(frozen=True, slots=True)
class Past:
    """Versions, newest first; ``missing`` says in a sentence why the record was not asked, and is empty otherwise."""

    versions: Sequence[Version]
    missing: str = ""


class VersionHistory:
    """Answers for one branch. ``store`` is ``None`` where no MongoDB is configured."""

    def __init__(self, source: Repository, store: VersionStore | None) -> None:
        self._source = source
        self._store = store

    async def versions(self, policy: PolicyName, *, before: int | None = None, limit: int = 20) -> Past:
        """A policy's versions with numbers below ``before``. Never fails for the record's sake."""
        missing = NO_RECORD
        if self._store is not None:
            try:
                past = Past(await self._store.versions(policy, before=before, limit=limit))
                if past.versions or before is not None:
                    return past
                missing = NOT_RECORDED
            except RegopsError as error:
                missing = _without(error)
        found = await self._from_git(policy)
        versions = [each for each in reversed(found) if before is None or each.version < before][:limit]
        return Past(versions, "" if missing == NOT_RECORDED and not versions else missing)

    async def version(self, policy: PolicyName, number: int) -> StoredVersion | None:
        """One version with its exact bytes, wherever they are; ``None`` when there never was one of this number, or if
        only a rewritten history had it and the record keeps it no longer."""
        if self._store is not None:
            try:
                stored = await self._store.version(policy, number)
                commit = None if stored else await self._store.commit_of(policy, number)
            except RegopsError as error:
                log.info("version is looked for in Git", extra={"policy": policy, "error": str(error)})
            else:
                if stored is not None:
                    return await self._filled(stored.version, stored.content)
                if commit is not None:
                    return await self._at_commit(policy, number, commit)
        # Not recorded yet, or never: as long as it is not, Git's own count is the number that it will get.
        found = next((each for each in await self._from_git(policy) if each.version == number), None)
        return None if found is None else await self._filled(found, None)

    async def live_at(self, policy: PolicyName, at: str) -> tuple[Version | None, str]:
        """The version that was live at a time (RFC 3339), and why the record was not asked (empty when it was). By Git
        alone it is the last one committed until then. `ValueError` for what is no time."""
        missing = NO_RECORD
        if self._store is not None:
            try:
                if (found := await self._store.live_at(policy, at)) is not None:
                    return found, ""
                missing = ""  # it does not reach back so far
            except RegopsError as error:
                missing = _without(error)
        return live_at(await self._from_git(policy), at), missing

    async def _at_commit(self, policy: PolicyName, number: int, commit: str) -> StoredVersion | None:
        found = (await self._source.branch_commits([commit], policy)).get(commit)
        versions = _numbered(policy, [found] if found else [], number)
        return await self._filled(versions[0], None) if versions else None

    async def _filled(self, version: Version, content: Content | None) -> StoredVersion:
        if content is None and version.blobs is not None:
            content = await self._source.read(version.blobs)
        return StoredVersion(version, content)

    async def _from_git(self, policy: PolicyName) -> Sequence[Version]:
        """Every version in the branch's first-parent history, oldest first."""
        head = await self._source.head() or await self._source.fetch()
        line = await self._source.line(head)
        commits = await self._source.branch_commits(line, policy)
        return _numbered(policy, [commits[commit] for commit in line if commit in commits], 1)


def _without(error: RegopsError) -> str:
    log.info("history is read from Git", extra={"reason": error.reason, "error": str(error)})
    return RECORD_AWAY if isinstance(error, TransientError) else RECORD_REFUSED


def _numbered(policy: PolicyName, commits: Sequence[BranchCommit], first: int) -> list[Version]:
    """The policy's versions in these commits, with states as far as Git tells them: inferred, all of them."""
    own = [commit for commit in commits if policy in commit.changes]
    entries = [(n, Entry(commit.info.commit, {policy: n})) for n, commit in enumerate(own, first)]
    seen = Seen(own[-1].info.commit if own else "", None, "")
    known = {commit.info.commit: commit for commit in own}
    versions = judge(entries, known, seen, line=known, told=())
    return [_inferred(version) for version in versions]


def _inferred(version: Version) -> Version:
    state = State.HELD if version.reason else State.APPLIED
    return Version(
        policy=version.policy,
        version=version.version,
        position=version.position,
        info=version.info,
        blobs=version.blobs,
        state=state,
        deleted=version.deleted,
        reason=version.reason,
        message=version.message,
        inferred=True,
    )
