"""What the reconciler did, for the audit trail, and who pushed what past the API.

Beside the pass, never in its way. A server that dies between the pass and its events loses those of that pass; of the
commits among them the trail in MongoDB gets events all the same: see `reconciler.commit_audit`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NoReturn

from reconciler.aside import aside
from reconciler.audit import AuditEvent, AuditSink
from reconciler.core.errors import RegopsError
from reconciler.core.model import DATA_FILE, REGO_FILE, CommitInfo, PolicyName
from reconciler.core.plan import Cause, Change, Operation
from reconciler.core.ports import BranchCommit, Source
from reconciler.edits import REQUEST_TRAILER
from reconciler.reconcile import PassResult

log = logging.getLogger(__name__)

MOST: Final = 100
"""Events of one kind that one pass, or one commit, brings; where there would be more, one event counts them."""
REPOSITORY: Final = "repository"
"""Resource of events that are about no single policy."""
RECONCILER: Final = "reconciler"
"""Actor of what nobody else has done."""
_WAITING: Final = 1000
_RETRY_SECONDS: Final = 5.0
_RESULTS: Final = {Operation.CREATE: "created", Operation.UPDATE: "updated", Operation.DELETE: "deleted"}


class PassAudit:
    """Writes the events of what `saw` is told. One at a time may `run`."""

    def __init__(self, source: Source, sink: AuditSink, *, counted: Callable[[AuditEvent], None]) -> None:
        """``counted`` is called with each event that was written."""
        self._source = source
        self._sink = sink
        self._counted = counted
        self._waiting: deque[PassResult] = deque()
        self._ready: deque[AuditEvent] = deque()
        self._filled = asyncio.Event()

    def saw(self, result: PassResult) -> None:
        """A pass has ended well. Neither waits nor raises."""
        if not result.wrote:
            return
        if len(self._waiting) >= _WAITING:
            self._waiting.popleft()
            log.warning("audit events of a pass given up: the log could not be written for too long")
        self._waiting.append(result)
        self._filled.set()

    async def run(self) -> NoReturn:
        """Write events until cancelled; while Git or the log does not serve, they wait."""
        while True:
            await self._filled.wait()
            try:
                await self.flush()
            except RegopsError as error:
                log.warning("audit events of a pass wait", extra={"reason": error.reason, "error": str(error)})
                await asyncio.sleep(_RETRY_SECONDS)

    async def flush(self) -> None:
        """Write what waits. Raises what Git and the log raise; nothing is lost or repeated then."""
        while self._waiting or self._ready:
            if not self._ready:
                self._ready.extend(await self._events(self._waiting[0]))
                self._waiting.popleft()
            while self._ready:
                self._sink.emit(self._ready[0])
                self._counted(self._ready.popleft())
                await asyncio.sleep(0)  # each is flushed to disk
        self._filled.clear()

    async def _events(self, result: PassResult) -> list[AuditEvent]:
        pushed = await self._pushed(result)
        deleted = {
            change.policy: await self._source.last_change(result.commit, change.policy)
            for change in result.plan.of(Operation.DELETE)[:MOST]
        }
        changes = await aside(len(result.plan.changes), _changes, result, deleted)
        return [*pushed, *_bounded(changes, "apply"), *_bounded(list(_held(result)), "hold")]

    async def _pushed(self, result: PassResult) -> list[AuditEvent]:
        """The commits since the last pass that did not come by the API."""
        if result.before is None or result.before == result.commit:
            return []
        if result.rewritten:
            said = f"the branch does not contain {result.before} any more, which was applied before"
            info = await self._source.info(result.commit)
            return [_event(info.author, "rewrite", REPOSITORY, "followed", commit=result.commit, detail=said)]
        line = (await self._source.line(result.commit, {result.before}))[-MOST:]
        commits = await self._source.branch_commits(line)
        return [event for name in line if name in commits for event in push_events(commits[name])]


def push_events(commit: BranchCommit, *, recovered: bool = False) -> list[AuditEvent]:
    """One event for each policy that somebody's push of this commit changed; none for a commit of the API."""
    if REQUEST_TRAILER in commit.trailers:
        return []
    info, told = commit.info, {"ts": f"{commit.info.committed_at[:-1]}.000Z"} if recovered else {}
    by = f"; committed by {commit.committer}" if commit.committer not in {"", info.author} else ""
    names = sorted(commit.changes)
    events = [
        _event(
            info.author,
            "push",
            name,
            "deleted" if commit.changes[name].deleted else "invalid" if commit.changes[name].fault else "pushed",
            commit=info.commit,
            etag_after=blobs.etag if (blobs := commit.changes[name].blobs) else None,
            detail=f"{info.subject}{by}",
            id=f"push-{info.commit[:16]}",
            recovered=recovered,
            **told,
        )
        for name in names[:MOST]
    ]
    if len(names) in range(1, MOST + 1):
        return events
    said = f"{info.subject}{by}; {len(names)} policies" if names else f"{info.subject}{by}; no policy"
    return [
        _event(
            info.author,
            "push",
            REPOSITORY,
            "pushed",
            commit=info.commit,
            detail=said,
            id=f"push-{info.commit[:16]}",
            recovered=recovered,
            **told,
        )
    ]


def _changes(result: PassResult, deleted: Mapping[PolicyName, CommitInfo]) -> list[AuditEvent]:
    return [_change(change, result, deleted.get(change.policy)) for change in result.plan.changes]


def _change(change: Change, result: PassResult, deleted: CommitInfo | None) -> AuditEvent:
    """What the pass did to one policy in etcd."""
    before = change.live.etag
    if change.cause is Cause.DRIFT:
        return _event(
            RECONCILER, "heal", change.policy, "healed", etag_before=before, etag_after=before, detail=_drift(change)
        )
    if change.target is None:
        author, commit = (deleted.author, deleted.commit) if deleted else (RECONCILER, result.commit)
        return _event(author, "prune", change.policy, "deleted", commit=commit, etag_before=before)
    live = result.live.policies.get(change.policy)
    meta = live.meta if live else None
    return _event(
        meta.actor if meta else RECONCILER,
        "apply",
        change.policy,
        _RESULTS[change.operation],
        commit=meta.commit if meta else result.commit,
        etag_before=before,
        etag_after=change.target.blobs.etag,
    )


def _drift(change: Change) -> str:
    """What somebody had done to the keys by hand."""
    blobs = change.target.blobs if change.target else None
    wanted = {REGO_FILE} if blobs is None or blobs.data is None else {REGO_FILE, DATA_FILE}
    said = []
    for file in (REGO_FILE, DATA_FILE):
        if file not in change.live.files:
            said += [f"{file} was deleted"] if file in wanted else []
        elif file not in wanted:
            said.append(f"{file} was added")
        elif change.live.files[file] != change.live.meta_revision:
            said.append(f"{file} was edited")
    return f"by hand in etcd: {', '.join(said) or 'its meta was edited'}"


def _held(result: PassResult) -> Iterator[AuditEvent]:
    """Holds that are new, and those that have ended without a word of their own."""
    for name, held in result.held.items():
        former = result.held_before.get(name)
        if former is not None and (former.commit, former.reason) == (held.commit, held.reason):
            continue
        action, said = ("prune", "blocked") if held.reason == "PruneBlocked" else ("hold", "held")
        first = f": {held.errors[0]}" if held.errors else ""
        yield _event(RECONCILER, action, name, said, commit=held.commit, detail=f"{held.reason}{first}")
    changed = {change.policy for change in result.plan.changes}
    for name, held in result.held_before.items():
        if name not in result.held and name not in changed:
            yield _event(RECONCILER, "hold", name, "released", commit=result.commit, detail=held.reason)


def _bounded(events: Sequence[AuditEvent], action: str) -> Sequence[AuditEvent]:
    if len(events) <= MOST:
        return events
    counts: dict[str, int] = {}
    for event in events:
        counts[event.result] = counts.get(event.result, 0) + 1
    said = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    commit = events[0].commit if len({event.commit for event in events}) == 1 else None
    return [_event(RECONCILER, action, REPOSITORY, "done", commit=commit, detail=f"policies: {said}")]


def _event(actor: str, action: str, resource: str, result: str, **more: object) -> AuditEvent:
    return AuditEvent(actor=actor, action=action, resource=resource, result=result, request_id="", **more)  # type: ignore[arg-type]
