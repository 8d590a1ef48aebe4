"""What may go live: every policy's version after holds, so that what is live compiles as a whole.

Reads Git and asks the compiler; decides nothing about deletions (see `reconciler.core.guards`) and writes nothing.
An invalid policy is held: its live version stays, or, where there is none, the newest valid one of the first-parent
history. A platform that would break live projects is held (or, by setting, those projects are withdrawn).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Final, Literal

from reconciler.aside import aside
from reconciler.core.errors import StalledError
from reconciler.core.live import LiveState
from reconciler.core.model import (
    DATA_FILE,
    PLATFORM,
    REGO_FILE,
    BlobIds,
    Content,
    FileError,
    PolicyName,
    Tree,
    Verdict,
    policy_name,
)
from reconciler.core.plan import Target
from reconciler.core.ports import Candidate, Compiler, Source
from reconciler.core.records import HELD_ERRORS_LIMIT, Held
from reconciler.core.verdict_ports import VerdictKey
from reconciler.progress import Progress
from reconciler.verdicts import Verdicts

CHUNK: Final = 100
"""Policies that are read and compiled at once: bounds memory, and is the step of the progress."""
ASIDE_CHUNK: Final = 25
"""The same beside the passes, which wait for one such step of it at most."""
PLATFORM_PENDING: Final = "PlatformPending"
"""Why a changed platform, and what may depend on it, is not live yet: it is being compiled with all who refer to it."""
_MATES_LINE: Final = 500
"""Commits since the applied one that are looked at for what changed together with the platform."""
_READ_BYTES: Final = 8 * 2**20

OnPlatformBreak = Literal["hold-platform", "withdraw-projects"]


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
class _Draft:
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
        self._set: tuple[Mapping[PolicyName, BlobIds], Mapping[PolicyName, Verdict]] = ({}, {})
        self._compiler = compiler
        self._withdraw = on_platform_break == "withdraw-projects"
        self._limits = {REGO_FILE: max_rego_bytes, DATA_FILE: max_data_bytes}
        self._at_once = at_once
        self._verdicts = verdicts or Verdicts()
        self._progress = progress or Progress()
        self._mentions: dict[str, bool] = {}
        self._beside: Counter[BlobIds] = Counter()
        self._texts: dict[BlobIds, Content] = {}

    async def check(self) -> None:
        """Raise what hinders the compiler; a judge can be asked without, and then raises the same."""
        await self._compiler.check()

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
        draft = _Draft(tree, live, gone, None if self._together else focus)
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

    async def _whole(self, draft: _Draft) -> None:
        """Hold what OPA blames, until the rest compiles together."""
        versions = dict(sorted(draft.tree.policies.items(), key=itemgetter(0)))
        for raw, errors in draft.tree.invalid.items():
            if invalid := _policy(raw):
                draft.errors[invalid] = ("InvalidLayout", errors)
        for name in draft.live.written():
            if name not in versions and (target := draft.live_target(name)):
                versions[name] = target.blobs
        while True:
            verdicts = await self._set_verdicts(versions)
            bad = {name: verdict.errors for name, verdict in verdicts.items() if not verdict.valid}
            if not bad:
                break
            _take_out(draft, versions, bad)
        for name, verdict in verdicts.items():
            draft.warnings.extend(verdict.warnings)
            draft.targets[name] = Target(versions[name], verdict.rego_version)

    async def _set_verdicts(self, versions: Mapping[PolicyName, BlobIds]) -> Mapping[PolicyName, Verdict]:
        """The verdicts of one set; the last set is remembered."""
        if self._set[0] != (versions := dict(versions)):
            verdicts: dict[PolicyName, Verdict] = {}
            candidates = []
            for name, blobs in versions.items():
                if errors := await self._oversized(name, blobs):
                    verdicts[name] = Verdict(errors)
                else:
                    candidates.append(Candidate(name, await self._read(blobs)))
            verdicts.update(await self._compiler.together(candidates))
            self._set = (versions, verdicts)
        return self._set[1]

    # --- edits that are in no commit yet -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def beside(self, contents: Iterable[Content]) -> Iterator[None]:
        """While open, these texts can be judged by their blob ids although Git does not have them."""
        texts = {content.blob_ids(): content for content in contents}
        self._texts |= texts
        self._beside.update(texts.keys())
        try:
            yield
        finally:
            self._beside.subtract(texts.keys())
            for blobs in texts:
                if not self._beside[blobs]:
                    del self._beside[blobs], self._texts[blobs]

    async def verdicts(
        self, versions: Mapping[PolicyName, BlobIds], platform: BlobIds | None
    ) -> dict[PolicyName, Verdict]:
        """A verdict for each version with that platform."""
        return await self._judge(versions, platform)

    async def verdicts_in(self, tree: Tree, edits: Mapping[PolicyName, BlobIds]) -> dict[PolicyName, Verdict] | None:
        """The verdicts of edits inside the whole set that they would be live in; ``None`` where policies stand alone.

        What an edit breaks elsewhere is an error of the edit.
        """
        if not self._together:
            return None
        before = await self._set_verdicts(tree.policies)
        sound = {name: blobs for name, blobs in tree.policies.items() if before[name].valid}
        after = await self._set_verdicts({**sound, **edits})
        broken = {name: v.errors for name, v in after.items() if not v.valid and name not in edits}
        return {name: replace(after[name], errors=after[name].errors or _naming(broken)) for name in edits}

    async def verdict_of_platform(self, tree: Tree, platform: BlobIds) -> Verdict:
        """The platform's own verdict, and the projects of ``tree`` that work now and would break with it."""
        verdict = (await self._judge({PLATFORM: platform}, None))[PLATFORM]
        if not verdict.valid or self._withdraw:
            return verdict
        mentioning = await self._mentioning({n: blobs for n, blobs in tree.policies.items() if n != PLATFORM})
        projects = {name: tree.policies[name] for name in mentioning}
        after = await self._judge(projects, platform)
        failing = {name: projects[name] for name, found in after.items() if not found.valid}
        before = await self._judge(failing, tree.policies.get(PLATFORM))
        broken = {name: after[name].errors for name, found in before.items() if found.valid}
        return replace(verdict, errors=_naming(broken))

    # --- the platform ------------------------------------------------------------------------------------------------

    async def _platform(self, draft: _Draft) -> Target | None:
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
        verdict = (await self._judge({PLATFORM: wanted}, None))[PLATFORM]
        draft.warnings.extend(verdict.warnings)
        if not verdict.valid:
            draft.errors[PLATFORM] = ("ValidationFailed", verdict.errors)
            return current or await self._past(draft, PLATFORM, None)
        return await self._unless_it_breaks(draft, Target(wanted, verdict.rego_version), current)

    async def _unless_it_breaks(self, draft: _Draft, target: Target, current: Target | None) -> Target | None:
        """A sound platform goes live once it is known that it breaks nothing that works."""
        if current is not None and await self._too_many(draft, target.blobs):
            return current
        former = current or await self._past(draft, PLATFORM, None)
        broken = await self._broken(draft, target.blobs, former)
        if broken and not self._withdraw:
            draft.errors[PLATFORM] = ("BreaksProjects", _naming(broken))
            return former
        if broken:
            self._drive_out(draft, broken)
        return target

    async def _unless_missed(self, draft: _Draft) -> Target | None:
        """A platform whose deletion was allowed stays all the same while live projects would not compile without it."""
        live = draft.live.policies.get(PLATFORM)
        if PLATFORM not in draft.gone or live is None or live.meta is None or live.blobs is None:
            return None
        former = Target(live.blobs, live.meta.rego_version)
        if await self._too_many(draft, None):
            return former
        broken = await self._broken(draft, None, former)
        if broken and not self._withdraw:
            draft.errors[PLATFORM] = ("BreaksProjects", _naming(broken))
            return former
        self._drive_out(draft, broken)
        return None

    async def _broken(
        self, draft: _Draft, platform: BlobIds | None, former: Target | None
    ) -> dict[PolicyName, tuple[FileError, ...]]:
        """The projects that work with the former platform and have no version that works with the new one."""
        if former is None:
            return {}
        candidates = await self._referring(draft)
        verdicts = await self._judge(candidates, platform)
        failing = {name: verdict for name, verdict in verdicts.items() if not verdict.valid}
        stay = {name: target.blobs for name in failing if (target := draft.live_target(name))}
        standing = {name: blobs for name, blobs in stay.items() if blobs != candidates[name]}
        survivors = await self._judge(standing, platform)
        before = await self._judge({name: candidates[name] for name in failing if name not in stay}, former.blobs)
        return {
            name: verdict.errors
            for name, verdict in failing.items()
            if (name in stay and not (name in survivors and survivors[name].valid))
            or (name in before and before[name].valid)
        }

    async def _referring(self, draft: _Draft) -> dict[PolicyName, BlobIds]:
        """Projects that a changed platform can concern: changed ones, and all whose text could name the platform."""
        versions, changed = await aside(draft.size, draft.versions)
        mentioning = await self._mentioning({name: v for name, v in versions.items() if name not in changed})
        return {name: blobs for name, blobs in versions.items() if name in changed or name in mentioning}

    async def _mentioning(self, versions: Mapping[PolicyName, BlobIds]) -> set[PolicyName]:
        """Those whose Rego text could refer to the platform: without the word (or an escape) it cannot."""
        unread = list(dict.fromkeys(blobs.rego for blobs in versions.values() if blobs.rego not in self._mentions))
        if len(self._mentions) > 2 * len(versions):  # most of it was said of versions that are no more
            wanted = {blobs.rego for blobs in versions.values()}
            self._mentions = {rego: said for rego, said in self._mentions.items() if rego in wanted}
        while unread:
            limit = self._limits[REGO_FILE]
            texts = await self._source.contents([BlobIds(rego) for rego in unread], limit=limit, budget=_READ_BYTES)
            for rego, text in zip(unread, texts, strict=False):
                self._mentions[rego] = text is None or b"platform" in text.rego or b"\\u" in text.rego
            unread = unread[len(texts) :]
        return {name for name, blobs in versions.items() if self._mentions[blobs.rego]}

    # --- a platform that concerns many -------------------------------------------------------------------------------

    async def _too_many(self, draft: _Draft, platform: BlobIds | None) -> bool:
        """Whether the platform must wait. Then it is held, and so is what may depend on it."""
        if self._at_once is None:
            return False
        concerned = await self._referring(draft)
        keys = {name: VerdictKey(name, blobs, platform) for name, blobs in concerned.items()}
        known = await self._verdicts.find(list(keys.values()))
        unknown = {name: blobs for name, blobs in concerned.items() if keys[name] not in known}
        if len(unknown) <= self._at_once:
            return False
        draft.pending = Pending(platform, unknown, len(concerned))
        message = f"is being compiled with the {len(concerned):,} projects that it concerns, and goes live after that"
        draft.errors[PLATFORM] = (PLATFORM_PENDING, (FileError(f"{PLATFORM}/{REGO_FILE}", message),))
        return True

    async def _wait_for_platform(self, draft: _Draft, changed: Mapping[PolicyName, BlobIds]) -> None:
        """Hold what may depend on the platform that waits: what refers to it, and what changed together with it."""
        waiting = await self._mentioning(changed) | (await self._mates(draft, changed) & changed.keys())
        message = "refers to the changed platform, or was changed together with it, and waits for it"
        for name in waiting:
            draft.errors[name] = (PLATFORM_PENDING, (FileError(f"{name}/{REGO_FILE}", message),))

    async def _mates(self, draft: _Draft, changed: Collection[PolicyName]) -> set[PolicyName]:
        """What was changed in one commit with the platform, as far as it is not live: now, or when it began to wait."""
        applied = draft.live.applied
        line = await self._source.line(draft.tree.commit, {applied.commit} if applied else ())
        if len(line) > _MATES_LINE:
            return set(changed)
        commits = (await self._source.branch_commits(line)).values()
        mates = {name for commit in commits if PLATFORM in commit.changes for name in commit.changes}
        return mates | {name for name in changed if _waited(draft.live.held.get(name))}

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
            await self._judge(lot, pending.platform, pinned=True)

    def unpin(self) -> None:
        """No platform waits any more."""
        self._verdicts.unpin()

    def _drive_out(self, draft: _Draft, broken: Mapping[PolicyName, tuple[FileError, ...]]) -> None:
        for name, errors in sorted(broken.items()):
            draft.errors[name] = ("BrokenByPlatform", errors)
            if name in draft.live.policies:
                draft.withdrawn.append(name)

    # --- projects ----------------------------------------------------------------------------------------------------

    async def _projects(self, draft: _Draft, platform: BlobIds | None) -> None:
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
        for name, verdict in (await self._judge(changed, platform)).items():
            draft.warnings.extend(verdict.warnings)
            if verdict.valid:
                draft.targets[name] = Target(changed[name], verdict.rego_version)
            else:
                draft.errors[name] = ("ValidationFailed", verdict.errors)
        await aside(draft.size, draft.stay, projects.keys() - changed.keys() - draft.errors.keys())
        for raw, errors in draft.tree.invalid.items():
            if (invalid := _policy(raw)) and invalid != PLATFORM:
                draft.errors[invalid] = ("InvalidLayout", errors)
        await self._keep_last_good(draft, platform)

    async def _keep_last_good(self, draft: _Draft, platform: BlobIds | None) -> None:
        """Held projects stay at their live version, or at the newest valid one of the history where none is live."""
        for name, (reason, _) in draft.errors.items():
            if name == PLATFORM or name in draft.withdrawn:
                continue
            target = draft.live_target(name)
            if target is None and reason != PLATFORM_PENDING:
                target = await self._past(draft, name, platform)
            if target is not None:
                draft.targets[name] = target

    async def _past(self, draft: _Draft, policy: PolicyName, platform: BlobIds | None) -> Target | None:
        for version in await self._source.past_versions(draft.tree.commit, policy):
            verdict = (await self._judge({policy: version.blobs}, platform))[policy]
            if verdict.valid:
                return Target(version.blobs, verdict.rego_version)
        return None

    # --- verdicts ----------------------------------------------------------------------------------------------------

    async def _judge(
        self, versions: Mapping[PolicyName, BlobIds], platform: BlobIds | None, *, pinned: bool = False
    ) -> dict[PolicyName, Verdict]:
        """A verdict for each version with that platform, from memory where there is one."""
        keys = {name: VerdictKey(name, blobs, platform) for name, blobs in versions.items()}
        known = await self._verdicts.find(list(keys.values()))
        verdicts = {name: known[key] for name, key in keys.items() if key in known}
        asked = [name for name in versions if name not in verdicts]
        beside = None
        if asked and platform is not None:
            beside = Candidate(PLATFORM, await self._read(platform))
        with self._counted(len(asked)) as tell:
            for start in range(0, len(asked), CHUNK):
                tell(start)
                found = await self._compile({name: versions[name] for name in asked[start : start + CHUNK]}, beside)
                await self._verdicts.keep({keys[name]: verdict for name, verdict in found.items()}, pinned=pinned)
                verdicts |= found
        return verdicts

    @contextlib.contextmanager
    def _counted(self, of: int) -> Iterator[Callable[[int], None]]:
        """Tell the progress of what takes several steps."""
        if of <= CHUNK:
            yield lambda _: None
            return
        try:
            yield lambda done: self._progress.tell("validating", done, of)
        finally:
            self._progress.over()

    async def _compile(
        self, versions: Mapping[PolicyName, BlobIds], platform: Candidate | None
    ) -> dict[PolicyName, Verdict]:
        verdicts: dict[PolicyName, Verdict] = {}
        candidates = []
        for name, blobs in versions.items():
            errors = await self._oversized(name, blobs)
            if errors:
                verdicts[name] = Verdict(errors)
            else:
                candidates.append(Candidate(name, await self._read(blobs)))
        if candidates:
            verdicts.update(await self._compiler.validate(candidates, platform))
        return verdicts

    async def _oversized(self, policy: PolicyName, blobs: BlobIds) -> tuple[FileError, ...]:
        text = self._texts.get(blobs)
        sizes = (len(text.rego), len(text.data or b"")) if text else await self._source.sizes(blobs)
        return tuple(
            FileError(f"{policy}/{file}", f"is {size} bytes; the limit is {self._limits[file]}: make it smaller")
            for file, size in zip((REGO_FILE, DATA_FILE), sizes, strict=True)
            if size > self._limits[file]
        )

    async def _read(self, blobs: BlobIds) -> Content:
        return self._texts.get(blobs) or await self._source.read(blobs)

    # --- holds -------------------------------------------------------------------------------------------------------

    async def _held(self, draft: _Draft) -> dict[str, Held]:
        """A record for everything that the commit has and that does not go live; unchanged while nothing changes."""
        held: dict[str, Held] = {}
        for name, (reason, errors) in draft.errors.items():
            held[name] = Held(await self._commit_of(draft, name), reason, errors[:HELD_ERRORS_LIMIT])
        for raw, errors in draft.tree.invalid.items():
            if _policy(raw) is None:
                former = draft.live.held.get(raw)
                reason = "InvalidName" if raw.startswith("projects/") else "InvalidLayout"
                record = Held(draft.tree.commit, reason, errors[:HELD_ERRORS_LIMIT])
                held[raw] = former if former and replace(former, commit=record.commit) == record else record
        return held

    async def _commit_of(self, draft: _Draft, name: PolicyName) -> str:
        try:
            return (await self._source.last_change(draft.tree.commit, name)).commit
        except StalledError:  # its files were never of the published kind
            former = draft.live.held.get(name)
            return former.commit if former else draft.tree.commit


def _take_out(
    draft: _Draft, versions: dict[PolicyName, BlobIds], bad: Mapping[PolicyName, tuple[FileError, ...]]
) -> None:
    """Put the live version in the place of what is blamed, or nothing.

    Where only what is live already is blamed, a changed policy took away what that one needs: then every changed one
    gives way.
    """
    changed = {
        name for name, blobs in versions.items() if (target := draft.live_target(name)) is None or target.blobs != blobs
    }
    for name in changed & bad.keys() or changed or set(bad):
        reason, errors = ("ValidationFailed", bad[name]) if name in bad else ("BreaksProjects", _naming(bad))
        draft.errors.setdefault(name, (reason, errors))
        target = draft.live_target(name)
        if target is not None and target.blobs != versions[name]:
            versions[name] = target.blobs
        else:
            del versions[name]
            if name in draft.live.policies:
                draft.withdrawn.append(name)


def _waited(held: Held | None) -> bool:
    return held is not None and held.reason == PLATFORM_PENDING


def _policy(raw: str) -> PolicyName | None:
    try:
        return policy_name(raw)
    except ValueError:
        return None


def _naming(broken: Mapping[PolicyName, Iterable[FileError]]) -> tuple[FileError, ...]:
    return tuple(
        replace(error, message=f"{name} would break with this platform: {error.message}")
        for name, errors in sorted(broken.items())
        for error in errors
    )
