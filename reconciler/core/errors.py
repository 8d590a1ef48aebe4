"""Errors named by what happens next, as Flux's source-controller does it (``internal/error/error.go``).

Every adapter raises only these, with the foreign error chained. The loop, the API and the metrics each decide by
class alone: `TransientError` → back off and retry; `ConflictError` → read again and plan again at once, bounded;
`StalledError` → wait for a new commit or a person.
"""

from __future__ import annotations

from typing import ClassVar, Final

COMMIT_NOT_FOUND: Final = "CommitNotFound"
"""Reason of a `TransientError`: the mirror does not have a commit (yet, or any more)."""


class RegopsError(Exception):
    """Base of every error that regops raises on purpose.

    ``reason`` is a PascalCase word of the status vocabulary (docs/operations.md) and ends up in conditions and metric
    labels, so it is part of the API. ``remedy`` says, in one sentence, what a person can do; it may be empty.
    """

    outcome: ClassVar[str] = "error"

    def __init__(self, message: str, *, reason: str = "Failed", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.remedy = remedy
        self.stage = ""
        """Which step of a pass failed (``fetch``); set by the pass, empty elsewhere."""

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class TransientError(RegopsError):
    """Something outside is away or slow: back off and try again."""

    outcome = "transient"


class ConflictError(RegopsError):
    """Somebody else wrote first (or we are no longer the leader): read again and plan again, at once."""

    outcome = "conflict"


class StalledError(RegopsError):
    """Trying again cannot help: wait for a new commit, a changed setting or a person."""

    outcome = "stalled"


class StoreError(TransientError):
    """etcd could not be asked; nothing was written."""


class UnknownOutcomeError(TransientError):
    """A write was sent and its answer did not come: it may or may not have happened. Read, then plan again."""


class CompactedError(TransientError):
    """The asked-for etcd revision is compacted; ``compact_revision`` is the oldest one that can still be read,
    0 where etcd does not tell it (a read; a watch does)."""

    def __init__(self, message: str, *, compact_revision: int) -> None:
        super().__init__(message, reason="Compacted")
        self.compact_revision = compact_revision


class DivergedError(TransientError):
    """The store went back: another cluster answers, or an older state of it was restored. Read everything again."""


class RefusalError(Exception):
    """A request that cannot be granted as things stand: no fault of regops and nothing to repeat. It is not a
    `RegopsError`, since no loop ever decides about it; it goes back to whoever asked."""
