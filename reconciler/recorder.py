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
from collections.abc import AsyncIterator, Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Final, NoReturn

from reconciler.audit import timestamp
from reconciler.core.conditions import RECORD_DELAYED, Condition
from reconciler.core.errors import COMMIT_NOT_FOUND, RegopsError, TransientError
from reconciler.core.ledger import PAGE_COMMITS, Entry, Ledger
from reconciler.core.model import PolicyName
from reconciler.core.plan import Cause
from reconciler.core.ports import BranchCommit, Source
from reconciler.core.record_ports import Bookmark, VersionStore
from reconciler.core.versions import Hold, Retention, Seen, StoredVersion, Version, judge, survivors
from reconciler.metrics import RecorderMetrics
from reconciler.reconcile import PassResult
from reconciler.settings import LoopSettings

log = logging.getLogger(__name__)

PASSES_LIMIT: Final = 10_000
"""Passes that wait in memory while MongoDB is away; of older ones the states are inferred."""
WEIGHT_LIMIT: Final = 200_000
"""Policies, changed or held, that all of them may name: some 100 MB."""
CHECK_SECONDS: Final = 60.0
"""How often a recorder with nothing to do looks whether the record is still there."""
DELAYED_AFTER: Final = 30.0
"""Seconds after which a pass that is not recorded is worth a notice."""
_BATCH: Final = 256
_BATCH_BYTES: Final = 4 * 1024 * 1024
_CONTENT_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a version above which its text is not even read: only a held one can be so large."""
_LOOK_BACK: Final = 100
"""Versions of a policy among which one is looked for that came back."""
_COMMITS_KEPT: Final = 20_000


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
        self._source = source
        self._store = store
        self._keep = keep
        self._metrics = metrics
        self._settings = settings
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._weight = 0
        self._filled = asyncio.Event()
        self._last: Seen | None = None
        self._failure: RegopsError | None = None
        self._generation = ""
        self._position = 0
        self._ledger = Ledger()
        self._commits: dict[str, BranchCommit] = {}

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
        """`RecordDelayed` while passes wait for too long."""
        failure, lag = self._failure, self._lag()
        self._metrics.lag.set(lag)
        if failure is None or lag < DELAYED_AFTER:
            return ()
        message = f"versions are not recorded since {timestamp(self._waiting[0].since)}: {failure}"
        return (Condition(RECORD_DELAYED, "True", failure.reason, message),)

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
            try:
                await self._record(waiting.seen)
            except BaseException:
                self._position = 0  # what another process did meanwhile is read before anything is written again
                raise
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
        if self._waiting or self._last is None or not self._position:
            return
        mark = await self._store.bookmark()
        if mark.generation != self._generation or mark.position < self._position:
            log.warning("record was emptied or restored", extra={"position": mark.position})
            self.note(replace(self._last, previous=self._last.commit, changed={}))

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

    # --- one pass ----------------------------------------------------------------------------------------------------

    async def _record(self, seen: Seen) -> None:
        mark = await self._synchronized()
        if seen.previous is not None:  # it was applied, by whoever did not live to record it
            await self._claim(mark.generation, seen.previous)
        if not await self._claim(mark.generation, seen.commit):
            if len(self._waiting) == 1:
                raise TransientError(f"the mirror has no commit {seen.commit}", reason=COMMIT_NOT_FOUND)
            log.warning("pass not recorded: its commit is gone", extra={"commit": seen.commit})
            self._metrics.lost.inc()
            return
        ledger = self._ledger
        until = ledger.positions[seen.commit]
        last = max(until, ledger.positions.get(seen.previous or "", 0))
        # What the pass tells is told, also where another recorder has moved the bookmark past it.
        told, left = await self._told(seen)
        line = told.union(await self._line(seen.commit, ledger.before(mark.position)))
        first = min([mark.position, *(ledger.positions[commit] for commit in told | left)])
        entries = [
            (position, entry)
            for position, entry in ledger.between(first, ledger.end)
            if position >= mark.position or entry.commit in line or entry.commit in left
        ]
        known = await self._known(entries)
        for position, entry in ledger.between(last + 1, ledger.end):  # of a recorder that gave them places and died
            if entry.commit not in known:
                break
            last = position
        entries = [each for each in entries if each[0] <= last]
        versions = judge(entries, known, seen, line=line, told=told)
        new = [version for version in versions if version.position >= mark.position]
        async for batch in self._batches(survivors(new, self._keep)):
            self._metrics.versions.inc(await self._store.add(mark.generation, batch))
        async for batch in self._batches([version for version in versions if version.position < mark.position]):
            await self._store.tell(mark.generation, batch)
        made_live = {version.policy for version in new if version.applied_at}
        if settled := {policy: etag for policy, etag in seen.changed.items() if policy not in made_live}:
            absent = await self._store.settle(settled, at=seen.at, until=until)
            async for batch in self._batches(await self._brought_back(absent, seen, until)):
                await self._store.add(mark.generation, batch)
        if touched := {version.policy for version in versions} | settled.keys():
            self._metrics.pruned.inc(await self._store.prune(self._keep, touched))
        if not await self._store.advance(mark.generation, last + 1):
            raise TransientError("the record was emptied meanwhile", reason="RecordUnavailable")
        self._position = max(mark.position, last + 1)
        self._metrics.commits.inc(max(0, last + 1 - mark.position))

    async def _told(self, seen: Seen) -> tuple[frozenset[str], frozenset[str]]:
        """The commits between what was applied before and what the pass applied; and those that a rewritten branch has
        left behind, which another recorder may not have."""
        if seen.previous is None or seen.previous not in self._ledger.positions:
            return frozenset(), frozenset()
        line = frozenset(ordered := await self._line(seen.commit, {seen.previous}))
        if not ordered or await self._source.parent(ordered[0]) == seen.previous:
            return line, frozenset()
        former, place = frozenset(await self._line(seen.previous)), self._ledger.positions[seen.previous]
        if not former:
            return frozenset(commit for commit in line if self._ledger.positions[commit] > place), former
        return line - former, former - line

    async def _line(self, head: str, known: Container[str] = ()) -> Sequence[str]:
        """The first-parent history of ``head``, as far as what is known; none when the mirror has it no longer: another
        recorder has given it its place, and this one can tell nothing of it."""
        try:
            return await self._source.line(head, known)
        except TransientError as error:
            if error.reason != COMMIT_NOT_FOUND:
                raise
            return ()

    async def _synchronized(self) -> Bookmark:
        """The bookmark, with the ledger as far as anybody has written it."""
        mark = await self._store.bookmark()
        if mark.generation != self._generation or mark.position < self._position or not self._position:
            # A new record, a restored one, or the first look: nothing that was remembered counts.
            self._ledger = Ledger()
        if not await self._follow(mark):
            self._ledger = Ledger()  # what was remembered may be of a time before somebody restored the database
            if not await self._follow(mark):
                # Every number after a page that is missing is doubtful.
                await self._store.clear(mark.generation)
                message = "pages of the record are missing; it is begun anew from Git"
                raise TransientError(message, reason="RecordDamaged")
        if mark.generation != self._generation:
            # A recorder that died may have written versions and not deleted the ones too old.
            self._metrics.pruned.inc(await self._store.prune(self._keep))
        self._generation, self._position = mark.generation, mark.position
        return mark

    async def _follow(self, mark: Bookmark) -> bool:
        """Read the pages that the ledger lacks. False when some are missing, or its last one is not the record's."""
        ledger, last = self._ledger, self._ledger.last
        pages = await self._store.pages(mark.generation, last.first if last else 1)
        if last is not None:
            if not pages or pages[0] != last:
                return False
            pages = pages[1:]
        while pages:
            for page in pages:
                if page.first != ledger.end:
                    return False
                ledger.add(page)
            pages = await self._store.pages(mark.generation, ledger.end)
        return mark.position <= ledger.end

    async def _claim(self, generation: str, head: str) -> bool:
        """Give every commit of the line to ``head`` its place in the ledger, or find the one that it has. False when
        nobody can: the branch has gone another way since, and a new clone of it does not have this commit."""
        while head not in self._ledger.positions:
            try:
                line = await self._source.line(head, self._ledger.positions)
            except TransientError as error:
                if error.reason != COMMIT_NOT_FOUND:
                    raise
                return False
            steps = iter(line)
            while part := list(islice(steps, PAGE_COMMITS)):
                if not await self._claim_part(generation, part):
                    break
        return True

    async def _claim_part(self, generation: str, part: Sequence[str]) -> bool:
        """Claim the places of these commits; false once another recorder was first: the line must be read again."""
        commits = await self._read(part)
        if missing := [commit for commit in part if commit not in commits]:
            raise TransientError(f"the mirror has no commit {missing[0]} any more", reason=COMMIT_NOT_FOUND)
        left = [commits[commit] for commit in part]
        while left:
            page = self._ledger.page(left)
            stored = await self._store.claim(generation, page)
            self._ledger.add(stored)
            if stored != page:
                return False
            del left[: len(page.entries)]
        return True

    async def _read(self, commits: Sequence[str]) -> Mapping[str, BranchCommit]:
        """What these commits changed; kept, since it is needed twice."""
        new = [commit for commit in commits if commit not in self._commits]
        if new:
            if len(self._commits) + len(new) > _COMMITS_KEPT:
                self._commits.clear()
                new = list(commits)
            self._commits |= await self._source.branch_commits(new)
        return self._commits

    async def _known(self, entries: Sequence[tuple[int, Entry]]) -> Mapping[str, BranchCommit]:
        names = [entry.commit for _, entry in entries]
        found: dict[str, BranchCommit] = {}
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            commits = await self._read(part)
            found |= {name: commits[name] for name in part if name in commits}
        self._commits.clear()
        return found

    async def _brought_back(self, policies: Collection[PolicyName], seen: Seen, until: int) -> Sequence[Version]:
        """Versions that a pass made live again after they were kept no longer: as Git and the ledger have them."""
        found: list[Version] = []
        for policy in policies:
            entries = [(n, entry) for n, entry in self._ledger.between(1, until) if policy in entry.numbers]
            for position, entry in islice(reversed(entries), _LOOK_BACK):
                commits = await self._source.branch_commits([entry.commit], policy)
                told = replace(seen, changed={policy: seen.changed[policy]})
                (version,) = judge([(position, entry)], commits, told, line=commits, told=commits)
                if version.applied_at:
                    found.append(version)
                    break
        return found

    async def _batches(self, versions: Sequence[Version]) -> AsyncIterator[Sequence[StoredVersion]]:
        """Versions with their texts, oldest first, so many at once as memory and a deadline bear."""
        batch: list[StoredVersion] = []
        size = 0
        for version in versions:
            stored = await self._with_content(version)
            batch.append(stored)
            size += stored.content.size if stored.content else 0
            if len(batch) >= _BATCH or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _with_content(self, version: Version) -> StoredVersion:
        if version.blobs is None or sum(await self._source.sizes(version.blobs)) > _CONTENT_LIMIT:
            return StoredVersion(version, None)
        return StoredVersion(version, await self._source.read(version.blobs))


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
