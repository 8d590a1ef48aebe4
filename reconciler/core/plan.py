"""The plan: one pure table that pairs what should be live with what is live. Nothing decides twice.

A `Target` is the version of a policy that should be live after this pass: the commit's own, or, for a held policy, the
last good one. The executor (`reconciler.core.transactions`) is a flat switch over `Operation`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from reconciler.core.live import ABSENT, LivePolicy, LiveState
from reconciler.core.model import PLATFORM, BlobIds, PolicyName


class Operation(StrEnum):
    """What happens to one policy; the values are metric labels and JSON."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    UNCHANGED = "unchanged"


class Cause(StrEnum):
    """Why it happens: the commit says so, or somebody edited etcd by hand."""

    COMMIT = "commit"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class Target:
    """The version that should be live: its blobs and the Rego version under which it compiles."""

    blobs: BlobIds
    rego_version: int = 1


@dataclass(frozen=True, slots=True)
class Change:
    """One policy's step from ``live`` to ``target`` (``None``: gone). Cannot contradict itself: the rest is derived."""

    policy: PolicyName
    target: Target | None
    live: LivePolicy

    @property
    def operation(self) -> Operation:
        """The decision table."""
        if self.target is None:
            return Operation.DELETE if self.live.meta or self.live.files else Operation.UNCHANGED
        if self.live.meta is None:
            return Operation.CREATE
        return Operation.UNCHANGED if self.live.intact(self.target.blobs) else Operation.UPDATE

    @property
    def cause(self) -> Cause:
        """Drift when regops had already put this very version live, or when keys stand where it put none."""
        if self.target is not None and self.live.etag == self.target.blobs.etag:
            return Cause.DRIFT
        return Cause.COMMIT


@dataclass(frozen=True, slots=True)
class Plan:
    """All changes of one pass, in the order in which they are applied: platform, projects, deletions last."""

    changes: tuple[Change, ...]

    def of(self, operation: Operation) -> tuple[Change, ...]:
        """The changes with this operation."""
        return tuple(change for change in self.changes if change.operation is operation)

    @property
    def drifted(self) -> tuple[Change, ...]:
        """The changes that heal hand edits."""
        return tuple(change for change in self.changes if change.cause is Cause.DRIFT)


def make_plan(targets: Mapping[PolicyName, Target], deletions: Collection[PolicyName], live: LiveState) -> Plan:
    """Pair targets with the live state. Policies in neither ``targets`` nor ``deletions`` stay as they are."""
    wanted = (Change(name, target, live.policies.get(name, ABSENT)) for name, target in targets.items())
    gone = (Change(name, None, live.policies[name]) for name in deletions if name in live.policies)
    return Plan((*_in_order(wanted), *_in_order(gone)))


def _in_order(changes: Iterable[Change]) -> list[Change]:
    real = (change for change in changes if change.operation is not Operation.UNCHANGED)
    return sorted(real, key=lambda change: (change.policy != PLATFORM, change.policy))
