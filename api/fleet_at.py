"""``GET /fleet``: what each OPA enforces now, by the receipts in etcd, or enforced at a time, by the record of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, may_read
from api.problems import ProblemError
from api.requests import authorized, moment
from api.status import decoded
from api.statusview import Observed, agent_of, counted, narrowed_agents, revision
from reconciler.core.enforcement import End, Enforced, Interval, enforced_at
from reconciler.core.errors import RegopsError
from reconciler.core.ports import Range
from reconciler.core.records import Receipt

NO_RECORD: Final = (
    "no MongoDB is configured (mongo.uri): nobody records what the OPAs enforce, only what they enforce now is known"
)
RECORD_AWAY: Final = "MongoDB, which has what the OPAs enforced, is out of reach; GET /fleet without a time needs none"


async def fleet(request: web.Request) -> web.Response:
    """{"at", "agents", "missing"}; a caller sees of it what `GET /status` shows it."""
    caller = await authorized(request, None, Action.READ)
    at = moment(request, "at")
    document = await _now(request.app) if at is None else await _then(request.app, at)
    document["agents"] = narrowed_agents(document["agents"], lambda name: may_read(caller, name))
    text = json.dumps(document, ensure_ascii=False)
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})


async def _now(app: web.Application) -> dict[str, Any]:
    """Of etcd, or 503: an older answer would look like this one."""
    now, branch = datetime.now(UTC), app[keys.PLACE]["branch"]
    seen = await _observed(app)
    agents = [_present(receipt, agent_of(receipt, seen, branch)) for receipt in counted(seen, now)]
    return {"at": _rfc3339(now), "agents": agents, "missing": None}


async def _observed(app: web.Application) -> Observed:
    space = app[keys.KEYSPACE]
    read = await app[keys.STORE].read(
        Range(space.receipts, prefix=True), Range(space.alives, prefix=True, keys_only=True)
    )
    receipts, alives = read.ranges
    found = [decoded(Receipt, kv) for kv in receipts]
    return Observed(
        receipts=tuple(receipt for receipt in found if receipt is not None),
        alive=frozenset(kv.key.removeprefix(space.alives) for kv in alives),
    )


def _present(receipt: Receipt, agent: dict[str, Any]) -> dict[str, Any]:
    proven = receipt.enforced_revision if agent["alive"] else None
    reason = None if proven else str(End.WITHDRAWN if agent["alive"] else End.SILENT)
    last = receipt.enforced_revision
    return {**agent, "commit": proven, "to": None, **_state(reason), "last_commit": last}


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
    return {"at": at, "agents": [_agent(each, marks, branch) for each in found], "missing": missing}


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
        "since": _rfc3339(last.since if enforced.known else last.until or _mark(last, marks)),
        "to": _rfc3339(last.until) if enforced.known and last.until else None,
        **_state(enforced.reason),
        "last_commit": last.commit,
        "opa_version": last.opa_version,
        "error": last.error,
    }


def _state(reason: str | None) -> dict[str, Any]:
    return {"state": "unknown" if reason else "known", "reason": reason}


def _empty(at: datetime, begins: datetime | None) -> str:
    return f"the record begins at {_rfc3339(begins)}" if begins and begins > at else "nothing is recorded of that time"


def _late(found: Sequence[Enforced], marks: Mapping[str, datetime]) -> str | None:
    """What a reader must know who takes the list for the whole truth."""
    last = [each.interval for each in found if each.interval.until is None and not each.known]
    late = sorted({f"{each.datacentre} after {_rfc3339(_mark(each, marks))}" for each in last})
    return f"not recorded: {', '.join(late)}" if late else None


def _mark(last: Interval, marks: Mapping[str, datetime]) -> datetime:
    return max(last.seen, marks.get(last.datacentre, last.seen))


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unavailable(message: str) -> ProblemError:
    return ProblemError(503, "unavailable", message, headers={"Retry-After": "10"})
