"""What a review of two revisions found: values, made once and shown in several forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from reconciler.core.model import FileError


class Operation(StrEnum):
    """What the change makes of a policy in Git."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    NONE = "none"
    """The change does not touch it, and it is broken by it, or was before."""


@dataclass(frozen=True, slots=True)
class PolicyFinding:
    """One policy that changes, or that a change elsewhere breaks. ``errors``: why its version would not go live;
    ``before``: it was so already without the change. ``rego`` is a unified diff, ``data`` a list of changes by path,
    ``data_text`` a diff where the data is no JSON object or differs in its form only."""

    policy: str
    operation: Operation
    reason: str = ""
    errors: tuple[FileError, ...] = ()
    before: bool = False
    rego: str = ""
    data: tuple[Mapping[str, Any], ...] = ()
    data_text: str = ""

    @property
    def held(self) -> bool:
        """Whether its version would be held."""
        return bool(self.errors)


@dataclass(frozen=True, slots=True)
class TestFailure:
    """A Rego unit test that failed; ``file`` below the folder of the policies."""

    file: str
    line: int
    name: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Tests:
    """The Rego unit tests of the new revision. By policy: how many ran, how many of its lines (in percent) they cover
    (``None`` where that is not known). ``error``: why none could be run."""

    run: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[TestFailure, ...] = ()
    skipped: int = 0
    coverage: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def total(self) -> int:
        """How many ran."""
        return sum(self.run.values())


@dataclass(frozen=True, slots=True)
class Example:
    """One recorded decision that changes. ``old`` and ``new`` are JSON texts, or ``None`` where undefined."""

    decision_id: str
    old: str | None
    new: str | None
    input: str


@dataclass(frozen=True, slots=True)
class Flips:
    """The recorded decisions of one rule: how many were asked, how many change."""

    policy: str
    rule: str
    inputs: int
    flips: int
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to. ``skipped``: how many decisions could not be asked again, by why; ``differed``: how many
    were recorded otherwise than the old revision decides them now (other data, other time, another commit);
    ``unreadable``: places of lines that are no decision, the first ones, of ``unreadable_count``."""

    rules: tuple[Flips, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    differed: int = 0
    unreadable: tuple[str, ...] = ()
    unreadable_count: int = 0
    nondeterministic: int = 0

    @property
    def inputs(self) -> int:
        """How many decisions were asked again."""
        return sum(each.inputs for each in self.rules)

    @property
    def flips(self) -> int:
        """How many of them change."""
        return sum(each.flips for each in self.rules)


@dataclass(frozen=True, slots=True)
class Review:
    """Everything. ``base`` is the commit that was compared with, ``head`` the other one (``None``: the files);
    ``path`` the folder of the policies, put before each file's name; ``total`` the policies of the new revision."""

    base: str
    head: str | None
    path: str
    total: int
    policies: tuple[PolicyFinding, ...] = ()
    warnings: tuple[FileError, ...] = ()
    ignored: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    blocked_reason: str = ""
    tests: Tests | None = None
    min_coverage: float | None = None
    replay: Replay | None = None

    @property
    def invalid(self) -> tuple[PolicyFinding, ...]:
        """What this change would have held."""
        return tuple(each for each in self.policies if each.held and not each.before)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Changed policies whose tests cover less than is asked for."""
        if self.min_coverage is None or self.tests is None:
            return ()
        changed = [each.policy for each in self.policies if each.operation in {Operation.CREATE, Operation.UPDATE}]
        return tuple(name for name in changed if self.tests.coverage.get(name, 0.0) < self.min_coverage)

    @property
    def passed(self) -> bool:
        """Whether nothing is found that should keep the change from being merged."""
        tests = self.tests
        return not (self.invalid or self.uncovered or (tests is not None and (tests.failures or tests.error)))
