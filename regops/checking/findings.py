"""What a review of two revisions found: values, made once and shown in several forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """One policy that changes, or that a change elsewhere breaks or sets free.

    ``errors``: why its version would not go live; ``before``: it was so already without the change; ``blocked``: its
    deletion would wait for a person. ``rego`` is a unified diff, ``data`` a list of changes by path, ``data_text`` a
    diff where the data is no JSON object or differs in its form only."""

    policy: str
    operation: Operation
    reason: str = ""
    errors: tuple[FileError, ...] = ()
    before: bool = False
    blocked: bool = False
    rego: str = ""
    data: tuple[Mapping[str, Any], ...] = ()
    data_text: str = ""

    @property
    def held(self) -> bool:
        """Whether its version would be held."""
        return bool(self.errors)

    @property
    def tested(self) -> bool:
        """Whether what the tests say is of this version: those of one that is held or deleted are not run."""
        return not self.held and self.operation is not Operation.DELETE


@dataclass(frozen=True, slots=True)
class TestFailure:
    """A Rego unit test that failed, or, without a ``name``, a file of tests that does not compile; ``file`` below the
    folder of the policies. ``before``: it is so without the change too."""

    file: str
    line: int
    name: str
    message: str = ""
    before: bool = False

    @property
    def said(self) -> str:
        """What happened, in a few words."""
        what = f"{self.name} failed" if self.name else "does not compile"
        return f"{what}: {self.message}" if self.message else what


@dataclass(frozen=True, slots=True)
class Tests:
    """The Rego unit tests of the new revision. By policy: how many ran, how many of its lines (in percent) they cover
    cover. ``error``: why none could be run; ``error_before``: none can be without the change either."""

    run: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[TestFailure, ...] = ()
    skipped: int = 0
    coverage: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    error_before: bool = False

    @property
    def total(self) -> int:
        """How many ran."""
        return sum(self.run.values())

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(1 for each in self.failures if each.name)

    @property
    def spoiled(self) -> bool:
        """Whether the change makes tests fail, or keeps them from being run."""
        return any(not each.before for each in self.failures) or bool(self.error and not self.error_before)


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
    ``unreadable``: places of what is no decision, the first ones, of ``unreadable_count``; ``other_lines``: how many
    lines are OPA's log of something else. ``nondeterministic``: how many used a builtin whose answers change, as far as
    the log tells; ``changing``: which of them the policies that were asked call, by policy."""

    rules: tuple[Flips, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    differed: int = 0
    unreadable: tuple[str, ...] = ()
    unreadable_count: int = 0
    other_lines: int = 0
    nondeterministic: int = 0
    changing: Mapping[str, Sequence[str]] = field(default_factory=dict)

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
    """Everything. ``base`` is the commit where the change left the branch, ``head`` its own (``None``: the files),
    ``tip`` what the branch has got since (``None``: nothing). ``path`` is the folder of the policies from the root of
    the repository, put before each file's name; ``total`` the policies after the merge, ``known`` those before or
    after it. ``notes``: what could not be looked at, and why."""

    base: str
    head: str | None
    path: str
    total: int
    known: int = 0
    tip: str | None = None
    notes: tuple[str, ...] = ()
    policies: tuple[PolicyFinding, ...] = ()
    warnings: tuple[FileError, ...] = ()
    ignored: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    blocked_reason: str = ""
    tests: Tests | None = None
    min_coverage: float | None = None
    replay: Replay | None = None

    @property
    def changed(self) -> tuple[PolicyFinding, ...]:
        """What the change itself touches."""
        return tuple(each for each in self.policies if each.operation is not Operation.NONE)

    @property
    def invalid(self) -> tuple[PolicyFinding, ...]:
        """What this change would have held."""
        return tuple(each for each in self.policies if each.held and not each.before)

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Changed policies that would go live and whose tests cover less than is asked for, as far as that is known:
        OPA tells no coverage of tests that fail."""
        tests = self.tests
        if self.min_coverage is None or tests is None or tests.error or tests.spoiled:
            return ()
        unknown = {policy_of(each.file) for each in tests.failures}
        changed = [
            each.policy
            for each in self.policies
            if each.operation in {Operation.CREATE, Operation.UPDATE} and not each.held and each.policy not in unknown
        ]
        return tuple(name for name in changed if tests.coverage.get(name, 0.0) < self.min_coverage)

    @property
    def broken_elsewhere(self) -> tuple[str, ...]:
        """Policies that the change does not touch, and whose tests it makes fail."""
        failures = self.tests.failures if self.tests is not None else ()
        names = {policy_of(each.file) for each in failures if each.name and not each.before}
        return tuple(sorted(names - {each.policy for each in self.changed}))

    @property
    def passed(self) -> bool:
        """Whether nothing is found that should keep the change from being merged."""
        return not (self.invalid or self.uncovered or (self.tests is not None and self.tests.spoiled))


def policy_of(file: str) -> str:
    """The policy in whose folder a file lies; ``file`` is below the folder of the policies."""
    parts = file.removeprefix("./").split("/")
    return "/".join(parts[:2]) if parts[0] == "projects" else parts[0]
