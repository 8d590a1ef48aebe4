"""What people ask of the past: from the record, and from Git where the record has nothing (any more)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from reconciler.branch_history import BranchHistory, of_commit
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.model import Content, PolicyName
from reconciler.core.ports import Source
from reconciler.core.record_ports import Place, VersionStore
from reconciler.core.versions import Hold, State, StoredVersion, Version, live_at

NO_RECORD: Final = "no MongoDB is configured (mongo.uri): numbers, times and states are read from Git alone"
RECORD_AWAY: Final = "MongoDB is out of reach: numbers, times and states are read from Git alone"
RECORD_REFUSED: Final = (
    "MongoDB refuses to answer (the log says why): numbers, times and states are read from Git alone"
)
NOT_RECORDED: Final = "it is not recorded yet: numbers, times and states are read from Git alone"

log = logging.getLogger(__name__)

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class Moment:
    """What was live at a time: the last version of each policy, also where that is its deletion."""

    versions: Mapping[PolicyName, Version]
    missing: str = ""


class _NoRecordError(Exception):
    """The record cannot be asked; the message says why."""


class VersionHistory:
    """Answers for one branch. ``store`` is ``None`` where no MongoDB is configured. Never fails for the record's sake:
    what it does not answer, Git does."""

    def __init__(
        self,
        source: Repository,
        store: VersionStore | None,
        *,
        held: Callable[[], Mapping[PolicyName, Hold]] = dict,
    ) -> None:
        """``held``: the policies whose newest version is not live, and why, as far as etcd tells; Git cannot."""
        self._source = source
        self._store = store
        self._held = held
        self._branch = BranchHistory(source)

    async def versions(self, policy: PolicyName, *, before: int | None = None, limit: int = 20) -> Past:
        """A policy's versions with numbers below ``before``, without gaps: those that the record keeps no longer are
        read from Git."""
        try:
            return Past(await self._recorded(policy, before, limit))
        except _NoRecordError as error:
            found = [each for each in await self._from_git() if each.policy == policy]
            return Past(
                [each for each in reversed(found) if before is None or each.version < before][:limit], str(error)
            )

    async def recent(self, *, before: Place | None = None, limit: int = 20) -> Past:
        """The last versions of all policies, in the order in which their commits were recorded, newest first."""
        try:
            return Past(await self._asked(self._record().recent(before=before, limit=limit)))
        except _NoRecordError as error:
            found = sorted(await self._from_git(), key=place_of, reverse=True)
            return Past([each for each in found if before is None or place_of(each) < before][:limit], str(error))

    async def version(self, policy: PolicyName, number: int) -> StoredVersion | None:
        """One version with its exact bytes, wherever they are; ``None`` when there never was one of this number, or if
        only a rewritten history had it and the record keeps it no longer."""
        try:
            stored = await self._asked(self._record().version(policy, number))
            if stored is not None:
                return await self._filled(stored.version, stored.content)
            commit = await self._asked(self._record().commit_of(policy, number))
            # One that is not recorded yet will get the number that Git's own count gives it.
            found = await (self._at_commit(policy, number, commit) if commit else self._counted(policy, number))
        except _NoRecordError:
            found = await self._counted(policy, number)
        return None if found is None else await self._filled(found, None)

    async def former(self, policy: PolicyName, etag: str | None) -> Version | None:
        """The last version that was applied and whose content is another than that of ``etag``, the live one."""
        before: int | None = None
        while page := (await self.versions(policy, before=before, limit=100)).versions:
            for each in page:
                if each.state is State.APPLIED and each.etag not in {None, etag}:
                    return each
            before = page[-1].version
        return None

    async def live_at(self, policy: PolicyName, at: str) -> tuple[Version | None, str]:
        """The version that was live at a time (RFC 3339), and why the record was not asked (empty when it was). By Git
        alone it is the last one committed until then. `ValueError` for what is no time."""
        missing = ""
        try:
            found = await self._asked(self._record().live_at(policy, at))
            if found is not None:
                return found, ""
        except _NoRecordError as error:
            missing = str(error)
        return live_at([each for each in await self._from_git() if each.policy == policy], at), missing

    async def all_live_at(self, at: str) -> Moment:
        """The same for every policy that there ever was."""
        recorded: Mapping[PolicyName, Version | None] = {}
        missing = ""
        try:
            recorded = await self._asked(self._record().all_live_at(at))
        except _NoRecordError as error:
            missing = str(error)
        lives = {policy: version for policy, version in recorded.items() if version is not None}
        if missing or len(lives) < len(recorded):  # the record does not reach back so far for some
            by_policy: dict[PolicyName, list[Version]] = {}
            for each in await self._from_git():
                by_policy.setdefault(each.policy, []).append(each)
            told = {policy: live_at(versions, at) for policy, versions in by_policy.items() if policy not in lives}
            lives |= {policy: version for policy, version in told.items() if version is not None}
        return Moment(lives, missing)

    # --- the record --------------------------------------------------------------------------------------------------

    def _record(self) -> VersionStore:
        if self._store is None:
            raise _NoRecordError(NO_RECORD)
        return self._store

    async def _asked(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except RegopsError as error:
            log.info("history is read from Git", extra={"reason": error.reason, "error": str(error)})
            away = isinstance(error, TransientError)
            raise _NoRecordError(RECORD_AWAY if away else RECORD_REFUSED) from error

    async def _recorded(self, policy: PolicyName, before: int | None, limit: int) -> Sequence[Version]:
        found = await self._asked(self._record().versions(policy, before=before, limit=limit))
        numbers = [each.version for each in found]
        if numbers and numbers == list(range(numbers[0], numbers[-1] - 1, -1)):
            top = before is None or numbers[0] == before - 1
            if top and (len(numbers) == limit or numbers[-1] == 1):
                return found
        if not found and before is None:
            raise _NoRecordError(NOT_RECORDED)
        known = {each.version: each for each in found}
        commits = await self._asked(self._record().commits_of(policy, before=before, limit=limit))
        gaps = {number: commit for number, commit in commits if number not in known}
        read = await self._source.branch_commits(list(gaps.values()), policy)
        for number, commit in gaps.items():
            version = of_commit(read[commit], policy, number) if commit in read else None
            if version is not None:
                known[number] = version
        if before is None and (newest := max(known)) in gaps:  # its commit has its place, and is being recorded
            known[newest] = self._as_held(known[newest])
        return [known[number] for number in sorted(known, reverse=True)][:limit]

    # --- Git ---------------------------------------------------------------------------------------------------------

    async def _at_commit(self, policy: PolicyName, number: int, commit: str) -> Version | None:
        found = (await self._source.branch_commits([commit], policy)).get(commit)
        version = None if found is None else of_commit(found, policy, number)
        if version is None:
            return None
        newest = await self._asked(self._record().commits_of(policy, limit=1))
        return self._as_held(version) if [each for each, _ in newest] == [number] else version

    async def _counted(self, policy: PolicyName, number: int) -> Version | None:
        own = (each for each in await self._from_git() if each.policy == policy)
        return next((each for each in own if each.version == number), None)

    def _as_held(self, version: Version) -> Version:
        """The newest version of a policy, of which etcd may tell that it is held."""
        hold = self._held().get(version.policy)
        if hold is None:
            return version
        return replace(version, state=State.HELD, reason=hold.reason, message=hold.message)

    async def _filled(self, version: Version, content: Content | None) -> StoredVersion:
        if content is None and version.blobs is not None:
            content = await self._source.read(version.blobs)
        return StoredVersion(version, content)

    async def _from_git(self) -> Sequence[Version]:
        """Every version in the branch's first-parent history, oldest first."""
        found = await self._branch.versions(await self._source.head() or await self._source.fetch())
        held = dict(self._held())
        if not held:
            return found
        told = list(found)
        for place in range(len(told) - 1, -1, -1):
            if held.pop(told[place].policy, None) is not None:
                told[place] = self._as_held(told[place])
            if not held:
                break
        return told


def place_of(version: Version) -> Place:
    """Where it stands among the versions of all policies."""
    return Place(version.position, version.policy)
