"""The record of versions, written beside the pass: Git's first-parent history and what passes made of it → MongoDB.

Whatever happens to the record, no pass waits for it. What is written follows from the branch, the ledger and what the
pass saw, so that every step may be repeated, by this recorder or another: claim the commits' places in the ledger,
write their versions, delete what is too old, move the bookmark. A recorder that dies is followed by one that goes on at
the bookmark; only what the passes told is lost with it, and inferred then (see `reconciler.core.versions`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, NoReturn

from reconciler.audit import timestamp
from reconciler.core.conditions import RECORD_DELAYED, Condition
from reconciler.core.errors import COMMIT_NOT_FOUND, RegopsError, TransientError
from reconciler.core.model import PolicyName
from reconciler.core.plan import Cause
from reconciler.core.ports import Source
from reconciler.core.record_ports import VersionStore
from reconciler.core.versions import Hold, Retention, Seen
from reconciler.metrics import RecorderMetrics
from reconciler.reconcile import PassResult
from reconciler.record_writer import RecordWriter
from reconciler.settings import LoopSettings

log = logging.getLogger(__name__)

PASSES_LIMIT: Final = 10_000
"""Passes that wait in memory while MongoDB is away; of older ones the states are inferred."""
WEIGHT_LIMIT: Final = 200_000
"""Policies, changed or held, that all of them may name: some 100 MB."""
CHECK_SECONDS: Final = 60.0
"""How often a recorder with nothing to do looks whether the record is still there."""
CATCHING_UP: Final = "CatchingUp"
"""Reason of `RecordDelayed` where nothing fails: there is much to write."""
DELAYED_AFTER: Final = 30.0
"""Seconds after which a pass that is not recorded is worth a notice."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    seen: Seen
    since: datetime
    weight: int


class Recorder:
    """Records what `saw` is told. One at a time may `run` or `catch_up`."""

    def __init__(
        self,
        source: Source,
        store: VersionStore,
        *,
        keep: Retention,
        metrics: RecorderMetrics,
        settings: LoopSettings,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._check_seconds = check_seconds
        self._writer = RecordWriter(source, store, keep=keep, metrics=metrics)
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._weight = 0
        self._filled = asyncio.Event()
        self._last: Seen | None = None
        self._failure: RegopsError | None = None

    def saw(self, result: PassResult) -> None:
        """A pass has ended well. Nothing is noted of one that applied nothing, or only looked."""
        if result.suspended:
            return
        seen = seen_of(result, timestamp(self._clock()))
        if self._last is not None and seen.commit == self._last.commit and not seen.changed:
            return
        self.note(seen)

    def note(self, seen: Seen) -> None:
        """Record this when its turn comes."""
        weight = 1 + len(seen.changed) + len(seen.held)
        if self._last is not None and seen.held == self._last.held:  # the same policies, held for hours
            seen, weight = replace(seen, held=self._last.held), weight - len(seen.held)
        self._last = seen
        self._waiting.append(_Waiting(seen, self._clock(), weight))
        self._weight += weight
        while len(self._waiting) > 1 and (len(self._waiting) > PASSES_LIMIT or self._weight > WEIGHT_LIMIT):
            self._forget()
            self._metrics.lost.inc()
        self._metrics.pending.set(len(self._waiting))
        self._filled.set()

    def _forget(self) -> None:
        self._weight -= self._waiting.popleft().weight

    def notices(self) -> Sequence[Condition]:
        """`RecordDelayed` while passes wait for too long, with what failed last, or because there is so much to do."""
        failure, lag = self._failure, self._lag()
        self._metrics.lag.set(lag)
        if lag < DELAYED_AFTER:
            return ()
        words = f"{len(self._waiting)} passes wait" if failure is None else str(failure)
        message = f"versions are not recorded since {timestamp(self._waiting[0].since)}: {words}"
        return (Condition(RECORD_DELAYED, "True", failure.reason if failure else CATCHING_UP, message),)

    async def run(self) -> NoReturn:
        """Record as it comes, until cancelled. What fails is tried again with growing pauses."""
        try:
            await self._record_for_ever()
        finally:
            self._metrics.pending.set(0)
            self._metrics.lag.set(0)

    async def _record_for_ever(self) -> NoReturn:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._check_seconds):
                    await self._filled.wait()
            except TimeoutError:
                log.debug("record checked")
            try:
                await self._check()
                await self.catch_up()
            except RegopsError as error:
                failures += 1
                self._failed(error, failures)
            except Exception as error:  # a defect here must not end the process that applies policies
                failures += 1
                log.exception("record failed unexpectedly")
                self._failed(RegopsError(f"{type(error).__name__}: {error}", reason="InternalError"), failures)
            else:
                failures = 0
                continue
            pause = self._settings.backoff_min * 2 ** min(failures - 1, 16)
            await asyncio.sleep(min(pause, self._settings.backoff_max))

    async def catch_up(self) -> None:
        """Record every pass that waits, in order. Raises what the source and the store raise; what was recorded until
        then stays, and the next call goes on from there."""
        while self._waiting:
            waiting = self._waiting[0]
            await self._record(waiting.seen)
            if self._waiting and self._waiting[0] is waiting:
                self._forget()
            self._failure = None
            self._metrics.seconds.observe(max(0.0, (self._clock() - waiting.since).total_seconds()))
            self._metrics.pending.set(len(self._waiting))
            self._metrics.lag.set(self._lag())
        self._filled.clear()

    async def _check(self) -> None:
        """Record anew what was recorded, when somebody has emptied the database or restored an older one: else nobody
        would before the next commit."""
        if self._waiting or self._last is None:
            return
        if await self._writer.lost():
            log.warning("record was emptied or restored")
            self.note(replace(self._last, previous=self._last.commit, changed={}))

    async def _record(self, seen: Seen) -> None:
        if await self._writer.write(seen):
            return
        if len(self._waiting) == 1:  # a mirror that is being replaced may have it again; a newer pass says more
            raise TransientError(f"the mirror has no commit {seen.commit}", reason=COMMIT_NOT_FOUND)
        log.warning("pass not recorded: its commit is gone", extra={"commit": seen.commit})
        self._metrics.lost.inc()

    def _lag(self) -> float:
        if not self._waiting:
            return 0.0
        return max(0.0, (self._clock() - self._waiting[0].since).total_seconds())

    def _failed(self, error: RegopsError, failures: int) -> None:
        self._failure = error
        self._metrics.failures.labels(error.reason).inc()
        self._metrics.lag.set(self._lag())
        level = logging.INFO if failures > 1 else logging.WARNING
        log.log(level, "versions not recorded", extra={"reason": error.reason, "error": str(error)})


def seen_of(result: PassResult, now: str) -> Seen:
    """What the record needs of a pass; hand edits that were healed are no versions."""
    changed = {
        change.policy: change.target.blobs.etag if change.target else None
        for change in (result.plan.changes if result.wrote else ())
        if change.cause is not Cause.DRIFT
    }
    held = {PolicyName(name): Hold(each.reason, _first(each.errors)) for name, each in result.held.items()}
    return Seen(result.commit, result.before, result.stages.get("applied_at", now), changed, held)


def _first(errors: Sequence[object]) -> str:
    words: Iterator[str] = (str(error) for error in errors)
    return next(words, "")
