"""The log of passes: what each one that did something has done, by whom, how long it took, and when it was enforced."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from reconciler.core.records import Record

MOST_CHANGES: Final = 50
"""Policies that one entry names; the others are counted."""
MOST_COMMITS: Final = 20
"""Commits that one entry names, the newest; the others are counted."""
APPLIED: Final = "applied"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class PassChange:
    """What a pass did to one policy. ``operation``: create, update, delete or heal (a hand edit in etcd was undone).
    ``commit`` and ``actor`` (``Name <email>``) made the version."""

    policy: str
    operation: str
    commit: str
    actor: str


@dataclass(frozen=True, slots=True)
class PassCommit:
    """One commit that a pass brought: of the first-parent history, so that a merge is one."""

    commit: str
    author: str
    committed_at: str
    subject: str


@dataclass(frozen=True, slots=True)
class Enforced:
    """How far the fleet has followed. ``agents``: those that are counted; ``enforced``: those whose OPA has proven the
    commit or a later one; ``first_at`` and ``last_at``: the first and the last proof so far, RFC 3339."""

    agents: int
    enforced: int
    first_at: str | None = None
    last_at: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all do."""
        return self.enforced >= self.agents > 0


@dataclass(frozen=True, slots=True)
class PassRecord(Record):
    """``passes/<id>``: one pass that wrote, or passes in a row that failed for one reason.

    ``outcome`` is ``applied`` or ``failed`` (``reason`` and ``message`` say why, ``count`` how often in a row, ``at``
    when last). ``before`` is the commit that was applied when it began. Times are RFC 3339 UTC with milliseconds, of
    the leader's clock: ``seen_at`` is when the trigger was noticed; ``enforced`` is filled in as the fleet follows.
    ``digest`` is `Applied.digest` of what it made live: a commit may take several passes, when what was held of it goes
    live later. ``holds`` are the first `MOST_CHANGES` of the policies that were held then; ``confirmed_by`` is who
    confirmed the deletions that it carried out.
    """

    optional: ClassVar[frozenset[str]] = frozenset(
        {"commit", "before", "fetched_at", "validated_at", "applied_at", "reason", "message", "count", "enforced"}
        | {"changes", "changes_more", "commits", "commits_more", "created", "updated", "deleted", "healed", "held"}
        | {"rewritten", "digest", "confirmed_by", "holds"}
    )

    id: str
    outcome: str
    trigger: str
    seen_at: str
    at: str
    leader: str
    commit: str | None = None
    before: str | None = None
    fetched_at: str | None = None
    validated_at: str | None = None
    applied_at: str | None = None
    rewritten: bool = False
    created: int = 0
    updated: int = 0
    deleted: int = 0
    healed: int = 0
    held: int = 0
    changes: tuple[PassChange, ...] = ()
    changes_more: int = 0
    commits: tuple[PassCommit, ...] = ()
    commits_more: int = 0
    reason: str = ""
    message: str = ""
    count: int = 1
    enforced: Enforced | None = None
    digest: str | None = None
    confirmed_by: str | None = None
    holds: tuple[str, ...] = ()

    @classmethod
    def _build(cls, document: dict[str, Any]) -> PassRecord:
        enforced = document.get("enforced")
        return cls(
            **{
                **document,
                "changes": tuple(PassChange(**each) for each in document.get("changes") or ()),
                "holds": tuple(document.get("holds") or ()),
                "commits": tuple(PassCommit(**each) for each in document.get("commits") or ()),
                "enforced": Enforced(**enforced) if enforced else None,
            }
        )

    @property
    def moved(self) -> bool:
        """Whether another commit is applied since."""
        return self.outcome == APPLIED and self.commit != self.before

    @property
    def followed(self) -> bool:
        """Whether the fleet has something to follow: another commit, or another content of the same one. A healed hand
        edit is none: no OPA had it."""
        return self.moved or (self.outcome == APPLIED and self.created + self.updated + self.deleted > 0)

    def again(self, later: PassRecord) -> PassRecord:
        """This failure, after it has happened once more."""
        return replace(self, count=self.count + later.count, at=later.at, message=later.message, trigger=later.trigger)

    def same_failure(self, later: PassRecord) -> bool:
        """Whether both failed for one reason."""
        return self.outcome == later.outcome == FAILED and self.reason == later.reason

    def seconds(self) -> dict[str, float | None]:
        """How long each stage took; ``total`` is from the trigger to etcd, ``enforced`` from there to the last proof,
        once every OPA has given one."""
        last = self.enforced.last_at if self.enforced and self.enforced.complete else None
        return {
            "fetch": between(self.seen_at, self.fetched_at),
            "validate": between(self.fetched_at, self.validated_at),
            "apply": between(self.validated_at, self.applied_at),
            "total": between(self.seen_at, self.applied_at),
            "enforced": between(self.applied_at, last),
        }

    def document(self) -> dict[str, Any]:
        """The entry as `GET /history` gives it."""
        return {**asdict(self), "seconds": self.seconds()}


def between(first: str | None, second: str | None) -> float | None:
    """Seconds from one RFC 3339 time to another, never negative; ``None`` where one is not known."""
    if first is None or second is None:
        return None
    try:
        return max(0.0, round((datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds(), 3))
    except (ValueError, TypeError):
        return None
