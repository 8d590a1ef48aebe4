"""WHEN a pass runs: triggers, coalescing, the only backoff, and the status that says what came of it.

One outcome of a pass, one rule for the next: transient → back off (with jitter; a new trigger cuts it short; never
longer than a sound source waits for its poll); conflict → again at once, bounded; stalled → wait for a trigger or the
next poll. Whatever else a pass raises is logged with its traceback, counted and backed off from: a defect must not end
the process.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, Protocol

from reconciler.core.conditions import (
    CONDITIONS,
    HISTORY_REWRITTEN,
    READY,
    RECONCILING,
    Condition,
    Findings,
    StatusRecord,
    after_failure,
    after_pass,
    carry_over,
)
from reconciler.core.errors import ConflictError, RegopsError, StalledError
from reconciler.core.plan import Operation
from reconciler.core.ports import Fence
from reconciler.core.times import rfc3339
from reconciler.metrics import LoopMetrics
from reconciler.progress import Works
from reconciler.reconcile import PassResult, Reconciler
from reconciler.resolution import PLATFORM_PENDING
from reconciler.settings import GitSettings, LoopSettings
from reconciler.status_keeper import StatusKeeper
from reconciler.triggers import Kind, Mailbox, Trigger

log = logging.getLogger(__name__)

_LEAD_SECONDS: Final = 0.1
"""How soon a leader whose lease could not be renewed looks whether it is again."""
_TELL_SECONDS: Final = 2.0
"""How often the progress of long work goes into the status."""


class Leading(Protocol):
    """Leadership, as far as the loop knows it."""

    @property
    def fence(self) -> Fence:
        """What every write is compared with."""
        ...

    def valid(self) -> bool:
        """Whether it makes sense to start a pass; safety never depends on it."""
        ...


_TOLD: Final = frozenset({Kind.PUSH, Kind.HOOK, Kind.API, Kind.REQUEST})
"""Triggers by which somebody says that there is something to do."""
HOOKS_TRUSTED: Final = 3600.0
"""Seconds after the last webhook for which others are expected."""


class AtHand(Protocol):
    """The write side of the branch, as far as the loop knows it."""

    async def head(self) -> str | None:
        """The branch's head without asking the remote."""
        ...


class Watching(Protocol):
    """Who is told of passes. The call neither waits nor raises."""

    def saw(self, result: PassResult) -> None:
        """A pass has ended well."""
        ...


class Journal(Protocol):
    """The log of passes, as far as the loop knows it. The calls neither wait nor raise."""

    def applied(self, result: PassResult, trigger: Trigger) -> None:
        """A pass has written."""
        ...

    def failed(self, error: RegopsError, trigger: Trigger) -> None:
        """A pass broke off."""
        ...


class Recording(Watching, Protocol):
    """The record of versions, as far as the loop knows it."""

    def notices(self) -> Sequence[Condition]:
        """What a person should know of the record."""
        ...


class Loop:
    """Runs passes while this replica leads."""

    def __init__(
        self,
        reconciler: Reconciler,
        mailbox: Mailbox,
        status: StatusKeeper,
        *,
        git: GitSettings,
        settings: LoopSettings,
        metrics: LoopMetrics,
        branch: AtHand | None = None,
        recorder: Recording | None = None,
        watchers: Sequence[Watching] = (),
        journal: Journal | None = None,
        works: Works | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``works``: long pieces of work whose progress the status shows."""
        self._works = works or Works()
        self._reconciler = reconciler
        self._branch = branch
        self._recorder = recorder
        self._watchers = [*([recorder] if recorder else []), *watchers]
        self._journal = journal
        self._mailbox = mailbox
        self._status = status
        self._git = git
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._failures = 0
        self._owed: Trigger | None = None
        self._renew = True
        self._compared = monotonic()

    async def run(self, leadership: Leading) -> None:
        """Pass after pass until cancelled. The first one of a new leader writes ``applied`` anew."""
        teller = asyncio.ensure_future(self._tell(leadership))
        try:
            await self._run(leadership)
        finally:
            teller.cancel()
            await asyncio.gather(teller, return_exceptions=True)

    async def _tell(self, leadership: Leading) -> None:
        """The progress of long work, for whoever looks at the status meanwhile."""
        told = False
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            says = self._says()
            if says is not None or told:
                await self._status.work(leadership.fence, self._says, rfc3339(self._clock()))
            told = says is not None

    def _says(self) -> str | None:
        """Of a pass, or of what a platform waits for as long as the last pass says that it waits, and nothing worse."""
        waits = any(c.type == RECONCILING and c.reason == PLATFORM_PENDING for c in self._status.record.conditions)
        return self._works.passes.says() or (self._works.beside.says() if waits else None)

    async def _run(self, leadership: Leading) -> None:
        self._renew = True
        self._failures = 0
        self._owed = None
        waited = self._mailbox.emptied()
        self._reconciler.invalidate()
        self._metrics.last_pass.set(self._clock().timestamp())
        await self._load_status()
        trigger = Trigger(Kind.START, self._clock(), trace=waited)
        while True:
            self._metrics.poll_interval.set(self._poll())
            self._metrics.triggers.labels(trigger.kind).inc()
            # The trigger is kept meanwhile: nobody repeats it when etcd is back.
            while not leadership.valid():  # noqa: ASYNC110 time alone ends it, so nobody could set an event
                await asyncio.sleep(_LEAD_SECONDS)
            await self._turn(leadership, trigger)
            trigger = await self._mailbox.take(next_look(self._failures, self._poll(), self._settings))
            if self._owed is not None:
                trigger = again(self._owed, trigger)

    def _poll(self) -> float:
        """Seconds between two looks: more while webhooks tell of every commit."""
        return poll_of(self._git, self._mailbox.hooked_at, monotonic())

    async def _load_status(self) -> None:
        try:
            await self._status.load()
        except RegopsError as error:
            log.warning("former status not read", extra={"reason": error.reason})

    async def _turn(self, leadership: Leading, trigger: Trigger) -> None:
        """One pass and its bookkeeping; raises nothing but cancellation."""
        if monotonic() - self._compared > self._settings.full_compare_interval:
            self._reconciler.invalidate()
            self._compared = monotonic()
        # A request is handled by the next pass also when that fails: whoever waits for it is to learn why. It is read
        # before the pass, and not where a push should be live soon.
        asked = None if trigger.kind is Kind.PUSH else await self._status.requested()
        started = monotonic()
        try:
            result = await self._pass(leadership, trigger)
        except RegopsError as error:
            self._failed(error, trigger, monotonic() - started)
            await self._publish(leadership, self._failure_record(error, asked))
        except Exception as error:
            log.exception("pass failed unexpectedly")
            failure = RegopsError(f"{type(error).__name__}: {error}", reason="InternalError")
            self._failed(failure, trigger, monotonic() - started)
            await self._publish(leadership, self._failure_record(failure, asked))
        else:
            self._failures = 0
            self._owed = None
            self._renew = False
            if trigger.kind is Kind.POLL and result.wrote and result.commit != result.before:
                self._mailbox.hooked_at = None  # no webhook told of it
            self._succeeded(result, trigger, monotonic() - started)
            await self._publish(leadership, self._record(result, trigger))

    async def _pass(self, leadership: Leading, trigger: Trigger) -> PassResult:
        for attempt in range(self._settings.conflict_retries + 1):
            head = await self._branch.head() if self._branch and not trigger.fetch else None
            try:
                fence, renew, told = leadership.fence, self._renew, trigger.kind is not Kind.POLL
                return await self._reconciler.run(fence, renew=renew, at_hand=head, told=told, trace=trigger.trace)
            except ConflictError:
                if attempt == self._settings.conflict_retries or not leadership.valid():
                    raise
                self._metrics.passes.labels("conflict").inc()  # the last one is counted as what the pass came to
        raise AssertionError("unreachable: the last attempt returns or raises")

    # --- what came of it ---------------------------------------------------------------------------------------------

    def _succeeded(self, result: PassResult, trigger: Trigger, seconds: float) -> None:
        for watcher in self._watchers:
            watcher.saw(result)
        outcome = "suspended" if result.suspended else "applied" if result.wrote else "unchanged"
        self._metrics.passes.labels(outcome).inc()
        self._metrics.last_pass.set(self._clock().timestamp())
        self._metrics.pass_seconds.labels(outcome).observe(seconds)
        self._metrics.policies.labels("live").set(result.live.count)
        self._metrics.policies.labels("held").set(len(result.held))
        self._metrics.blocked_deletions.set(len(result.ruling.blocked))
        self._metrics.foreign_keys.set(len(result.foreign))
        if not result.wrote:
            return
        if self._journal:
            self._journal.applied(result, trigger)
        self._metrics.last_applied.set(self._clock().timestamp())
        self._metrics.drift_healed.inc(len(result.plan.drifted))
        self._metrics.stages(trigger.seen_at, result.stages)
        log.info("applied", extra={"commit": result.commit, "trigger": trigger.kind, "policies": _counts(result)})
        for change in result.plan.drifted:
            log.warning("hand edit healed", extra={"policy": change.policy})

    def _failed(self, error: RegopsError, trigger: Trigger, seconds: float) -> None:
        # A stalled pass is looked at again by the ordinary poll: only a new commit or a person can help.
        self._failures = 0 if isinstance(error, StalledError) else self._failures + 1
        # Where neither somebody told of a change nor a head was seen, there may be nothing that waits.
        if self._owed is not None or trigger.kind in _TOLD or error.stage != "fetch":
            self._owed = trigger
        self._reconciler.invalidate()
        self._metrics.passes.labels(error.outcome).inc()
        self._metrics.pass_seconds.labels(error.outcome).observe(seconds)
        self._metrics.failures.labels(error.reason).inc()
        if self._journal:
            self._journal.failed(error, trigger)
        level = logging.INFO if self._failures > 1 else logging.WARNING
        log.log(level, "pass failed", extra={"reason": error.reason, "error": str(error), "trigger": trigger.kind})

    async def _publish(self, leadership: Leading, record: StatusRecord) -> None:
        now = rfc3339(self._clock())
        notices = self._recorder.notices() if self._recorder else ()
        conditions = carry_over((*record.conditions, *notices), self._status.record.conditions, now)
        true = {each.type for each in conditions if each.status == "True"}
        self._metrics.ready.set(READY in true)
        for kind in CONDITIONS:
            self._metrics.conditions.labels(kind).set(kind in true)
        await self._status.publish(leadership.fence, replace(record, conditions=conditions), now)

    def _record(self, result: PassResult, trigger: Trigger) -> StatusRecord:
        former = self._status.record
        rewritten = result.rewritten or (
            any(condition.type == HISTORY_REWRITTEN for condition in former.conditions)
            and former.last_attempted_revision == result.commit
        )
        blocked = set(result.ruling.blocked)
        waiting = {name for name, held in result.held.items() if held.reason == PLATFORM_PENDING}
        found = Findings(
            revision=f"{self._git.branch}@sha1:{result.commit}",
            height=result.height,
            held=tuple(sorted(name for name in result.held if name not in blocked | waiting)),
            blocked=len(blocked),
            block_reason=result.ruling.reason,
            block_message=result.ruling.message,
            commit=result.commit,
            drifted=len(result.plan.drifted) if result.suspended else 0,
            rewritten=rewritten,
            suspended=result.suspended,
            pending=_pending(result),
        )
        return replace(
            former,
            conditions=after_pass(found, former.conditions),
            last_attempted_revision=result.commit,
            last_handled_reconcile_at=result.handled or former.last_handled_reconcile_at,
            blocked_deletions=tuple(result.ruling.blocked),
            ignored_files=result.tree.ignored,
            foreign_keys=result.foreign,
            warnings=self._warnings(result) if result.stages else former.warnings,
            last_apply=self._last_apply(result, trigger) if result.wrote else former.last_apply,
        )

    def _warnings(self, result: PassResult) -> tuple[str, ...]:
        found = tuple(str(warning) for warning in result.resolution.warnings)
        if result.tree.found or result.tree.invalid:
            return found
        return (f"{self._git.path}: no such folder in this commit; add it, or correct git.path", *found)

    def _failure_record(self, error: RegopsError, asked: str | None) -> StatusRecord:
        former = self._status.record
        conditions = after_failure(
            error.reason,
            str(error),
            fetching=error.stage == "fetch",
            stalled=isinstance(error, StalledError),
            before=former.conditions,
        )
        handled = asked or former.last_handled_reconcile_at
        return replace(former, conditions=conditions, last_handled_reconcile_at=handled)

    def _last_apply(self, result: PassResult, trigger: Trigger) -> dict[str, Any]:
        seen = rfc3339(trigger.seen_at)
        return {
            "commit": result.commit,
            "trigger": str(trigger.kind),
            "seen_at": seen,
            **result.stages,
            **_counts(result),
            "digest": result.live.applied.digest if result.live.applied else None,
            "renewed": result.before == result.commit and not result.plan.changes,
        }


def again(owed: Trigger, trigger: Trigger) -> Trigger:
    """The look that follows a failed one: what it brings was seen when the failed one was triggered, and belongs to
    that trace. So an outage counts in the time that a change took."""
    kind = owed.kind if trigger.kind is Kind.POLL else trigger.kind
    return replace(trigger, kind=kind, seen_at=min(owed.seen_at, trigger.seen_at), trace=owed.trace or trigger.trace)


def poll_of(git: GitSettings, hooked_at: float | None, now: float) -> float:
    """Seconds between two polls; ``hooked_at`` is when a webhook came last, on the clock of ``now``."""
    if hooked_at is None or now - hooked_at > HOOKS_TRUSTED:
        return git.poll_interval
    return max(git.poll_interval, git.hooked_poll_interval)


def next_look(failures: int, poll: float, settings: LoopSettings) -> float:
    """Seconds until the next look when nothing triggers one: the poll's, or after ``failures`` in a row a wait that
    doubles, up to the longest one, and never becomes longer than the poll's. Jitter keeps replicas out of step."""
    if not failures:
        return poll * random.uniform(0.9, 1.1)  # noqa: S311 jitter is no secret
    most = min(settings.backoff_max, max(settings.backoff_min, poll))
    longest: float = min(most, settings.backoff_min * 2 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 the same


def _pending(result: PassResult) -> str:
    pending = result.resolution.pending
    if pending is None:
        return ""
    what = "the changed platform" if pending.platform else "the deletion of the platform"
    return f"{what} goes live once the {pending.of:,} projects that it concerns are known to compile; others go on"


def _counts(result: PassResult) -> dict[str, int]:
    return {
        "created": len(result.plan.of(Operation.CREATE)),
        "updated": len(result.plan.of(Operation.UPDATE)),
        "deleted": len(result.plan.of(Operation.DELETE)),
        "held": len(result.held),
    }
