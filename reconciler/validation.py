"""What may go live: every policy's version after holds, so that what is live compiles as a whole.

Reads Git and asks the compiler; decides nothing about deletions (see `reconciler.core.guards`) and writes nothing.
An invalid policy is held: its live version stays, or, where there is none, the newest valid one of the first-parent
history. A platform that would break live projects is held (or, by setting, those projects are withdrawn).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from operator import itemgetter
from typing import Final, Literal

from reconciler.aside import aside
from reconciler.assessing import Assessor
from reconciler.core.errors import StalledError
from reconciler.core.live import LiveState
from reconciler.core.model import PLATFORM, REGO_FILE, BlobIds, Content, FileError, PolicyName, Tree, Verdict
from reconciler.core.plan import Target
from reconciler.core.ports import Compiler, Source
from reconciler.core.records import HELD_ERRORS_LIMIT, Held
from reconciler.progress import Progress
from reconciler.resolution import (
    PLATFORM_PENDING,
    Pending,
    Resolution,
    ResolutionDraft,
    naming_each,
    policy_at,
    take_out,
    waits_for_platform,
)
from reconciler.verdicts import Verdicts

ASIDE_CHUNK: Final = 25
"""Policies that are compiled at once beside the passes: a pass waits for one such step at most."""
_MATES_LINE: Final = 500
"""Commits since the applied one that are looked at for what changed together with the platform."""
OnPlatformBreak = Literal["hold-platform", "withdraw-projects"]


class Judge:
    """Validates trees; remembers verdicts by (policy, its blobs, the platform's blobs).

    ``at_once``: with more verdicts than that to find, a changed platform waits while other changes go on; whoever runs
    passes finds them by `prove`. ``None``: it is waited for, however many they are.
    """

    def __init__(
        self,
        source: Source,
        compiler: Compiler,
        *,
        on_platform_break: OnPlatformBreak = "hold-platform",
        max_rego_bytes: int = 524288,
        max_data_bytes: int = 1048576,
        together: bool = False,
        at_once: int | None = None,
        verdicts: Verdicts | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``together``: policies may refer to each other, so the whole set is compiled as one."""
        self._source = source
        self._together = together
        self._withdraw = on_platform_break == "withdraw-projects"
        self._at_once = at_once
        self._assessor = Assessor(
            source,
            compiler,
            max_rego_bytes=max_rego_bytes,
            max_data_bytes=max_data_bytes,
            verdicts=verdicts or Verdicts(),
            progress=progress or Progress(),
        )

    async def check(self) -> None:
        """Raise what hinders the compiler; a judge can be asked without, and then raises the same."""
        await self._assessor.check()

    async def resolve(
        self,
        tree: Tree,
        live: LiveState,
        gone: Collection[PolicyName] = (),
        focus: frozenset[PolicyName] | None = None,
    ) -> Resolution:
        """Decide what should be live of ``tree``; ``gone`` are live policies whose deletion the guard allowed. With a
        ``focus`` only these are looked at, where policies stand alone: see `reconciler.core.focus`.

        Raises `TransientError` when Git or the compiler cannot be asked; never for a bad policy.
        """
        draft = ResolutionDraft(tree, live, gone, None if self._together else focus)
        if self._together:
            await self._whole(draft)
        else:
            platform = await self._platform(draft)
            if platform is not None:
                draft.targets[PLATFORM] = platform
            await self._projects(draft, platform.blobs if platform else None)
        return Resolution(
            targets=draft.targets,
            held=await self._held(draft),
            withdrawn=tuple(draft.withdrawn),
            warnings=tuple(draft.warnings),
            pending=draft.pending,
        )

    # --- the whole set at once ---------------------------------------------------------------------------------------

    async def _whole(self, draft: ResolutionDraft) -> None:
        """Hold what OPA blames, until the rest compiles together."""
        versions = dict(sorted(draft.tree.policies.items(), key=itemgetter(0)))
        for raw, errors in draft.tree.invalid.items():
            if invalid := policy_at(raw):
                draft.errors[invalid] = ("InvalidLayout", errors)
        for name in draft.live.written():
            if name not in versions and (target := draft.live_target(name)):
                versions[name] = target.blobs
        while True:
            verdicts = await self._assessor.together(versions)
            bad = {name: verdict.errors for name, verdict in verdicts.items() if not verdict.valid}
            if not bad:
                break
            take_out(draft, versions, bad)
        for name, verdict in verdicts.items():
            draft.warnings.extend(verdict.warnings)
            draft.targets[name] = Target(versions[name], verdict.rego_version)

    # --- edits that are in no commit yet -----------------------------------------------------------------------------

    def beside(self, contents: Iterable[Content]) -> AbstractContextManager[None]:
        """While open, these texts can be judged by their blob ids although Git does not have them."""
        return self._assessor.beside(contents)

    async def verdicts(
        self, versions: Mapping[PolicyName, BlobIds], platform: BlobIds | None
    ) -> dict[PolicyName, Verdict]:
        """A verdict for each version with that platform."""
        return await self._assessor.judge(versions, platform, quiet=True)

    async def verdicts_in(self, tree: Tree, edits: Mapping[PolicyName, BlobIds]) -> dict[PolicyName, Verdict] | None:
        """The verdicts of edits inside the whole set that they would be live in; ``None`` where policies stand alone.

        What an edit breaks elsewhere is an error of the edit.
        """
        if not self._together:
            return None
        before = await self._assessor.together(tree.policies)
        sound = {name: blobs for name, blobs in tree.policies.items() if before[name].valid}
        after = await self._assessor.together({**sound, **edits})
        broken = {name: v.errors for name, v in after.items() if not v.valid and name not in edits}
        return {name: replace(after[name], errors=after[name].errors or naming_each(broken)) for name in edits}

    async def verdict_of_platform(self, tree: Tree, platform: BlobIds) -> Verdict:
        """The platform's own verdict, and the projects of ``tree`` that work now and would break with it."""
        verdict = (await self._assessor.judge({PLATFORM: platform}, None, quiet=True))[PLATFORM]
        if not verdict.valid or self._withdraw:
            return verdict
        mentioning = await self._assessor.mentioning({n: blobs for n, blobs in tree.policies.items() if n != PLATFORM})
        projects = {name: tree.policies[name] for name in mentioning}
        after = await self._assessor.judge(projects, platform, quiet=True)
        failing = {name: projects[name] for name, found in after.items() if not found.valid}
        before = await self._assessor.judge(failing, tree.policies.get(PLATFORM), quiet=True)
        broken = {name: after[name].errors for name, found in before.items() if found.valid}
        return replace(verdict, errors=naming_each(broken))

    # --- the platform ------------------------------------------------------------------------------------------------

    async def _platform(self, draft: ResolutionDraft) -> Target | None:
        """The platform that will be live, holding the commit's one where it must not be."""
        current = draft.live_target(PLATFORM)
        if PLATFORM in draft.tree.invalid:
            draft.errors[PLATFORM] = ("InvalidLayout", draft.tree.invalid[PLATFORM])
            return current or await self._past(draft, PLATFORM, None)
        wanted = draft.tree.policies.get(PLATFORM)
        if wanted is None:
            return current or await self._unless_missed(draft)
        if current is not None and current.blobs == wanted:
            return current
        verdict = (await self._assessor.judge({PLATFORM: wanted}, None))[PLATFORM]
        draft.warnings.extend(verdict.warnings)
        if not verdict.valid:
            draft.errors[PLATFORM] = ("ValidationFailed", verdict.errors)
            return current or await self._past(draft, PLATFORM, None)
        return await self._unless_it_breaks(draft, Target(wanted, verdict.rego_version), current)

    async def _unless_it_breaks(self, draft: ResolutionDraft, target: Target, current: Target | None) -> Target | None:
        """A sound platform goes live once it is known that it breaks nothing that works."""
        if current is not None and await self._too_many(draft, target.blobs):
            return current
        former = current or await self._past(draft, PLATFORM, None)
        broken = await self._broken(draft, target.blobs, former)
        if broken and not self._withdraw:
            draft.errors[PLATFORM] = ("BreaksProjects", naming_each(broken))
            return former
        if broken:
            self._drive_out(draft, broken)
        return target

    async def _unless_missed(self, draft: ResolutionDraft) -> Target | None:
        """A platform whose deletion was allowed stays all the same while live projects would not compile without it."""
        live = draft.live.policies.get(PLATFORM)
        if PLATFORM not in draft.gone or live is None or live.meta is None or live.blobs is None:
            return None
        former = Target(live.blobs, live.meta.rego_version)
        if await self._too_many(draft, None):
            return former
        broken = await self._broken(draft, None, former)
        if broken and not self._withdraw:
            draft.errors[PLATFORM] = ("BreaksProjects", naming_each(broken))
            return former
        self._drive_out(draft, broken)
        return None

    async def _broken(
        self, draft: ResolutionDraft, platform: BlobIds | None, former: Target | None
    ) -> dict[PolicyName, tuple[FileError, ...]]:
        """The projects that work with the former platform and have no version that works with the new one."""
        if former is None:
            return {}
        candidates = await self._referring(draft)
        verdicts = await self._assessor.judge(candidates, platform)
        failing = {name: verdict for name, verdict in verdicts.items() if not verdict.valid}
        stay = {name: target.blobs for name in failing if (target := draft.live_target(name))}
        standing = {name: blobs for name, blobs in stay.items() if blobs != candidates[name]}
        survivors = await self._assessor.judge(standing, platform)
        before = await self._assessor.judge(
            {name: candidates[name] for name in failing if name not in stay}, former.blobs
        )
        return {
            name: verdict.errors
            for name, verdict in failing.items()
            if (name in stay and not (name in survivors and survivors[name].valid))
            or (name in before and before[name].valid)
        }

    async def _referring(self, draft: ResolutionDraft) -> dict[PolicyName, BlobIds]:
        """Projects that a changed platform can concern: changed ones, and all whose text could name the platform."""
        versions, changed = await aside(draft.size, draft.versions)
        mentioning = await self._assessor.mentioning({name: v for name, v in versions.items() if name not in changed})
        return {name: blobs for name, blobs in versions.items() if name in changed or name in mentioning}

    # --- a platform that concerns many -------------------------------------------------------------------------------

    async def _too_many(self, draft: ResolutionDraft, platform: BlobIds | None) -> bool:
        """Whether the platform must wait. Then it is held, and so is what may depend on it."""
        if self._at_once is None:
            return False
        concerned = await self._referring(draft)
        unknown = await self._assessor.unknown(concerned, platform)
        if len(unknown) <= self._at_once:
            return False
        draft.pending = Pending(platform, unknown, len(concerned))
        message = f"is being compiled with the {len(concerned):,} projects that it concerns, and goes live after that"
        draft.errors[PLATFORM] = (PLATFORM_PENDING, (FileError(f"{PLATFORM}/{REGO_FILE}", message),))
        return True

    async def _wait_for_platform(self, draft: ResolutionDraft, changed: Mapping[PolicyName, BlobIds]) -> None:
        """Hold what may depend on the platform that waits: what refers to it, and what changed together with it."""
        waiting = await self._assessor.mentioning(changed) | (await self._mates(draft, changed) & changed.keys())
        message = "refers to the changed platform, or was changed together with it, and waits for it"
        for name in waiting:
            draft.errors[name] = (PLATFORM_PENDING, (FileError(f"{name}/{REGO_FILE}", message),))

    async def _mates(self, draft: ResolutionDraft, changed: Collection[PolicyName]) -> set[PolicyName]:
        """What was changed in one commit with the platform, as far as it is not live: now, or when it began to wait."""
        applied = draft.live.applied
        line = await self._source.line(draft.tree.commit, {applied.commit} if applied else ())
        if len(line) > _MATES_LINE:
            return set(changed)
        commits = (await self._source.branch_commits(line)).values()
        mates = {name for commit in commits if PLATFORM in commit.changes for name in commit.changes}
        return mates | {name for name in changed if waits_for_platform(draft.live.held.get(name))}

    async def prove(
        self, pending: Pending, *, wanted: Callable[[], bool] = lambda: True, progress: Progress | None = None
    ) -> None:
        """Find the verdicts that a platform waits for, in small steps, while ``wanted`` says so. They stay remembered
        until `unpin`. Raises `TransientError` when Git or the compiler cannot be asked."""
        names = list(pending.versions)
        for start in range(0, len(names), ASIDE_CHUNK):
            if not wanted():
                return
            if progress:
                progress.tell(
                    "validating what refers to the changed platform", pending.of - len(names) + start, pending.of
                )
            lot = {name: pending.versions[name] for name in names[start : start + ASIDE_CHUNK]}
            await self._assessor.judge(lot, pending.platform, pinned=True)

    def unpin(self) -> None:
        """No platform waits any more."""
        self._assessor.unpin()

    def _drive_out(self, draft: ResolutionDraft, broken: Mapping[PolicyName, tuple[FileError, ...]]) -> None:
        for name, errors in sorted(broken.items()):
            draft.errors[name] = ("BrokenByPlatform", errors)
            if name in draft.live.policies:
                draft.withdrawn.append(name)

    # --- projects ----------------------------------------------------------------------------------------------------

    async def _projects(self, draft: ResolutionDraft, platform: BlobIds | None) -> None:
        projects = draft.projects()
        changed = await aside(draft.size, draft.changed)
        if draft.pending:
            await self._wait_for_platform(draft, changed)
        changed = {name: blobs for name, blobs in changed.items() if name not in draft.errors}
        live_platform = draft.live.policies.get(PLATFORM)
        if (live_platform.etag if live_platform else None) != (platform.etag if platform else None):
            changed |= {
                n: b for n, b in (await self._referring(draft)).items() if n in projects and n not in draft.errors
            }
        for name, verdict in (await self._assessor.judge(changed, platform)).items():
            draft.warnings.extend(verdict.warnings)
            if verdict.valid:
                draft.targets[name] = Target(changed[name], verdict.rego_version)
            else:
                draft.errors[name] = ("ValidationFailed", verdict.errors)
        await aside(draft.size, draft.stay, projects.keys() - changed.keys() - draft.errors.keys())
        for raw, errors in draft.tree.invalid.items():
            if (invalid := policy_at(raw)) and invalid != PLATFORM:
                draft.errors[invalid] = ("InvalidLayout", errors)
        await self._keep_last_good(draft, platform)

    async def _keep_last_good(self, draft: ResolutionDraft, platform: BlobIds | None) -> None:
        """Held projects stay at their live version, or at the newest valid one of the history where none is live."""
        for name, (reason, _) in draft.errors.items():
            if name == PLATFORM or name in draft.withdrawn:
                continue
            target = draft.live_target(name)
            if target is None and reason != PLATFORM_PENDING:
                target = await self._past(draft, name, platform)
            if target is not None:
                draft.targets[name] = target

    async def _past(self, draft: ResolutionDraft, policy: PolicyName, platform: BlobIds | None) -> Target | None:
        for version in await self._source.past_versions(draft.tree.commit, policy):
            verdict = (await self._assessor.judge({policy: version.blobs}, platform))[policy]
            if verdict.valid:
                return Target(version.blobs, verdict.rego_version)
        return None

    # --- holds -------------------------------------------------------------------------------------------------------

    async def _held(self, draft: ResolutionDraft) -> dict[str, Held]:
        """A record for everything that the commit has and that does not go live; unchanged while nothing changes."""
        held: dict[str, Held] = {}
        for name, (reason, errors) in draft.errors.items():
            held[name] = Held(await self._commit_of(draft, name), reason, errors[:HELD_ERRORS_LIMIT])
        for raw, errors in draft.tree.invalid.items():
            if policy_at(raw) is None:
                former = draft.live.held.get(raw)
                reason = "InvalidName" if raw.startswith("projects/") else "InvalidLayout"
                record = Held(draft.tree.commit, reason, errors[:HELD_ERRORS_LIMIT])
                held[raw] = former if former and replace(former, commit=record.commit) == record else record
        return held

    async def _commit_of(self, draft: ResolutionDraft, name: PolicyName) -> str:
        try:
            return (await self._source.last_change(draft.tree.commit, name)).commit
        except StalledError:  # its files were never of the published kind
            former = draft.live.held.get(name)
            return former.commit if former else draft.tree.commit
