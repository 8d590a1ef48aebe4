"""What an entry of the log of passes says of a pass: what it did, and who made it, as Git knows it."""

from __future__ import annotations

import logging
from dataclasses import replace

from reconciler.core.errors import RegopsError
from reconciler.core.passes import MOST_CHANGES, MOST_COMMITS, PassChange, PassCommit, PassRecord
from reconciler.core.plan import Cause, Change, Operation
from reconciler.core.ports import Source
from reconciler.reconcile import PassResult

log = logging.getLogger(__name__)


def entry_of(result: PassResult, begun: PassRecord) -> PassRecord | None:
    """The entry of a pass that has written, as far as it is known without Git; ``None`` for one that only renewed what
    was there."""
    moved = result.before != result.commit
    if not (moved or result.plan.changes or dict(result.held) != dict(result.held_before)):
        return None
    updates = [each for each in result.plan.of(Operation.UPDATE) if each.cause is not Cause.DRIFT]
    return replace(
        begun,
        commit=result.commit,
        before=result.before,
        rewritten=result.rewritten,
        fetched_at=result.stages.get("fetched_at"),
        validated_at=result.stages.get("validated_at"),
        applied_at=result.stages.get("applied_at"),
        created=len(result.plan.of(Operation.CREATE)),
        updated=len(updates),
        deleted=len(result.plan.of(Operation.DELETE)),
        healed=len(result.plan.drifted),
        held=len(result.held),
        holds=tuple(sorted(result.held)[:MOST_CHANGES]),
        digest=result.live.applied.digest if result.live.applied else None,
        confirmed_by=_confirmed_by(result),
    )


def _confirmed_by(result: PassResult) -> str | None:
    deleted = {change.policy for change in result.plan.of(Operation.DELETE)}
    confirmed = result.confirmed
    return confirmed.by if confirmed is not None and not deleted.isdisjoint(confirmed.deletions) else None


async def told(source: Source, record: PassRecord, result: PassResult) -> PassRecord:
    """The entry with who made what. While the mirror is away, what is known without it."""
    try:
        commits, more = await _commits(source, result)
        changes = [await _change(source, change, result) for change in result.plan.changes[:MOST_CHANGES]]
    except RegopsError as error:
        log.warning("log of passes without names", extra={"reason": error.reason, "error": str(error)})
        return record
    return replace(
        record,
        changes=tuple(changes),
        changes_more=max(0, len(result.plan.changes) - MOST_CHANGES),
        commits=tuple(commits),
        commits_more=more,
    )


async def _commits(source: Source, result: PassResult) -> tuple[list[PassCommit], int]:
    if result.before == result.commit:
        return [], 0
    line = [result.commit]
    if result.before is not None and not result.rewritten:
        line = list(await source.line(result.commit, {result.before})) or line
    infos = [await source.info(commit) for commit in reversed(line[-MOST_COMMITS:])]
    found = [PassCommit(each.commit, each.author, each.committed_at, each.subject) for each in infos]
    return found, max(0, len(line) - MOST_COMMITS)


async def _change(source: Source, change: Change, result: PassResult) -> PassChange:
    if change.target is None:
        info = await source.last_change(result.commit, change.policy)
        return PassChange(change.policy, "delete", info.commit, info.author)
    live = result.live.policies.get(change.policy)
    meta = live.meta if live else None
    operation = "heal" if change.cause is Cause.DRIFT else str(change.operation)
    return PassChange(change.policy, operation, meta.commit if meta else result.commit, meta.actor if meta else "")
