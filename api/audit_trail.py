"""``GET /audit``: who did what, from the projection of the audit logs of all replicas."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from api import keys
from api.auth import Action
from api.problems import ProblemError
from api.requests import authorized, moment, number, policy_asked
from reconciler.core.errors import RegopsError
from reconciler.core.record_ports import AuditQuery, AuditStore

NO_RECORD: Final = "no MongoDB is configured (mongo.uri): the audit trail stands in the audit log of each server only"
RECORD_AWAY: Final = "MongoDB is out of reach; the audit log of each server has its own part of the audit trail"
_PAGE: Final = 100
_LIMIT: Final = 1000
_LONGEST: Final = 200
_WORDS: Final = ("actor", "action", "result", "request_id")
_KNOWN: Final = frozenset({*_WORDS, "policy", "since", "until", "limit", "after"})


async def audit(request: web.Request) -> web.Response:
    """{"items", "next"}: the events that fit, newest first. For platform admins."""
    await authorized(request, None, Action.ADMINISTER)
    query, limit = _query(request), number(request, "limit", _PAGE, _LIMIT)
    try:
        events, following = await _store(request).events(query, before=request.query.get("after"), limit=limit)
    except ValueError as error:
        raise ProblemError(400, "validation_error", "?after= must be `next` of the page before") from error
    except RegopsError as error:
        raise _unavailable(RECORD_AWAY) from error
    text = json.dumps({"items": events, "next": following}, ensure_ascii=False)
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-store"})


def _store(request: web.Request) -> AuditStore:
    store = request.app[keys.AUDIT_TRAIL]
    if store is None:
        raise _unavailable(NO_RECORD)
    return store


def _query(request: web.Request) -> AuditQuery:
    unknown = sorted(request.query.keys() - _KNOWN)
    if unknown:  # a filter with a slip of the pen would show everything
        message = f"?{unknown[0][:40]}= is no filter: there are {', '.join(sorted(_KNOWN))}"
        raise ProblemError(400, "validation_error", message)
    words = {name: _word(request, name) for name in _WORDS}
    return AuditQuery(
        **words,
        resource=policy_asked(request),
        since=moment(request, "since", to_come=True),
        until=moment(request, "until", to_come=True),
    )


def _word(request: web.Request, name: str) -> str | None:
    text = request.query.get(name)
    if text is not None and not 1 <= len(text) <= _LONGEST:
        raise ProblemError(400, "validation_error", f"?{name}= must have 1 to {_LONGEST} characters")
    return text


def _unavailable(message: str) -> ProblemError:
    return ProblemError(503, "unavailable", message, headers={"Retry-After": "10"})
