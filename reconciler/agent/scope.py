"""What one OPA answers for: everything, the platform and chosen projects, or the platform and a shard of all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from reconciler.core.model import PLATFORM, PolicyName, project_policy
from reconciler.core.shards import Shard

_PROJECTS = "projects:"
_SHARD = "shard:"


@dataclass(frozen=True, slots=True)
class Scope:
    """A set of policies that always includes the platform; without ``projects`` and ``shard`` it has every project.

    A scope answers four questions: its text, whether it contains a policy, which policies it names (``None`` when it
    can only be found out by looking at all), and which roots its bundle owns. Only one of the fields is set.
    """

    projects: frozenset[str] | None = None
    shard: Shard | None = None

    @classmethod
    def of_projects(cls, projects: Iterable[str]) -> Self:
        """The platform and these projects. `ValueError` with the naming rule for an impossible name."""
        chosen = frozenset(projects)
        for project in chosen:
            project_policy(project)
        return cls(chosen)

    @classmethod
    def of_shard(cls, shard: Shard) -> Self:
        """The platform and the projects of this shard."""
        return cls(shard=shard)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The scope whose text is ``text``: ``all``, ``projects:a,b`` or ``shard:2/8``. `ValueError` for anything
        else."""
        if text == "all":
            return cls()
        if text.startswith(_SHARD):
            return cls.of_shard(Shard.parse(text.removeprefix(_SHARD)))
        if not text.startswith(_PROJECTS):
            raise ValueError(f"{text!r} is no scope: write 'all', 'projects:a,b' or 'shard:2/8'")
        return cls.of_projects(name for name in text.removeprefix(_PROJECTS).split(",") if name)

    def __str__(self) -> str:
        if self.shard is not None:
            return f"{_SHARD}{self.shard}"
        return "all" if self.projects is None else _PROJECTS + ",".join(sorted(self.projects))

    def contains(self, policy: PolicyName) -> bool:
        """Whether an OPA of this scope loads the policy."""
        if policy == PLATFORM:
            return True
        project = policy.removeprefix("projects/")
        if self.shard is not None:
            return self.shard.answers_for(project)
        return self.projects is None or project in self.projects

    def listed(self) -> tuple[PolicyName, ...] | None:
        """Every policy that can be in scope, sorted, or ``None`` when only a look at all policies can tell."""
        if self.projects is None:
            return None
        return (PLATFORM, *(project_policy(project) for project in sorted(self.projects)))

    def roots(self) -> tuple[str, ...]:
        """The bundle manifest's ``roots``: what this bundle owns in OPA's tree, present or not.

        A shard owns all of ``projects``, like an OPA that answers for everything, and not a root for each of its
        projects. So the roots never change while projects come and go, nobody can put a project of another shard in
        there by OPA's REST API, and what this shard has not is undefined. A bundle of chosen projects owns these
        alone, as another bundle of the same OPA may own others.
        """
        return self.listed() or ("platform", "projects")


ALL = Scope()
