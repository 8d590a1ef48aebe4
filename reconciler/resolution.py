"""What a pass decides about each policy before anything is planned: what should be live, what is held and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Final

from reconciler.core.live import LiveState
from reconciler.core.model import PLATFORM, BlobIds, FileError, PolicyName, Tree, policy_name
from reconciler.core.plan import Target
from reconciler.core.records import Held

PLATFORM_PENDING: Final = "PlatformPending"
"""Why a changed platform, and what may depend on it, is not live yet: it is being compiled with all who refer to it."""


@dataclass(frozen=True, slots=True)
class Pending:
    """What a changed platform (``None``: its deletion) waits for: the verdicts of these ``versions`` with it.

    ``of`` is how many projects it concerns in all.
    """

    platform: BlobIds | None
    versions: Mapping[PolicyName, BlobIds]
    of: int


@dataclass(frozen=True, slots=True)
class Resolution:
    """What should be live, what is held and why, and which live projects a new platform drives out. ``targets`` names
    only policies that were looked at."""

    targets: Mapping[PolicyName, Target]
    held: Mapping[str, Held]
    withdrawn: tuple[PolicyName, ...] = ()
    warnings: tuple[FileError, ...] = ()
    pending: Pending | None = None


@dataclass(slots=True)
class ResolutionDraft:
    """A resolution in the making."""

    tree: Tree
    live: LiveState
    gone: Collection[PolicyName]
    focus: frozenset[PolicyName] | None = None
    targets: dict[PolicyName, Target] = field(default_factory=dict)
    errors: dict[PolicyName, tuple[str, tuple[FileError, ...]]] = field(default_factory=dict)
    withdrawn: list[PolicyName] = field(default_factory=list)
    warnings: list[FileError] = field(default_factory=list)
    pending: Pending | None = None

    @property
    def size(self) -> int:
        """How many policies there are to look through."""
        return max(len(self.tree.policies), len(self.live.policies)) if self.focus is None else len(self.focus)

    def live_target(self, policy: PolicyName) -> Target | None:
        """The version that is live now and may stay."""
        found = self.live.policies.get(policy)
        if found is None or found.meta is None or found.blobs is None or policy in self.gone:
            return None
        return Target(found.blobs, found.meta.rego_version)

    def projects(self) -> dict[PolicyName, BlobIds]:
        """The commit's well-formed projects, of those that are looked at."""
        if self.focus is None:
            return {name: blobs for name, blobs in self.tree.policies.items() if name != PLATFORM}
        found = {name: self.tree.policies.get(name) for name in self.focus if name != PLATFORM}
        return {name: blobs for name, blobs in found.items() if blobs is not None}

    def stay(self, names: Collection[PolicyName]) -> None:
        """The live versions of these stay."""
        for name in names:
            if target := self.live_target(name):
                self.targets[name] = target

    def versions(self) -> tuple[dict[PolicyName, BlobIds], dict[PolicyName, BlobIds]]:
        """All projects' versions that may go or stay live, the commit's before the live ones; the changed of them.

        A version that is live although the commit's own is unreadable by layout counts too.
        """
        found = {name: blobs for name, blobs in self.projects().items() if name not in self.gone}
        for name in self.live.written():
            target = self.live_target(name)
            if name != PLATFORM and name not in found and target is not None:
                found[name] = target.blobs
        return found, self.changed()

    def changed(self) -> dict[PolicyName, BlobIds]:
        """Those of them whose version is not the live one, in order: the same in every replica."""
        live = self.live.policies
        return {
            name: blobs
            for name, blobs in sorted(self.projects().items(), key=itemgetter(0))
            if name not in live or live[name].etag != blobs.etag or live[name].blobs is None
        }


def take_out(
    draft: ResolutionDraft, versions: dict[PolicyName, BlobIds], bad: Mapping[PolicyName, tuple[FileError, ...]]
) -> None:
    """Put the live version in the place of what is blamed, or nothing.

    Where only what is live already is blamed, a changed policy took away what that one needs: then every changed one
    gives way.
    """
    changed = {
        name for name, blobs in versions.items() if (target := draft.live_target(name)) is None or target.blobs != blobs
    }
    for name in changed & bad.keys() or changed or set(bad):
        reason, errors = ("ValidationFailed", bad[name]) if name in bad else ("BreaksProjects", naming_each(bad))
        draft.errors.setdefault(name, (reason, errors))
        target = draft.live_target(name)
        if target is not None and target.blobs != versions[name]:
            versions[name] = target.blobs
        else:
            del versions[name]
            if name in draft.live.policies:
                draft.withdrawn.append(name)


def waits_for_platform(held: Held | None) -> bool:
    """Whether this hold ends by itself."""
    return held is not None and held.reason == PLATFORM_PENDING


def policy_at(raw: str) -> PolicyName | None:
    """The policy of a path below ``git.path``, ``None`` where no policy can be."""
    try:
        return policy_name(raw)
    except ValueError:
        return None


def naming_each(broken: Mapping[PolicyName, Iterable[FileError]]) -> tuple[FileError, ...]:
    """The errors of projects, as errors of the platform that would make them."""
    return tuple(
        replace(error, message=f"{name} would break with this platform: {error.message}")
        for name, errors in sorted(broken.items())
        for error in errors
    )
