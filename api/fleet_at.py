"""``GET /fleet``: what each OPA enforces now, by the receipts in etcd, or enforced at a time, by the record of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, may_read
from api.conditional import conditional
from api.passes import lag_of
from api.problems import ProblemError
from api.requests import authorized, moment
from api.statusview import Observed, agent_of, agent_state, counted, narrowed_agents, revision, totals
from reconciler.core.enforcement import End, Enforced, Interval, enforced_at
from reconciler.core.errors import RegopsError
from reconciler.core.passes import PassRecord
from reconciler.core.records import Receipt
from reconciler.core.times import rfc3339

NO_RECORD: Final = (
    "no MongoDB is configured (mongo.uri): nobody records what the OPAs enforce, only what they enforce now is known"
)
RECORD_AWAY: Final = "MongoDB, which has what the OPAs enforced, is out of reach; GET /fleet without a time needs none"

STORE_AWAY: Final = (
    "etcd cannot be read now: what each OPA enforces is not known, last_commit is what it had proven before"
)
STORE_NEVER: Final = "etcd cannot be read now, and no agent was seen in it before"


async def fleet(request: web.Request) -> web.Response:
    """{"at", "agents", "totals", "missing"}; a caller sees of it what `GET /status` shows it."""
    caller = await authorized(request, None, Action.READ)
    at = moment(request, "at")
    document = await fleet_now(request.app) if at is None else await _then(request.app, at)
    document["agents"] = narrowed_agents(document["agents"], lambda name: may_read(caller, name))
    return conditional(request, document, without=("at",))


async def fleet_now(app: web.Application) -> dict[str, Any]:
    """Of etcd; while it cannot be read, what was known last, each agent as unknown."""
    now, branch, observer = datetime.now(UTC), app[keys.PLACE]["branch"], app[keys.OBSERVER]
    seen = await observer.look()
    passes = observer.last_passes
    if seen.reachable:
        with contextlib.suppress(RegopsError):
            passes = await observer.passes()
    receipts = counted(seen, now)
    agents = [present(each, seen, branch, passes) for each in receipts]
    missing = None if seen.reachable else STORE_AWAY if receipts else STORE_NEVER
    return {"at": rfc3339(now), "agents": agents, "totals": totals(receipts, seen), "missing": missing}


def _lag(receipt: Receipt, seen: Observed, passes: Sequence[PassRecord]) -> dict[str, Any]:
    since, missed = lag_of(receipt, seen.applied, passes)
    return {"status": agent_state(receipt, seen), "behind_since": since, "behind_by": missed}


def present(receipt: Receipt, seen: Observed, branch: str, passes: Sequence[PassRecord]) -> dict[str, Any]:
    """An agent of `GET /fleet`: what `GET /status` says of it, and how far it is behind."""
    agent = agent_of(receipt, seen, branch)
    proven = receipt.enforced_revision if agent["alive"] else None
    unproven = End.WITHDRAWN if agent["alive"] else End.SILENT if seen.reachable else End.UNOBSERVED
    reason = None if proven else str(unproven)
    last = receipt.enforced_revision
    told = {**agent, "commit": proven, "to": None, **_state(reason), "last_commit": last}
    return told | _lag(receipt, seen, passes)


async def _then(app: web.Application, at: str) -> dict[str, Any]:
    store = app[keys.RECEIPTS]
    if store is None:
        raise _unavailable(NO_RECORD)
    when = datetime.fromisoformat(at)
    try:
        lasts, marks, begins = await store.at(when), await store.marks(), None
        if not lasts:
            begins = await store.begins()
    except RegopsError as error:
        raise _unavailable(RECORD_AWAY) from error
    found, branch = enforced_at(when, lasts, marks), app[keys.PLACE]["branch"]
    missing = _late(found, marks) if lasts else _empty(when, begins)
    agents = [_agent(each, marks, branch) for each in found]
    return {"at": at, "agents": agents, "totals": None, "missing": missing}


def _agent(enforced: Enforced, marks: Mapping[str, datetime], branch: str) -> dict[str, Any]:
    """Of what is not known ``since`` says since when, and ``last_commit`` what was proven last."""
    last = enforced.interval
    commit = last.commit if enforced.known else None
    return {
        "id": last.id,
        "datacentre": last.datacentre,
        "scope": last.scope,
        "commit": commit,
        "enforced_revision": revision(branch, commit),
        "since": rfc3339(last.since if enforced.known else last.until or _mark(last, marks)),
        "to": rfc3339(last.until) if enforced.known and last.until else None,
        **_state(enforced.reason),
        "last_commit": last.commit,
        "opa_version": last.opa_version,
        "error": last.error,
    }


def _state(reason: str | None) -> dict[str, Any]:
    return {"state": "unknown" if reason else "known", "reason": reason}


def _empty(at: datetime, begins: datetime | None) -> str:
    return f"the record begins at {rfc3339(begins)}" if begins and begins > at else "nothing is recorded of that time"


def _late(found: Sequence[Enforced], marks: Mapping[str, datetime]) -> str | None:
    """What a reader must know who takes the list for the whole truth."""
    last = [each.interval for each in found if each.interval.until is None and not each.known]
    late = sorted({f"{each.datacentre} after {rfc3339(_mark(each, marks))}" for each in last})
    return f"not recorded: {', '.join(late)}" if late else None


def _mark(last: Interval, marks: Mapping[str, datetime]) -> datetime:
    return max(last.seen, marks.get(last.datacentre, last.seen))


def _unavailable(message: str) -> ProblemError:
    return ProblemError(503, "unavailable", message, headers={"Retry-After": "10"})
