"""What the record of versions and the audit projection need from their database. See `reconciler.core.ports` for the
rules: adapters raise `TransientError` while the other side is away and `StalledError` when trying again cannot help.

Everything here is a projection: versions of Git's history, audit events of the audit log. Nothing reads it to decide
what is in force, and every write may be repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from reconciler.core.ledger import Page
from reconciler.core.model import PolicyName
from reconciler.core.versions import Retention, StoredVersion, Version


@dataclass(frozen=True, slots=True)
class Bookmark:
    """How far the record goes. All versions of the positions below ``position`` are written.

    ``generation`` names this record: whoever finds another one than before knows that the database was emptied, and a
    lower position that it was restored; what was remembered of it is worth nothing then.
    """

    generation: str
    position: int


class Place(NamedTuple):
    """Where a version stands among those of all policies: its commit's position, then its name."""

    position: int
    policy: PolicyName


class VersionStore(Protocol):
    """The record of all policies' last versions. Several recorders may write at once."""

    async def bookmark(self) -> Bookmark:
        """Where the record ends. Where there is none, one is begun at position 1, with all indexes and without
        whatever an older record has left."""
        ...

    async def pages(self, generation: str, first: int) -> Sequence[Page]:
        """The pages of the ledger from the one at position ``first`` on, without gaps; bounded, so that a caller asks
        again from the end of the last one until none comes."""
        ...

    async def claim(self, generation: str, page: Page) -> Page:
        """Insert a page where none has its place, and return the one that is there: this one or another's."""
        ...

    async def add(self, generation: str, versions: Sequence[StoredVersion]) -> int:
        """Insert the versions that are not there; how many were. The others are told. `TransientError` where this
        record has ended, and another begun, that has them."""
        ...

    async def tell(self, generation: str, versions: Sequence[StoredVersion]) -> None:
        """Of these versions, where they are there, only the state changes, to a word that a pass told, of higher rank
        or where it was inferred; and one whose commit was gone is filled in."""
        ...

    async def settle(self, live: Mapping[PolicyName, str | None], *, at: str, until: int) -> Collection[PolicyName]:
        """A pass made older versions live at time ``at``, with a commit at position ``until``: of each policy the
        newest one up to there with this ETag (``None``: its deletion) is applied, then, unless it is known as the last
        one made live. Returns the policies of which there is no such version (any more)."""
        ...

    async def empty(self, generation: str) -> bool:
        """Whether no version of this record is there at all."""
        ...

    async def advance(self, generation: str, position: int) -> bool:
        """Move the bookmark forward to ``position``; never back. False when this record has ended meanwhile: what was
        written of it is gone."""
        ...

    async def prune(self, keep: Retention, policies: Collection[PolicyName] | None = None) -> int:
        """Delete the versions of these policies (of all) that are kept no longer; how many."""
        ...

    async def clear(self, generation: str) -> None:
        """Forget this record: the next bookmark begins a new one. Nothing happens to a record begun since."""
        ...

    async def versions(self, policy: PolicyName, *, before: int | None = None, limit: int = 20) -> Sequence[Version]:
        """A policy's versions with numbers below ``before``, newest first."""
        ...

    async def version(self, policy: PolicyName, number: int) -> StoredVersion | None:
        """One version with its text; ``None`` when it is not (or no more) recorded."""
        ...

    async def commit_of(self, policy: PolicyName, number: int) -> str | None:
        """The commit that brought this version, also when the version itself is kept no longer."""
        ...

    async def commits_of(
        self, policy: PolicyName, *, before: int | None = None, limit: int = 20
    ) -> Sequence[tuple[int, str]]:
        """The numbers of a policy's versions below ``before``, each with its commit, newest first: also of those that
        are kept no longer."""
        ...

    async def recent(self, *, before: Place | None = None, limit: int = 20) -> Sequence[Version]:
        """The versions of all policies, in the order of their places, newest first, from below ``before`` on."""
        ...

    async def live_at(self, policy: PolicyName, at: str) -> Version | None:
        """The version that was made live last at or before a time (RFC 3339); where no pass told when, the time of its
        commit counts. ``None`` when the record does not reach back so far."""
        ...

    async def all_live_at(self, at: str) -> Mapping[PolicyName, Version | None]:
        """The same for every policy in the record."""
        ...


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """What to look for; ``None`` is anything. ``since`` (included) and ``until`` (not included) are RFC 3339."""

    resource: str | None = None
    actor: str | None = None
    action: str | None = None
    result: str | None = None
    request_id: str | None = None
    since: str | None = None
    until: str | None = None


OF_RECONCILER: Final = ("apply", "prune", "hold", "heal", "rewrite")
"""Actions that follow from a commit: events of these tell what became of it, not who made it."""

AuditDocument = Mapping[str, object]
"""One event: the audit log's line as a JSON object. ``ts`` is RFC 3339 UTC with milliseconds."""


class AuditStore(Protocol):
    """The projection of the audit log, kept for a time."""

    async def known(self, commits: Collection[str]) -> set[str]:
        """Those of these commits that events tell of as something that somebody wrote or pushed."""
        ...

    async def verified(self) -> str | None:
        """The commit up to which every commit of the branch has its event; ``None`` when nobody has looked, or since
        events were lost."""
        ...

    async def verify(self, commit: str | None) -> None:
        """Remember that; ``None``: events were lost."""
        ...

    async def append(self, events: Sequence[AuditDocument]) -> None:
        """Insert the events that are not there yet: equal lines are one event."""
        ...

    async def events(
        self, query: AuditQuery, *, before: str | None = None, limit: int = 100
    ) -> tuple[Sequence[AuditDocument], str | None]:
        """Events newest first, and what to pass as ``before`` to go on; ``None`` at the end. `ValueError` for a
        ``before`` that no answer gave."""
        ...
