"""What a write is, before and after it became a commit: values, and the refusals it may meet."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from reconciler.core.errors import RefusalError
from reconciler.core.model import BlobIds, Content, FileError, PolicyName
from reconciler.core.ports import Identity
from reconciler.core.tracing import parent_of

KEY_TRAILER: Final = "Idempotency-Key"
REQUEST_TRAILER: Final = "Request-ID"
ACTOR_TRAILER: Final = "Actor"
RESTORES_TRAILER: Final = "Restores"
TRACE_TRAILER: Final = "Trace-Parent"


@dataclass(frozen=True, slots=True)
class Current:
    """A policy at the head of the branch: what a write is compared with. All ``None`` where there is none."""

    policy: PolicyName
    blobs: BlobIds | None = None
    content: Content | None = None

    @property
    def etag(self) -> str | None:
        """Its strong entity-tag."""
        return self.blobs.etag if self.blobs else None


Decision = Callable[[Current], Content | None]
"""Compares with the head and gives the new content, ``None`` to delete. Pure, quick, and called again whenever the
branch has moved. Raises `RefusalError`."""


@dataclass(frozen=True, slots=True)
class KeyHash:
    """An idempotency key as it is written into commits: hashes of (key, caller, method, path) and of the request."""

    scope: str
    request: str

    def __str__(self) -> str:
        return f"{self.scope}.{self.request}"


@dataclass(frozen=True, slots=True)
class Write:
    """One change of one policy that somebody asks for."""

    policy: PolicyName
    decide: Decision
    author: Identity
    actor: str
    request_id: str
    key: KeyHash | None = None
    note: str = ""
    """What the commit's subject says besides action and policy."""
    restores: str = ""
    """The version that a rollback restores, and its commit."""
    trace: str | None = None
    """The trace context of the request."""
    attempt: str = field(default_factory=lambda: secrets.token_hex(8))
    """Which attempt this is: a request id does not say it, since callers choose it and may repeat it."""

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """What the commit's message ends with."""
        found = [(REQUEST_TRAILER, self.request_id), (ACTOR_TRAILER, self.actor)]
        found += [(RESTORES_TRAILER, self.restores)] if self.restores else []
        found += [(TRACE_TRAILER, parent_of(self.trace))] if self.trace else []
        return (*found, (KEY_TRAILER, str(self.key))) if self.key else tuple(found)

    def subject(self, *, before: BlobIds | None, after: Content | None) -> str:
        """The first line of the commit's message."""
        action = "Delete" if after is None else "Create" if before is None else "Update"
        return f"{action} {self.policy}{': ' if self.note else ''}{self.note}"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a write. ``commit`` is in the remote branch; without ``changed`` it is the policy's last one."""

    commit: str
    before: BlobIds | None
    after: BlobIds | None
    changed: bool = True
    replayed: bool = False
    warnings: tuple[FileError, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """What a write would do: its verdict, and both contents."""

    current: Current
    content: Content | None
    errors: tuple[FileError, ...] = ()
    warnings: tuple[FileError, ...] = ()


class InvalidPolicyError(RefusalError):
    """The policy would not go live; ``errors`` say why."""

    def __init__(self, errors: Sequence[FileError]) -> None:
        super().__init__("the policy is not valid")
        self.errors = tuple(errors)


class DeclinedError(RefusalError):
    """The remote's own rules or hooks refused the commit; the message has its words."""


class KeyReusedError(RefusalError):
    """The idempotency key was used for another request before."""


class OutcomeUnknownError(RefusalError):
    """The push was sent and nobody can say yet what became of it."""

    def __init__(self, commit: str) -> None:
        super().__init__("the commit was sent to the Git remote, and whether it arrived is not known yet")
        self.commit = commit
