"""What one OPA answers for: everything, or the platform and chosen projects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from reconciler.core.model import PLATFORM, PolicyName, project_policy

_PROJECTS = "projects:"


@dataclass(frozen=True, slots=True)
class Scope:
    """A set of policies that always includes the platform; ``projects`` ``None`` is every project.

    A scope answers four questions: its text, whether it contains a policy, which policies it names (``None`` when it
    can only be found out by looking at all), and which roots its bundle owns. A further kind, such as a shard by a
    hash of the project's name, is one more field that these four look at.
    """

    projects: frozenset[str] | None = None

    @classmethod
    def of_projects(cls, projects: Iterable[str]) -> Self:
        """The platform and these projects. `ValueError` with the naming rule for an impossible name."""
        chosen = frozenset(projects)
        for project in chosen:
            project_policy(project)
        return cls(chosen)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The scope whose text is ``text``: ``all`` or ``projects:a,b``. `ValueError` for anything else."""
        if text == "all":
            return cls()
        if not text.startswith(_PROJECTS):
            raise ValueError(f"{text!r} is no scope: write 'all' or 'projects:a,b'")
        return cls.of_projects(name for name in text.removeprefix(_PROJECTS).split(",") if name)

    def __str__(self) -> str:
        return "all" if self.projects is None else _PROJECTS + ",".join(sorted(self.projects))

    def contains(self, policy: PolicyName) -> bool:
        """Whether an OPA of this scope loads the policy."""
        return self.projects is None or policy == PLATFORM or policy.removeprefix("projects/") in self.projects

    def listed(self) -> tuple[PolicyName, ...] | None:
        """Every policy that can be in scope, sorted, or ``None`` when only a look at all policies can tell."""
        if self.projects is None:
            return None
        return (PLATFORM, *(project_policy(project) for project in sorted(self.projects)))

    def roots(self) -> tuple[str, ...]:
        """The bundle manifest's ``roots``: what this bundle owns in OPA's tree, present or not."""
        return self.listed() or ("platform", "projects")


ALL = Scope()
