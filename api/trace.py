"""``GET /trace``: one commit's way: when it was pushed, seen, validated, applied, and enforced by each OPA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, Caller, may_read
from api.conditional import conditional
from api.passes import narrowed_pass
from api.policy_status import passes_known
from api.problems import ProblemError
from api.progress import Progress
from api.requests import authorized, policy_asked
from api.statusview import Observed, counted, narrowed_agents, revision
from api.trace_passes import Way, way_of
from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.model import PLATFORM, PolicyName
from reconciler.core.passes import PassRecord, between
from reconciler.core.ports import BranchCommit, PolicyChange, Source
from reconciler.core.records import Receipt
from reconciler.core.times import rfc3339

_INTERVALS: Final = 20_000
_CLOCKS: Final = timedelta(seconds=5)
"""How far an agent's clock may be behind the leader's."""
UNLOGGED: Final = "the log of passes does not reach back to the one that applied it: its stages are not known"
NO_RECORD: Final = (
    "no MongoDB is configured (mongo.uri): of an OPA that has moved on it is not known when it enforced this commit"
)
RECORD_AWAY: Final = "MongoDB is out of reach: of an OPA that has moved on it is not known when it enforced this commit"


async def trace(request: web.Request) -> web.Response:
    """Of ``?commit=`` (or its first digits), or of the newest commit that changed ``?policy=``."""
    unknown = sorted(request.query.keys() - {"commit", "policy"})
    if unknown or len(request.query) != 1:
        raise ProblemError(400, "validation_error", "give either ?commit= or ?policy=, and nothing else")
    policy = policy_asked(request)
    caller = await authorized(request, policy, Action.READ)
    seen = await request.app[keys.OBSERVER].look()
    source = request.app[keys.SOURCE]
    progress = request.app[keys.PROGRESS]
    await _caught_up(source, progress, seen)
    text = request.query.get("commit", "").lower()
    commit = await (_newest(source, seen, policy) if policy else _named(source, progress, text))
    facts = await _facts(request.app, seen, commit, lambda name: name == policy if policy else may_read(caller, name))
    changes = {name: each for name, each in facts.landed.changes.items() if may_read(caller, name)}
    if not changes and not may_read(caller, PLATFORM):
        raise _unknown(request.query.get("commit", commit))
    return conditional(request, _document(facts, changes, caller))


async def _caught_up(source: Source, progress: Progress, seen: Observed) -> None:
    """A replica that does not lead fetches only when it is asked for what it has not."""
    attempted = seen.record.last_attempted_revision if seen.record else None
    with contextlib.suppress(RegopsError):  # what is here is told all the same
        for head in (seen.applied.commit if seen.applied else None, attempted):
            if head is not None and not await _has(source, head):
                await progress.refreshed()
                return


async def _has(source: Source, commit: str) -> bool:
    """``False`` too while there is no mirror."""
    try:
        return await source.contains(commit, commit)
    except TransientError:
        return False


async def _named(source: Source, progress: Progress, text: str) -> str:
    found = await source.find(text)
    if found is None:
        await progress.refreshed()
        found = await source.find(text)
    if found is None:
        raise _unknown(text)
    return found


async def _newest(source: Source, seen: Observed, policy: PolicyName) -> str:
    record, applied = seen.record, seen.applied
    head = (record.last_attempted_revision if record else None) or (applied.commit if applied else None)
    try:
        return (await source.last_change(head or await source.fetch(), policy)).commit
    except StalledError as error:
        raise ProblemError(404, "not_found", f"there never was a policy {policy}") from error


def _unknown(text: str) -> ProblemError:
    message = f"the repository has no commit {text[:40]!r}, or none that changes a policy which you may read"
    return ProblemError(404, "not_found", message)


# --- facts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Facts:
    """Everything that the document is made of. ``held``: nothing of the commit is live; ``containing``: the commits
    that were looked at and contain it; ``proofs``: of each agent when its OPA first proved one of them, as far as
    that is recorded."""

    landed: BranchCommit
    branch: str
    in_branch: bool | None
    seen: Observed
    live: Mapping[PolicyName, str]
    applied: bool | None
    way: Way
    held: bool
    containing: frozenset[str]
    proofs: Mapping[str, datetime]
    missing: tuple[str, ...]


async def _facts(app: web.Application, seen: Observed, commit: str, wanted: Callable[[PolicyName], bool]) -> _Facts:
    """``wanted``: which of the policies that it changes are asked for."""
    source = app[keys.SOURCE]
    landed = (await source.branch_commits([commit])).get(commit)
    if landed is None:
        raise _unknown(commit)
    known: dict[str, bool] = {}

    async def contains(head: str | None) -> bool:
        if head in {None, "none"}:
            return False
        if head not in known:
            known[str(head)] = await source.contains(str(head), commit)
        return known[str(head)]

    applied = seen.applied is not None and await contains(seen.applied.commit)
    head = seen.record.last_attempted_revision if seen.record else None
    missing = []
    names = [name for name in landed.changes if wanted(name)]
    held = [name for name in names if _held_at(seen, name, landed.info.commit)]
    way = await way_of(await passes_known(app), landed.info.commit, names, held, contains) if applied else Way()
    if applied and way.done is None and (way.brought is None or len(held) < len(names)):
        missing.append(UNLOGGED)
    receipts = counted(seen, datetime.now(UTC))
    for receipt in receipts:
        await contains(receipt.enforced_revision)
    proofs, without = await _proofs(app, way.done, contains) if way.done else ({}, "")
    gone_on = {head for head, true in known.items() if true and way.done} - {way.done.commit if way.done else None}
    if without and gone_on & {each.enforced_revision for each in receipts}:
        missing.append(without)
    state = app[keys.MIRROR].state
    return _Facts(
        landed=landed,
        branch=app[keys.PLACE]["branch"],
        in_branch=applied or (await contains(head) if head else None),
        seen=seen,
        live={name: each.etag for name, each in state.policies.items()} if state else {},
        applied=applied if seen.applied is not None or seen.reachable else None,
        way=way,
        held=bool(names) and len(held) == len(names),
        containing=frozenset(head for head, true in known.items() if true),
        proofs=proofs,
        missing=tuple(missing),
    )


def _held_at(seen: Observed, name: PolicyName, commit: str) -> bool:
    held = seen.held.get(name)
    return held is not None and held.commit == commit


async def _proofs(app: web.Application, entry: PassRecord, contains: Any) -> tuple[dict[str, datetime], str]:
    """When each agent's OPA first proved a commit that contains this one, and what keeps that from being known."""
    store = app[keys.RECEIPTS]
    if store is None:
        return {}, NO_RECORD
    found: dict[str, datetime] = {}
    try:
        intervals = await store.since(datetime.fromisoformat(entry.applied_at or entry.at) - _CLOCKS, limit=_INTERVALS)
    except RegopsError:
        return {}, RECORD_AWAY
    applied_at = _time(entry.applied_at or entry.at)
    for each in intervals:
        if not entry.moved and each.commit == entry.commit and (applied_at is None or each.since < applied_at):
            continue  # of what was live of this commit before
        if each.agent not in found and await contains(each.commit):
            found[each.agent] = each.since
    return found, ""


# --- the document ----------------------------------------------------------------------------------------------------


def _document(facts: _Facts, changes: Mapping[PolicyName, PolicyChange], caller: Caller) -> dict[str, Any]:
    done, info = facts.way.done, facts.landed.info
    entry = done or facts.way.brought
    readable = partial(may_read, caller)
    policies = [_policy(facts, name, change) for name, change in sorted(changes.items())]
    agents = [_agent(facts, each) for each in counted(facts.seen, datetime.now(UTC))]
    times = sorted(each["at"] for each in agents if each["at"])
    everywhere = bool(agents) and all(each["state"] == "enforced" for each in agents)
    stages = [
        {"stage": "pushed", "at": info.committed_at},
        {"stage": "seen", "at": entry.seen_at if entry else None},
        {"stage": "fetched", "at": entry.fetched_at if entry else None},
        {"stage": "validated", "at": entry.validated_at if entry else None},
        {"stage": "applied", "at": done.applied_at if done else None},
        {"stage": "enforced_first", "at": times[0] if times else None},
        {"stage": "enforced_everywhere", "at": times[-1] if everywhere and len(times) == len(agents) else None},
    ]
    return {
        "commit": info.commit,
        "revision": revision(facts.branch, info.commit),
        "author": info.author,
        "subject": info.subject,
        "state": _state(facts, policies),
        "policies": policies,
        "policies_more": len(facts.landed.changes) - len(policies),
        "stages": stages,
        "pass": narrowed_pass(done.document(), readable) if done else None,
        "passes": [narrowed_pass(each.document(), readable) for each in facts.way.passes],
        "agents": narrowed_agents(agents, readable),
        "missing": list(facts.missing),
    }


def _state(facts: _Facts, policies: Sequence[Mapping[str, Any]]) -> str:
    if facts.applied is None:
        return "unknown"
    if not facts.applied:
        return "not_in_branch" if facts.in_branch is False else "pending"
    states = {each["state"] for each in policies}
    return next((word for word in ("held", "live", "deleted", "superseded") if word in states), "applied")


def _policy(facts: _Facts, name: PolicyName, change: PolicyChange) -> dict[str, Any]:
    """What became of one policy that the commit changed."""
    held, live = facts.seen.held.get(name), facts.live.get(name)
    if not facts.applied:
        state = "pending" if facts.applied is not None else "unknown"
    elif _held_at(facts.seen, name, facts.landed.info.commit):
        state = "held"
    elif change.deleted and live is None:
        state = "deleted"
    elif change.etag is not None and change.etag == live:
        state = "live"
    else:
        state = "superseded"
    reason = held.reason if held is not None and state == "held" else None
    errors = [str(each) for each in held.errors] if held is not None and state == "held" else []
    return {"policy": name, "state": state, "etag": change.etag, "reason": reason, "errors": errors}


def _agent(facts: _Facts, receipt: Receipt) -> dict[str, Any]:
    """``at`` is when its OPA first proved this commit or a later one, where that is known."""
    name = f"{receipt.datacentre}/{receipt.id}"
    at, done = facts.proofs.get(name), facts.way.done
    alive = facts.seen.lives(receipt)
    if alive and _proves(facts, receipt):
        state = "enforced"
        if at is None and done is not None and receipt.enforced_revision == done.commit:
            at = _time(facts.way.clamped(receipt.since))
    else:
        told = done is not None or facts.way.brought is None or facts.held
        state = "behind" if told and alive and receipt.enforced_revision is not None else "unknown"
    text = rfc3339(at) if at else None
    return {
        "id": receipt.id,
        "datacentre": receipt.datacentre,
        "scope": receipt.scope,
        "state": state,
        "at": text,
        "seconds": between(done.applied_at, text) if done else None,
        "enforced_revision": revision(facts.branch, receipt.enforced_revision) if alive else None,
        "error": receipt.error,
    }


def _proves(facts: _Facts, receipt: Receipt) -> bool:
    """Whether its OPA enforces the commit, with what was held of it at first."""
    done, applied = facts.way.done, facts.seen.applied
    if receipt.enforced_revision not in facts.containing or (done is None and facts.way.brought is not None):
        return False
    if done is None or receipt.enforced_revision != done.commit:
        return True
    digests = {*facts.way.digests, *([applied.digest] if applied and applied.commit == done.commit else [])}
    return any(receipt.proves(done.commit, digest) for digest in digests)


def _time(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return None
    return at if at.tzinfo else None
