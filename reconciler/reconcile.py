"""ONE pass: snapshot → plan → validate → guard → apply. Never retries, never sleeps, knows nothing of triggers.

It reads the whole state that it needs, so missed or repeated triggers do no harm. What it writes is fenced: see
`reconciler.core.transactions.Frame`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from reconciler.aside import aside
from reconciler.core.errors import CompactedError, ConflictError, RegopsError
from reconciler.core.guards import Limits, Ruling, judge_deletions
from reconciler.core.keyspace import Keyspace
from reconciler.core.live import LivePolicy, LiveState, decode_live, live_digest, live_ranges
from reconciler.core.model import DATA_FILE, PLATFORM, REGO_FILE, CommitInfo, Content, FileError, PolicyName, Tree
from reconciler.core.plan import Cause, Change, Operation, Plan, make_plan
from reconciler.core.ports import Compare, Delete, Fence, KeyValueStore, Put, Range, Source, Target, Transaction
from reconciler.core.records import CHANGED_LIMIT, Applied, Confirmed, Held, Meta
from reconciler.core.times import rfc3339
from reconciler.core.tracing import NO_TRACER, Attribute, Tracer, traceparent
from reconciler.core.transactions import Frame, Step, change_step, held_steps, join, pack
from reconciler.edits import TRACE_TRAILER
from reconciler.validation import Judge, Resolution

TRACED = 100
"""Commits of one pass whose traces it shows up in, the newest."""
OWN_REVISIONS = 4096
"""Store revisions of own writes that are remembered, so that the drift watch can tell them from others'."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass found and did. ``stages`` are RFC 3339 times; ``wrote`` is whether etcd changed; ``before`` the
    commit that was applied when it began, ``held_before`` what was held then."""

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
        self._written: deque[int] = deque(maxlen=OWN_REVISIONS)
        self._writing = asyncio.Lock()

    def invalidate(self) -> None:
        """Forget what is known of etcd: the next pass reads it whole."""
        self._epoch += 1

    def reconsider(self) -> None:
        """Decide anew in the next pass although neither Git nor etcd has moved: more is known of what compiles."""
        self._settled = None

    async def wrote(self, revision: int) -> bool:
        """Whether a store revision is one of this reconciler's own recent writes; waits for one under way."""
        async with self._writing:
            return revision in self._written

    async def run(
        self, fence: Fence, *, renew: bool = False, at_hand: str | None = None, trace: str | None = None
    ) -> PassResult:
        """Make etcd equal to the head of the branch, as far as the guards and holds allow.

        ``renew`` writes ``applied`` anew (a new leader's first pass). ``at_hand`` is the head where it is known
        already, since this replica has just pushed it: nothing is fetched then. ``trace``: the trace context of what
        made it look; that of the commit itself goes before. Raises `ConflictError` when somebody
        wrote first, `UnknownOutcomeError` when a write's answer did not come, and what the adapters raise.
        """
        began = self._clock()
        try:
            commit = at_hand or await self._fetch()
            fetched = self._clock()
            if not renew and self._settled and self._settled[0] == self._epoch and self._settled[1].commit == commit:
                return replace(self._settled[1], wrote=False, stages={})
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
            told: dict[str, Attribute] = {"regops__wrote": result.wrote, "regops__held": len(result.held)}
            span.tell(vcs__ref__head__revision=commit, **told)
        for other, context in traces.items():  # they went live together, by one pass
            told["vcs__ref__head__revision"] = other
            self._tracer.record("regops.pass", began, self._clock(), context, link=span.context, **told)
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
            stages=stages,
        )
        if live.suspended is None:
            result = await self._apply(fence, result, renew=renew, trace=trace)
        self._live = (epoch, result.live)
        self._settled = (epoch, result)
        return result

    async def preview(self, commit: str) -> tuple[LiveState, Plan, Mapping[str, Held], Tree]:
        """What a pass at ``commit`` would do; nothing is written and nobody needs to lead."""
        live = decode_live(self._keyspace, await self._store.read(*live_ranges(self._keyspace)))
        desired = await self._decide(commit, live)
        return live, desired.plan, desired.held, desired.tree

    async def _fetch(self) -> str:
        try:
            return await self._source.fetch()
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
        tree = await self._source.tree(commit)
        ruling = await self._rule(tree, live)
        resolution = await self._judge.resolve(tree, live, ruling.allowed)
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

    async def _rule(self, tree: Tree, live: LiveState) -> Ruling:
        written = live.written()
        ruling = judge_deletions(
            [name for name in written if _gone(name, tree)],
            live=len(written),
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
        live = result.live
        removing = self._foreign_steps(result)
        steps = [*removing, *held_steps(self._keyspace, result.held, live), *self._spent(result)]
        moved = live.applied is None or live.applied.commit != result.commit or live.applying is not None
        if not (result.plan.changes or steps or moved or renew):
            return result
        with self._tracer.span("regops.apply", trace) as span:
            return await self._write(fence, result, [removing, steps], renew=renew, trace=span.context)

    async def _write(
        self, fence: Fence, result: PassResult, beside: Sequence[Sequence[Step]], *, renew: bool, trace: str | None
    ) -> PassResult:
        """The transactions. ``beside`` the plan's changes: the removal of foreign keys, and everything else with it."""
        live, (removing, steps) = result.live, beside
        metas = await self._metas(result)
        applied = await aside(len(live.policies) + len(result.plan.changes), self._applied, result, renew=renew)
        applied = replace(applied, trace=trace)
        frame = Frame(self._keyspace, fence, applied, live.applied_revision, live.applying_revision)
        changes = [await self._step(change, metas) for change in result.plan.changes]
        batches = pack([*changes, *steps])
        async with self._writing:
            revisions = await self._commit(frame, [join(batch) for batch in batches], trace)
        of_steps = [rev for batch, rev in zip(batches, revisions, strict=True) for _ in batch]
        new_live = _advance(result, metas, of_steps[: len(changes)], applied, revisions[-1])
        if steps:
            self._epoch += 1  # held, foreign or confirmed records moved: the next pass reads them again
        foreign = () if removing else result.foreign
        stages = {**result.stages, "applied_at": self._now()}
        return replace(result, live=new_live, wrote=True, foreign=foreign, stages=stages)

    async def _commit(self, frame: Frame, batches: Sequence[Step], trace: str | None) -> list[int]:
        """Send each batch as one transaction; the store revision of each."""
        if len(batches) == 1:
            return [await self._send(frame.only(batches[0]), trace)]
        marker = await self._send(frame.first(batches[0]), trace)
        middle = [await self._send(frame.middle(batch, marker), trace) for batch in batches[1:-1]]
        return [marker, *middle, await self._send(frame.last(batches[-1], marker), trace)]

    async def _send(self, transaction: Transaction, trace: str | None) -> int:
        with self._tracer.span("etcd.txn", trace, "client") as span:
            size = len(transaction.operations)
            span.tell(db__system__name="etcd", db__operation__name="txn", db__operation__batch__size=size)
            outcome = await self._store.commit(transaction)
        if not outcome.succeeded:
            self.invalidate()
            raise ConflictError("somebody else wrote to etcd first, or this replica no longer leads", reason="Conflict")
        self._written.append(outcome.revision)
        return outcome.revision

    def _applied(self, result: PassResult, *, renew: bool) -> Applied:
        before = result.live.applied
        names = [str(change.policy) for change in result.plan.changes]
        told = not renew and result.live.applying is None and len(names) <= CHANGED_LIMIT
        return Applied(
            id=secrets.token_hex(8),
            previous=before.id if before else None,
            commit=result.commit,
            height=result.height,
            rewrites=(before.rewrites if before else 0) + result.rewritten,
            digest=live_digest(_etags_after(result)),
            at=self._now(),
            changed=tuple(names) if told else None,
        )

    async def _metas(self, result: PassResult) -> dict[PolicyName, Meta]:
        """The new meta of each created or updated policy; a healed one keeps its own."""
        metas: dict[PolicyName, Meta] = {}
        for change in result.plan.changes:
            if change.target is None:
                continue
            if change.cause is Cause.DRIFT and change.live.meta is not None:
                metas[change.policy] = change.live.meta
            elif result.tree.policies.get(change.policy) == change.target.blobs:
                metas[change.policy] = self._meta(change, await self._source.last_change(result.commit, change.policy))
            else:
                metas[change.policy] = self._meta(change, await self._past(result.commit, change))
        return metas

    async def _past(self, commit: str, change: Change) -> CommitInfo:
        versions = await self._source.past_versions(commit, change.policy)
        wanted = change.target.blobs if change.target else None
        return await self._source.info(next((v.commit for v in versions if v.blobs == wanted), commit))

    def _meta(self, change: Change, info: CommitInfo) -> Meta:
        if change.target is None:
            raise ValueError("a deletion has no meta")
        blobs = change.target.blobs
        return Meta(
            etag=blobs.etag,
            commit=info.commit,
            actor=info.author,
            at=self._now(),
            rego_version=change.target.rego_version,
            rego=blobs.rego,
            data=blobs.data,
        )

    async def _step(self, change: Change, metas: Mapping[PolicyName, Meta]) -> Step:
        if change.target is None:
            return change_step(self._keyspace, change, None, None)
        content = await self._own_content(change) if change.cause is Cause.DRIFT else None
        if content is None or content.blob_ids() != change.target.blobs:
            content = await self._source.read(change.target.blobs)
        return change_step(self._keyspace, change, content, metas[change.policy])

    async def _own_content(self, change: Change) -> Content | None:
        """What regops itself wrote, from etcd's history: Git may have lost it with a rewritten branch."""
        keys = Range(self._keyspace.rego(change.policy)), Range(self._keyspace.data(change.policy))
        try:
            rego, data = (await self._store.read(*keys, revision=change.live.meta_revision)).ranges
        except CompactedError:
            return None
        return Content(rego[0].value, data[0].value if data else None) if rego else None

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
        for name, policy in live.policies.items():
            if policy.meta is None and name not in tree.policies:
                revisions |= {f"{self._keyspace.policies}{name}/{file}": rev for file, rev in policy.files.items()}
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


def _gone(name: PolicyName, tree: Tree) -> bool:
    """Whether the commit really has this policy no more: of a ``projects`` that is no folder nothing is known."""
    unknown = name != PLATFORM and "projects" in tree.invalid
    return name not in tree.policies and name not in tree.invalid and not unknown


def _blocked(ruling: Ruling, commit: str, live: LiveState) -> dict[str, Held]:
    """Held records of the blocked deletions; a former record stays while its reason does."""
    held: dict[str, Held] = {}
    for name in ruling.blocked:
        error = FileError(
            f"{name}/{REGO_FILE}",
            f"is deleted in Git and stays live, since {ruling.message}: if that is meant, "
            "confirm it with `regops sync --confirm COMMIT` (the commit that `regops status` names)",
        )
        former = live.held.get(name)
        record = Held(commit, "PruneBlocked", (error,))
        held[name] = former if former and former.reason == "PruneBlocked" and former.errors == (error,) else record
    return held


def _etags_after(result: PassResult) -> dict[PolicyName, str]:
    etags = {name: policy.meta.etag for name, policy in result.live.written().items() if policy.meta}
    for change in result.plan.changes:
        if change.target is None:
            etags.pop(change.policy, None)
        else:
            etags[change.policy] = change.target.blobs.etag
    return etags


def _advance(
    result: PassResult, metas: Mapping[PolicyName, Meta], revisions: Sequence[int], applied: Applied, last: int
) -> LiveState:
    """The live state after an apply, without reading it again."""
    policies = dict(result.live.policies)
    for change, revision in zip(result.plan.changes, revisions, strict=True):
        if change.target is None:
            policies.pop(change.policy, None)
            continue
        files = {REGO_FILE: revision} | ({DATA_FILE: revision} if change.target.blobs.data is not None else {})
        policies[change.policy] = LivePolicy(metas[change.policy], revision, files)
    return replace(
        result.live,
        revision=last,
        policies=policies,
        applied=applied,
        applied_revision=last,
        applying=None,
        applying_revision=0,
    )
