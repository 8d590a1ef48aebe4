"""The record and the audit projection in memory, with faults on demand. The contract suites keep them honest."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from operator import itemgetter

from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.ledger import Page
from reconciler.core.model import PolicyName
from reconciler.core.record_ports import OF_RECONCILER, AuditDocument, AuditQuery, Bookmark, Place
from reconciler.core.versions import (
    APPLIED_TIMES,
    Retention,
    State,
    StoredVersion,
    Version,
    better,
    known_as_live,
    live_at,
    made_live,
    surplus,
)

_FILTERS = ("resource", "actor", "action", "result", "request_id")


class _Faulty:
    """``fail("claim", error, …)`` lets the next calls of a method raise; ``lose`` lets them do their work first.

    ``away`` lets every call fail; ``calls`` counts them. Every call gives others their turn, as a network does.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.away: RegopsError | None = None
        self._faults: dict[str, deque[RegopsError]] = defaultdict(deque)

    def fail(self, method: str, *errors: RegopsError) -> None:
        self._faults[method].extend(errors)

    async def _called(self, method: str) -> None:
        self.calls[method] += 1
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away
        if self._faults[method]:
            raise self._faults[method].popleft()


class InMemoryVersions(_Faulty):
    """Implements `VersionStore`."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[tuple[PolicyName, int], StoredVersion] = {}
        self._pages: dict[int, Page] = {}
        self._mark: Bookmark | None = None
        self._generations = 0

    def lose(self) -> None:
        """Somebody drops the database."""
        self.stored.clear()
        self._pages.clear()
        self._mark = None

    async def bookmark(self) -> Bookmark:
        await self._called("bookmark")
        if self._mark is None:
            self.lose()
            self._generations += 1
            self._mark = Bookmark(str(self._generations), 1)
        return self._mark

    async def pages(self, generation: str, first: int) -> Sequence[Page]:
        await self._called("pages")
        return [self._pages[key] for key in sorted(self._pages) if key >= first] if self._current(generation) else []

    async def claim(self, generation: str, page: Page) -> Page:
        await self._called("claim")
        return self._pages.setdefault(page.first, page) if self._current(generation) else page

    async def add(self, generation: str, versions: Sequence[StoredVersion]) -> int:
        await self._called("add")
        if not self._current(generation):
            raise TransientError("the record was begun anew meanwhile", reason="RecordUnavailable")
        added = 0
        for new in versions:
            key = (new.version.policy, new.version.version)
            same = [
                old
                for old, stored in self.stored.items()
                if old == key or (old[0], stored.version.info.commit) == (key[0], new.version.info.commit)
            ]
            if not same:
                self.stored[key] = new
                added += 1
            else:
                self._improve(same[0], new)
        return added

    async def tell(self, generation: str, versions: Sequence[StoredVersion]) -> None:
        await self._called("tell")
        for new in versions if self._current(generation) else ():
            key = (new.version.policy, new.version.version)
            if key in self.stored:
                self._improve(key, new)

    async def settle(self, live: Mapping[PolicyName, str | None], *, at: str, until: int) -> Collection[PolicyName]:
        await self._called("settle")
        absent: list[PolicyName] = []
        for policy, etag in live.items():
            known = self._of(policy)
            found = made_live(known, etag, until)
            if found is None:
                absent.append(policy)
                continue
            if known_as_live(found, known) or at in found.applied_at:
                continue
            times = tuple(sorted([*found.applied_at, at])[-APPLIED_TIMES:])
            now = replace(found, state=State.APPLIED, reason="", message="", inferred=False, applied_at=times)
            key = (policy, found.version)
            self.stored[key] = replace(self.stored[key], version=now)
        return absent

    async def empty(self, generation: str) -> bool:
        await self._called("empty")
        return not self.stored or not self._current(generation)

    async def advance(self, generation: str, position: int) -> bool:
        await self._called("advance")
        if self._mark is None or not self._current(generation):
            return False
        self._mark = Bookmark(generation, max(position, self._mark.position))
        return True

    async def prune(self, keep: Retention, policies: Collection[PolicyName] | None = None) -> int:
        await self._called("prune")
        names = {policy for policy, _ in self.stored} if policies is None else set(policies)
        gone = [(name, each.version) for name in names for each in surplus(self._of(name), keep)]
        for key in gone:
            del self.stored[key]
        return len(gone)

    async def clear(self, generation: str) -> None:
        await self._called("clear")
        if self._current(generation):
            self.lose()

    async def versions(self, policy: PolicyName, *, before: int | None = None, limit: int = 20) -> Sequence[Version]:
        await self._called("versions")
        found = sorted(self._of(policy), key=lambda version: -version.version)
        return [version for version in found if before is None or version.version < before][:limit]

    async def version(self, policy: PolicyName, number: int) -> StoredVersion | None:
        await self._called("version")
        return self.stored.get((policy, number))

    async def commit_of(self, policy: PolicyName, number: int) -> str | None:
        await self._called("commit_of")
        entries = [entry for page in self._pages.values() for entry in page.entries]
        return next((entry.commit for entry in entries if entry.numbers.get(policy) == number), None)

    async def commits_of(
        self, policy: PolicyName, *, before: int | None = None, limit: int = 20
    ) -> Sequence[tuple[int, str]]:
        await self._called("commits_of")
        entries = [entry for page in self._pages.values() for entry in page.entries if policy in entry.numbers]
        found = sorted(((entry.numbers[policy], entry.commit) for entry in entries), reverse=True)
        return [each for each in found if before is None or each[0] < before][:limit]

    async def recent(self, *, before: Place | None = None, limit: int = 20) -> Sequence[Version]:
        await self._called("recent")
        found = sorted(
            ((Place(s.version.position, s.version.policy), s.version) for s in self.stored.values()), key=itemgetter(0)
        )
        return [version for place, version in reversed(found) if before is None or place < before][:limit]

    async def live_at(self, policy: PolicyName, at: str) -> Version | None:
        await self._called("live_at")
        return live_at(self._of(policy), at)

    async def all_live_at(self, at: str) -> Mapping[PolicyName, Version | None]:
        await self._called("all_live_at")
        return {policy: live_at(self._of(policy), at) for policy, _ in self.stored}

    def _current(self, generation: str) -> bool:
        return self._mark is not None and self._mark.generation == generation

    def _improve(self, key: tuple[PolicyName, int], new: StoredVersion) -> None:
        old = self.stored[key].version
        if (old.policy, old.info.commit) != (new.version.policy, new.version.info.commit) or not better(
            old, new.version
        ):
            return
        now = new.version
        state = replace(
            old,
            state=now.state,
            reason=now.reason,
            message=now.message,
            inferred=now.inferred,
            applied_at=now.applied_at,
        )
        filled = old.reason == "CommitGone"
        self.stored[key] = new if filled else replace(self.stored[key], version=state)

    def _of(self, policy: PolicyName) -> list[Version]:
        return [stored.version for (name, _), stored in self.stored.items() if name == policy]


class InMemoryAudit(_Faulty):
    """Implements `AuditStore`."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, AuditDocument] = {}
        self._verified: str | None = None

    async def append(self, events: Sequence[AuditDocument]) -> None:
        await self._called("append")
        for event in events:
            self.stored.setdefault(json.dumps(event, sort_keys=True), dict(event))

    async def known(self, commits: Collection[str]) -> set[str]:
        await self._called("known")
        found = {str(each.get("commit")) for each in self.stored.values() if each["action"] not in OF_RECONCILER}
        return found & set(commits)

    async def verified(self) -> str | None:
        await self._called("verified")
        return self._verified if self.stored else None

    async def verify(self, commit: str | None) -> None:
        await self._called("verify")
        self._verified = commit

    async def events(
        self, query: AuditQuery, *, before: str | None = None, limit: int = 100
    ) -> tuple[Sequence[AuditDocument], str | None]:
        await self._called("events")
        order = sorted(self.stored, key=lambda key: (_at(self.stored[key]), key), reverse=True)
        found = [self.stored[key] for key in order if _fits(self.stored[key], query)]
        if before is not None and not before.isdecimal():
            raise ValueError(f"{before!r} is no place in the audit trail")
        start = int(before or 0)
        rest = str(start + limit) if start + limit < len(found) else None
        return found[start : start + limit], rest


def _at(event: AuditDocument) -> datetime:
    return datetime.fromisoformat(str(event["ts"]))


def _fits(event: AuditDocument, query: AuditQuery) -> bool:
    since = query.since is None or _at(event) >= datetime.fromisoformat(query.since)
    until = query.until is None or _at(event) < datetime.fromisoformat(query.until)
    return since and until and all(getattr(query, name) in {None, event.get(name)} for name in _FILTERS)
