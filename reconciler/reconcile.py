"""ONE pass: snapshot → plan → validate → guard → apply. Never retries, never sleeps, knows nothing of triggers.

It reads the whole state that it needs, so missed or repeated triggers do no harm. What it writes is fenced: see
`reconciler.core.transactions.Frame`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from reconciler.applying import Applier
from reconciler.aside import aside
from reconciler.core.digest import LiveDigest
from reconciler.core.errors import RegopsError
from reconciler.core.focus import focus_of
from reconciler.core.guards import Limits, Ruling, judge_deletions
from reconciler.core.keyspace import Keyspace
from reconciler.core.live import LivePolicy, LiveState, decode_live, live_ranges
from reconciler.core.model import DATA_FILE, PLATFORM, REGO_FILE, CommitInfo, FileError, PolicyName, Tree
from reconciler.core.plan import Cause, Change, Operation, Plan, make_plan
from reconciler.core.ports import Compare, Delete, Fence, KeyValueStore, Put, Source, Target
from reconciler.core.records import CHANGED_LIMIT, Applied, Confirmed, Held, Meta
from reconciler.core.times import rfc3339
from reconciler.core.tracing import NO_TRACER, Attribute, Tracer, traceparent
from reconciler.core.transactions import Frame, Step, held_steps
from reconciler.edits import TRACE_TRAILER
from reconciler.resolution import Resolution
from reconciler.validation import Judge

TRACED = 100
"""Commits of one pass whose traces it shows up in, the newest."""
Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass found and did. ``stages`` are RFC 3339 times; ``wrote`` is whether etcd changed; ``before`` the
    commit that was applied when it began, ``held_before`` what was held then, ``confirmed`` which deletions a person
    had confirmed.

    A pass may look at a part of the policies only (see `reconciler.core.focus`): then ``resolution`` is about these,
    and all else says the same as if it had looked at every one.
    """

    commit: str
    height: int
    tree: Tree
    plan: Plan
    resolution: Resolution
    ruling: Ruling
    held: Mapping[str, Held]
    live: LiveState
    wrote: bool = False
    rewritten: bool = False
    suspended: bool = False
    foreign: tuple[str, ...] = ()
    handled: str | None = None
    before: str | None = None
    held_before: Mapping[str, Held] = field(default_factory=dict)
    confirmed: Confirmed | None = None
    stages: Mapping[str, str] = field(default_factory=dict)

    @property
    def looked_only(self) -> bool:
        """Whether the pass ended early because nothing had moved."""
        return not self.stages


@dataclass(frozen=True, slots=True)
class _Desired:
    """Everything decided, nothing written."""

    commit: str
    height: int
    tree: Tree
    plan: Plan
    resolution: Resolution
    ruling: Ruling
    held: Mapping[str, Held]
    rewritten: bool


class Reconciler:
    """Runs passes for one leader. `invalidate` says that etcd may have changed by another hand."""

    def __init__(
        self,
        source: Source,
        store: KeyValueStore,
        judge: Judge,
        *,
        keyspace: Keyspace,
        limits: Limits,
        clock: Clock = lambda: datetime.now(UTC),
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._tracer = tracer
        self._source = source
        self._store = store
        self._judge = judge
        self._keyspace = keyspace
        self._limits = limits
        self._clock = clock
        self._epoch = 0
        self._live: tuple[int, LiveState] | None = None
        self._settled: tuple[int, PassResult] | None = None
        self._reconsidered = 0
        self._rest = False
        """Whether the settled pass had nothing to hold, to release or to withdraw: else the next one looks at the same
        commit once more. What was withdrawn may have an older version that works; what was blocked, of so many live
        policies, may pass now that there are others."""
        self._digest: tuple[LiveState, LiveDigest] | None = None
        self._applier = Applier(source, store, keyspace, tracer)

    def invalidate(self) -> None:
        """Forget what is known of etcd: the next pass reads it whole."""
        self._epoch += 1

    def reconsider(self) -> None:
        """Decide anew in the next pass although neither Git nor etcd has moved: more is known of what compiles."""
        self._settled = None
        self._reconsidered += 1

    async def wrote(self, revision: int) -> bool:
        """Whether a store revision is one of this reconciler's own recent writes; waits for one under way."""
        return await self._applier.wrote(revision)

    async def run(
        self,
        fence: Fence,
        *,
        renew: bool = False,
        at_hand: str | None = None,
        told: bool = True,
        trace: str | None = None,
    ) -> PassResult:
        """Make etcd equal to the head of the branch, as far as the guards and holds allow.

        ``renew`` writes ``applied`` anew (a new leader's first pass). ``at_hand`` is the head where it is known
        already, since this replica has just pushed it: nothing is fetched then. ``told``: see `Source.fetch`.
        ``trace``: the trace context of what made it look; that of the commit itself goes before. Raises
        `ConflictError` when somebody wrote first, `UnknownOutcomeError` when a write's answer did not come, and what
        the adapters raise.
        """
        began = self._clock()
        try:
            commit = at_hand or await self._fetch(told=told)
            fetched = self._clock()
            settled = self._settled[1] if self._rest and self._settled and self._settled[0] == self._epoch else None
            if not renew and settled is not None and settled.commit == commit:
                return replace(settled, wrote=False, stages={})
            known = await self._read_live()
            applied = known[1].applied.commit if known[1].applied else None
            traces = await self._traces(commit, applied)
        except RegopsError:
            with self._tracer.span("regops.pass", trace, start=began):
                raise
        with self._tracer.span("regops.pass", traces.pop(commit, trace), start=began) as span:
            self._tracer.record("regops.fetch", began, fetched, span.context)
            stages = {"fetched_at": rfc3339(fetched)}
            result = await self._pass(fence, commit, stages, known, renew=renew, trace=span.context)
            about: dict[str, Attribute] = {"regops__wrote": result.wrote, "regops__held": len(result.held)}
            span.tell(vcs__ref__head__revision=commit, **about)
        for other, context in traces.items():  # they went live together, by one pass
            about["vcs__ref__head__revision"] = other
            self._tracer.record("regops.pass", began, self._clock(), context, link=span.context, **about)
        return result

    async def _traces(self, commit: str, applied: str | None) -> dict[str, str]:
        """The trace contexts that writes through the API left in the commits that are not applied yet, by commit; of
        the newest `TRACED` commits. What is applied was traced then: a restart does not go on with it for ever."""
        if not self._tracer.enabled or commit == applied:
            return {}
        line = [commit]
        if applied is not None and await self._source.contains(commit, applied):
            line = list(await self._source.line(commit, {applied}))[-TRACED:] or line
        commits = await self._source.branch_commits(line)
        found = {name: traceparent(each.trailers.get(TRACE_TRAILER)) for name, each in commits.items()}
        return {name: context for name, context in found.items() if context}

    async def _pass(
        self,
        fence: Fence,
        commit: str,
        stages: dict[str, str],
        known: tuple[int, LiveState],
        *,
        renew: bool,
        trace: str | None,
    ) -> PassResult:
        epoch, live = known
        reconsidered = self._reconsidered
        with self._tracer.span("regops.validate", trace):
            desired = await self._decide(commit, live)
        stages["validated_at"] = self._now()
        result = PassResult(
            commit=commit,
            height=desired.height,
            tree=desired.tree,
            plan=desired.plan,
            resolution=desired.resolution,
            ruling=desired.ruling,
            held=desired.held,
            live=live,
            rewritten=desired.rewritten,
            suspended=live.suspended is not None,
            foreign=tuple(sorted(self._foreign(desired.tree, live))),
            handled=live.requested.token if live.requested else None,
            before=live.applied.commit if live.applied else None,
            held_before=live.held,
            confirmed=live.confirmed,
            stages=stages,
        )
        self._rest = True
        if live.suspended is None:
            result = await self._apply(fence, result, renew=renew, trace=trace)
        self._rest = self._rest and reconsidered == self._reconsidered  # else more was known than this pass knew
        self._live = (epoch, result.live)
        self._settled = (epoch, result)
        return result

    async def preview(self, commit: str) -> tuple[LiveState, Plan, Mapping[str, Held], Tree]:
        """What a pass at ``commit`` would do; nothing is written and nobody needs to lead."""
        live = decode_live(self._keyspace, await self._store.read(*live_ranges(self._keyspace)))
        desired = await self._decide(commit, live)
        return live, desired.plan, desired.held, desired.tree

    async def _fetch(self, *, told: bool) -> str:
        try:
            return await self._source.fetch(told=told)
        except RegopsError as error:
            error.stage = "fetch"
            raise

    # --- decide ------------------------------------------------------------------------------------------------------

    async def _read_live(self) -> tuple[int, LiveState]:
        epoch = self._epoch
        if self._live is not None and self._live[0] == epoch:
            return self._live
        read = await self._store.read(*live_ranges(self._keyspace))
        return epoch, await aside(len(read.ranges[0]), decode_live, self._keyspace, read)

    async def _decide(self, commit: str, live: LiveState) -> _Desired:
        former = self._settled[1] if self._settled and self._settled[1].live is live else None
        tree = await self._source.tree(commit, since=former.commit if former else None)
        focus = focus_of(tree, live, _undone(former)) if former else None
        ruling = await self._rule(tree, live, focus)
        resolution = await self._judge.resolve(tree, live, ruling.allowed, focus)
        deletions = {*ruling.allowed, *resolution.withdrawn} - resolution.targets.keys()
        kept = {name: target for name, target in resolution.targets.items() if name not in ruling.blocked}
        applied = live.applied
        return _Desired(
            commit=commit,
            height=await self._source.height(commit),
            tree=tree,
            plan=await aside(len(kept), make_plan, kept, deletions, live),
            resolution=resolution,
            ruling=ruling,
            held={**resolution.held, **_blocked(ruling, commit, live)},
            rewritten=applied is not None and not await self._source.contains(commit, applied.commit),
        )

    async def _rule(self, tree: Tree, live: LiveState, focus: frozenset[PolicyName] | None) -> Ruling:
        size = len(live.policies) if focus is None else len(focus)
        ruling = judge_deletions(
            await aside(size, _gone, tree, live, focus),
            live=live.count,
            source_empty=not tree.found or not (tree.policies or tree.invalid),
            confirmed=await self._confirmed(tree.commit, live.confirmed),
            limits=self._limits,
        )
        if ruling.blocked and not tree.found:
            message = f"the commit has no folder of policies where git.path says, and {len(ruling.blocked)} are live"
            return replace(ruling, message=message)
        return ruling

    async def _confirmed(self, commit: str, confirmed: Confirmed | None) -> Sequence[str]:
        if confirmed is None or not await self._source.contains(commit, confirmed.commit):
            return ()
        return confirmed.deletions

    # --- apply -------------------------------------------------------------------------------------------------------

    async def _apply(self, fence: Fence, result: PassResult, *, renew: bool, trace: str | None) -> PassResult:
        live, changes = result.live, result.plan.changes
        removing = self._foreign_steps(result)
        steps = [*removing, *held_steps(self._keyspace, result.held, live), *self._spent(result)]
        moved = live.applied is None or live.applied.commit != result.commit or live.applying is not None
        self._rest = not (steps or result.resolution.withdrawn or (result.ruling.blocked and changes))
        if not (changes or steps or moved or renew):
            return result
        with self._tracer.span("regops.apply", trace) as span:
            return await self._write(fence, result, [removing, steps], renew=renew, trace=span.context)

    async def _write(
        self, fence: Fence, result: PassResult, beside: Sequence[Sequence[Step]], *, renew: bool, trace: str | None
    ) -> PassResult:
        """The transactions. ``beside`` the plan's changes: the removal of foreign keys, and everything else with it."""
        live, changes, (removing, steps) = result.live, result.plan.changes, beside
        metas = await self._metas(result)
        digest = await self._digest_after(result)
        applied = replace(self._applied(result, digest, renew=renew), trace=trace)
        frame = Frame(self._keyspace, fence, applied, live.applied_revision, live.applying_revision)
        try:
            revisions = await self._applier.apply(frame, changes, metas, steps, trace)
        except BaseException:
            self.invalidate()  # part of it may stand in etcd
            raise
        new_live = await aside(len(changes), _advance, result, metas, revisions, applied)
        new_live = self._after_steps(new_live, result, steps, revisions[len(changes) :])
        self._digest = new_live, digest
        if removing:
            self._epoch += 1  # the next pass reads the request and what is foreign again
        foreign = () if removing else result.foreign
        stages = {**result.stages, "applied_at": self._now()}
        return replace(result, live=new_live, wrote=True, foreign=foreign, stages=stages)

    def _after_steps(
        self, live: LiveState, result: PassResult, steps: Sequence[Step], revisions: Sequence[int]
    ) -> LiveState:
        """The live state once the records of what is held are written, and a confirmation that was spent is gone."""
        if not steps:
            return live
        keys, held = self._keyspace, dict(live.held_revisions)
        written = [(op, rev) for step, rev in zip(steps, revisions, strict=True) for op in step.operations]
        for operation, revision in written:
            name = operation.key.removeprefix(keys.helds)
            if name != operation.key:
                held.pop(name, None)
                if isinstance(operation, Put):
                    held[name] = revision
        live = replace(live, held=result.held, held_revisions=held)
        spent = any(operation.key == keys.confirmed for operation, _ in written)
        return replace(live, confirmed=None, confirmed_revision=0) if spent else live

    def _applied(self, result: PassResult, digest: LiveDigest, *, renew: bool) -> Applied:
        before = result.live.applied
        names = [str(change.policy) for change in result.plan.changes]
        told = not renew and result.live.applying is None and len(names) <= CHANGED_LIMIT
        same = before is not None and (before.commit, before.digest) == (result.commit, digest.hex)
        return Applied(
            id=secrets.token_hex(8),
            previous=before.id if before else None,
            commit=result.commit,
            height=result.height,
            rewrites=(before.rewrites if before else 0) + result.rewritten,
            digest=digest.hex,
            at=before.at if before is not None and same else self._now(),
            changed=tuple(names) if told else None,
        )

    async def _digest_after(self, result: PassResult) -> LiveDigest:
        """The digest of what will be live: that of what is, taken further; made from nothing where it is not known."""
        live, changes = result.live, result.plan.changes
        put = {change.policy: change.target.blobs.etag for change in changes if change.target is not None}
        gone = [change.policy for change in changes if change.target is None]
        if self._digest is None or self._digest[0] is not live:
            return await aside(len(live.policies) + len(changes), _whole_digest, live, put, gone)

        def etag_of(name: PolicyName) -> str:
            return put.get(name) or live.policies[name].etag or ""

        return await aside(len(changes), self._digest[1].after, put, gone, etag_of)

    async def _metas(self, result: PassResult) -> dict[PolicyName, Meta]:
        """The new meta of each created or updated policy; a healed one keeps its own."""
        metas: dict[PolicyName, Meta] = {}
        infos: dict[PolicyName, CommitInfo] = {}
        current: list[PolicyName] = []
        for change in result.plan.changes:
            if change.target is None:
                continue
            if change.cause is Cause.DRIFT and change.live.meta is not None:
                metas[change.policy] = change.live.meta
            elif result.tree.policies.get(change.policy) == change.target.blobs:
                current.append(change.policy)
            else:
                infos[change.policy] = await self._past(result.commit, change)
        infos |= await self._source.last_changes(result.commit, current)
        new = [change for change in result.plan.changes if change.policy in infos]
        return metas | await aside(len(new), _new_metas, new, infos, self._now())

    async def _past(self, commit: str, change: Change) -> CommitInfo:
        versions = await self._source.past_versions(commit, change.policy)
        wanted = change.target.blobs if change.target else None
        return await self._source.info(next((v.commit for v in versions if v.blobs == wanted), commit))

    def _foreign_steps(self, result: PassResult) -> list[Step]:
        """Deletions of foreign keys, when the last request asked for them; they take the wish out of the request.

        So it holds once, also for the next leader, and never for keys that somebody writes later.
        """
        requested = result.live.requested
        if requested is None or not requested.remove_foreign:
            return []
        revisions = self._foreign(result.tree, result.live)
        key, done = self._keyspace.requested, replace(requested, remove_foreign=False)
        spent = Step((Compare(key, Target.MOD, result.live.requested_revision),), (Put(key, done.encode()),))
        return [*(Step((Compare(k, Target.MOD, rev),), (Delete(k),)) for k, rev in revisions.items()), spent]

    def _foreign(self, tree: Tree, live: LiveState) -> dict[str, int]:
        """The keys, with their mod_revisions, that neither Git has nor regops wrote."""
        revisions = dict(live.foreign)
        for name in live.unwritten:
            if name not in tree.policies and name not in tree.invalid:
                files = live.policies[name].files
                revisions |= {f"{self._keyspace.policies}{name}/{file}": rev for file, rev in files.items()}
        return revisions

    def _spent(self, result: PassResult) -> list[Step]:
        """A confirmation ends with the deletions that it was given for."""
        confirmed = result.live.confirmed
        gone = {change.policy for change in result.plan.of(Operation.DELETE)}
        left = set() if confirmed is None else {n for n in confirmed.deletions if n in result.live.policies} - gone
        if confirmed is None or left or not gone:
            return []
        key = self._keyspace.confirmed
        return [Step((Compare(key, Target.MOD, result.live.confirmed_revision),), (Delete(key),))]

    def _now(self) -> str:
        return rfc3339(self._clock())


def _undone(former: PassResult) -> Iterator[str]:
    """What a pass did not bring to the state of its commit."""
    yield from former.held
    yield from former.ruling.blocked
    yield from former.resolution.withdrawn


def _gone(tree: Tree, live: LiveState, focus: frozenset[PolicyName] | None) -> list[PolicyName]:
    """The live policies that the commit really has no more: of a ``projects`` that is no folder nothing is known."""
    unknown = "projects" in tree.invalid
    found = []
    for name in live.policies if focus is None else focus:
        there = name in tree.policies or name in tree.invalid or (unknown and name != PLATFORM)
        policy = live.policies.get(name)
        if not there and policy is not None and policy.meta is not None:
            found.append(name)
    return found


def _blocked(ruling: Ruling, commit: str, live: LiveState) -> dict[str, Held]:
    """Held records of the blocked deletions; a former record stays while its reason does."""
    held: dict[str, Held] = {}
    for name in ruling.blocked:
        error = FileError(
            f"{name}/{REGO_FILE}",
            f"is deleted in Git and stays live, since {ruling.message}: if that is meant, "
            "confirm the commit that was last attempted: `regops sync --confirm COMMIT`",
        )
        former = live.held.get(name)
        record = Held(commit, "PruneBlocked", (error,))
        held[name] = former if former and former.reason == "PruneBlocked" and former.errors == (error,) else record
    return held


def _whole_digest(live: LiveState, put: Mapping[PolicyName, str], gone: Iterable[PolicyName]) -> LiveDigest:
    etags = {name: policy.meta.etag for name, policy in live.policies.items() if policy.meta} | dict(put)
    for name in gone:
        etags.pop(name, None)
    return LiveDigest.of(etags)


def _new_metas(changes: Iterable[Change], infos: Mapping[PolicyName, CommitInfo], now: str) -> dict[PolicyName, Meta]:
    return {
        change.policy: Meta(
            etag=target.blobs.etag,
            commit=infos[change.policy].commit,
            actor=infos[change.policy].author,
            at=now,
            rego_version=target.rego_version,
            rego=target.blobs.rego,
            data=target.blobs.data,
        )
        for change in changes
        if (target := change.target) is not None
    }


def _advance(
    result: PassResult, metas: Mapping[PolicyName, Meta], revisions: Sequence[int], applied: Applied
) -> LiveState:
    """The live state after an apply, without reading it again."""
    changes: dict[PolicyName, LivePolicy | None] = {}
    for change, revision in zip(result.plan.changes, revisions, strict=False):
        target = change.target
        files = (REGO_FILE,) if target is None or target.blobs.data is None else (REGO_FILE, DATA_FILE)
        live = None if target is None else LivePolicy(metas[change.policy], revision, dict.fromkeys(files, revision))
        changes[change.policy] = live
    return result.live.after(changes, applied, revisions[-1])
