"""The audit trail in MongoDB has every commit: what was lost on the way is written again from the commits themselves.

Events get lost where a server dies with a queue that lies on no disk, where a queue overflows, and where somebody
empties the collection. Of a commit all is known: its trailers for those of the API, its author for others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

from reconciler.audit import AuditEvent
from reconciler.core.errors import RegopsError
from reconciler.core.ports import BranchCommit, Source
from reconciler.core.record_ports import AuditStore
from reconciler.edits import ACTOR_TRAILER, REQUEST_TRAILER
from reconciler.metrics import ProjectionMetrics
from reconciler.pass_audit import REPOSITORY, push_events
from reconciler.reconcile import PassResult

log = logging.getLogger(__name__)

GRACE: Final = 30.0
"""Seconds for which a commit's own event may be on its way. Longer than `AuditProjection` pauses."""
CHECK_SECONDS: Final = 600.0
"""How often the trail is looked at when nothing happens."""
COMMITS: Final = 10_000
"""How many commits back a trail is written anew, at most."""
_BATCH: Final = 256


class CommitAudit:
    """Follows the branch. One at a time may `run`. ``days``: how long events are kept."""

    def __init__(
        self,
        source: Source,
        store: AuditStore,
        *,
        days: int,
        metrics: ProjectionMetrics,
        grace: float = GRACE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._source = source
        self._store = store
        self._days = days
        self._metrics = metrics
        self._grace = grace
        self._clock = clock
        self._head: str | None = None
        self._moved = asyncio.Event()

    def saw(self, result: PassResult) -> None:
        """A pass has ended well. Neither waits nor raises."""
        if result.commit != self._head:
            self._head = result.commit
            self._moved.set()

    async def run(self) -> NoReturn:
        """Check when the branch has moved, and now and then, until cancelled."""
        away = False
        while True:
            try:
                async with asyncio.timeout(self._grace if away else CHECK_SECONDS):
                    await self._moved.wait()
            except TimeoutError:
                log.debug("audit trail checked")
            self._moved.clear()
            head = self._head
            await asyncio.sleep(self._grace)  # also after an outage: queues empty themselves meanwhile
            if head is None:
                continue
            try:
                await self.check(head)
                away = False
            except RegopsError as error:
                away = True
                log.info("audit trail not checked", extra={"reason": error.reason, "error": str(error)})

    async def check(self, head: str) -> int:
        """Write the events that are missing of the commits up to ``head``; how many. Raises what Git and the store
        raise, and goes on from there the next time."""
        verified = await self._store.verified()
        if verified == head:
            return 0
        line = await self._source.line(head, {verified} if verified else ())
        oldest = self._clock() - timedelta(days=self._days)
        written = 0
        for start in range(max(0, len(line) - COMMITS), len(line), _BATCH):
            part = line[start : start + _BATCH]
            commits = await self._source.branch_commits(part)
            recent = {name: each for name, each in commits.items() if _at(each) > oldest}
            written += await self._write(part, recent)
            await self._store.verify(part[-1])
        return written

    async def _write(self, names: Sequence[str], commits: Mapping[str, BranchCommit]) -> int:
        known = await self._store.known(list(commits))
        missing = [event for name in names if name in commits and name not in known for event in _events(commits[name])]
        for start in range(0, len(missing), _BATCH):
            await self._store.append([asdict(event) for event in missing[start : start + _BATCH]])
        self._metrics.recovered.inc(len(missing))
        return len(missing)


def _events(commit: BranchCommit) -> list[AuditEvent]:
    """The events of one commit, as far as it tells them."""
    trailers, info = commit.trailers, commit.info
    if REQUEST_TRAILER not in trailers:
        return push_events(commit, recovered=True)
    policy = next(iter(commit.changes), None)
    blobs = commit.changes[policy].blobs if policy else None
    return [
        AuditEvent(
            actor=trailers.get(ACTOR_TRAILER, info.author),
            action="write",
            resource=policy or REPOSITORY,
            result="committed",
            request_id=trailers[REQUEST_TRAILER],
            etag_after=blobs.etag if blobs else None,
            commit=info.commit,
            detail=info.subject,
            recovered=True,
            id=f"write-{info.commit[:16]}",
            ts=f"{info.committed_at[:-1]}.000Z",
        )
    ]


def _at(commit: BranchCommit) -> datetime:
    return datetime.fromisoformat(commit.info.committed_at)
