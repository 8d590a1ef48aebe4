"""What was: a policy's versions, one of them, and what was live at a time."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, Caller, may_read
from api.preconditions import not_modified
from api.problems import ProblemError
from api.rendered import body_of_any
from api.requests import authorized, number, policy_of
from reconciler.core.limits import Limits
from reconciler.core.model import PolicyName, policy_name
from reconciler.core.record_ports import Place
from reconciler.core.versions import StoredVersion, Version
from reconciler.version_history import Past, place_of

_PAGE: Final = 20
_LIMIT: Final = 100
_MOST: Final = 10**9 - 1
_LIVE, _HEAD = "live", "head"
_NESTING: Final = Limits().nesting


def item_of(version: Version, live: str | None = None) -> dict[str, Any]:
    """One version without its text. ``live``: the commit of the version that is live."""
    return {
        "policy": version.policy,
        "version": version.version,
        "state": str(version.state),
        "live": version.info.commit == live,
        "etag": version.etag,
        "commit": version.info.commit,
        "ts": version.info.committed_at or None,
        "actor": version.info.author,
        "subject": version.info.subject,
        "pull_request": version.pull_request,
        "deleted": version.deleted,
        "reason": version.reason or None,
        "message": version.message or None,
        "inferred": version.inferred,
        "applied_at": list(version.applied_at),
    }


async def list_versions(request: web.Request) -> web.Response:
    """{"items", "next", "missing"}: a policy's versions, newest first."""
    policy = policy_of(request)
    await authorized(request, policy, Action.READ)
    limit = number(request, "limit", _PAGE, _LIMIT)
    before = number(request, "after", _MOST, _MOST) if "after" in request.query else None
    past = await request.app[keys.HISTORY].versions(policy, before=before, limit=limit)
    if not past.versions and before is None:
        raise unknown(policy)
    last = past.versions[-1].version if past.versions else 1
    return _page(request, past, last if last > 1 and len(past.versions) == limit else None)


async def recent_versions(request: web.Request) -> web.Response:
    """{"items", "next", "missing"}: the last versions of all policies that the caller may read, newest first."""
    caller = await authorized(request, None, Action.READ)
    limit = number(request, "limit", _PAGE, _LIMIT)
    place = _place(request.query["after"]) if "after" in request.query else None
    found: list[Version] = []
    while True:
        past = await request.app[keys.HISTORY].recent(before=place, limit=_LIMIT)
        found += [each for each in past.versions if may_read(caller, each.policy)]
        if len(found) >= limit or len(past.versions) < _LIMIT:
            break
        place = place_of(past.versions[-1])
    shown = Past(found[:limit], past.missing)
    more = len(found) > limit or len(past.versions) == _LIMIT
    last = place_of(shown.versions[-1]) if shown.versions else None
    return _page(request, shown, f"{last.position}.{last.policy}" if last and more else None)


async def get_version(request: web.Request) -> web.Response:
    """One version with its text and the policy's ETag in it."""
    policy = policy_of(request)
    await authorized(request, policy, Action.READ)
    return await _answer(request, await stored_version(request, policy, _number_in_path(request)), "")


async def policy_at(request: web.Request, policy: PolicyName, at: str) -> web.Response:
    """The version that was live at a time, with its text."""
    version, missing = await request.app[keys.HISTORY].live_at(policy, at)
    if version is None or version.deleted:
        since = f": version {version.version} had deleted it" if version else ""
        raise ProblemError(404, "not_found", f"{policy} was not live at {at}{since}")
    return await _answer(request, await stored_version(request, policy, version.version), missing)


async def policies_at(request: web.Request, caller: Caller, at: str) -> web.Response:
    """{"at", "items", "missing"}: which version of each policy was live at a time."""
    moment = await request.app[keys.HISTORY].all_live_at(at)
    found = [moment.versions[policy] for policy in sorted(moment.versions) if may_read(caller, policy)]
    items = [item_of(each, _live_commit(request, each.policy)) for each in found if not each.deleted]
    return _json({"at": at, "items": items, "next": None, "missing": moment.missing or None})


def unknown(policy: PolicyName) -> ProblemError:
    """404."""
    return ProblemError(404, "not_found", f"there never was a policy {policy}")


async def stored_version(request: web.Request, policy: PolicyName, wanted: int) -> StoredVersion:
    """The version of this number; 404 when there is none."""
    found = await request.app[keys.HISTORY].version(policy, wanted)
    if found is None:
        raise ProblemError(404, "not_found", f"{policy} has no version {wanted}, or only a rewritten history had it")
    return found


# --- answers ---------------------------------------------------------------------------------------------------------


def _page(request: web.Request, past: Past, following: object) -> web.Response:
    items = [item_of(each, _live_commit(request, each.policy)) for each in past.versions]
    return _json({"items": items, "next": following, "missing": past.missing or None})


def _json(document: dict[str, Any]) -> web.Response:
    text = json.dumps(document, ensure_ascii=False)
    return web.Response(text=text, content_type="application/json", headers={"Cache-Control": "no-cache"})


async def _answer(request: web.Request, stored: StoredVersion, missing: str) -> web.Response:
    version, content = stored.version, stored.content
    headers = {"Policy-Commit": version.info.commit, "Cache-Control": "no-cache"}
    if version.etag is not None:
        headers["ETag"] = version.etag
        if not_modified(request.headers, version.etag):
            return web.Response(status=304, headers=headers)
    document = item_of(version, _live_commit(request, version.policy)) | {"missing": missing or None}
    body = json.dumps(document, ensure_ascii=False).encode()
    if content is not None:
        body = b"%b, %b" % (body[:-1], (await asyncio.to_thread(body_of_any, content))[1:])
    return web.Response(body=body, content_type="application/json", headers=headers)


def _live_commit(request: web.Request, policy: PolicyName) -> str | None:
    state = request.app[keys.MIRROR].state
    found = state.policies.get(policy) if state else None
    return found.meta.commit if found else None


# --- what the request says -------------------------------------------------------------------------------------------


def _number_in_path(request: web.Request) -> int:
    text = request.match_info["version"]
    try:
        return number_of(text)
    except ValueError as error:
        raise ProblemError(400, "validation_error", f"a version is a number from 1, not {text[:20]!r}") from error


def number_of(text: str) -> int:
    """A number from 1; `ValueError` for anything else. Python reads no integer of more than 4300 digits."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_MOST)) or not int(text):
        raise ValueError(f"{text[:20]!r} is no number from 1 to {_MOST}")
    return int(text)


def _place(text: str) -> Place:
    position, _, policy = text.partition(".")
    try:
        return Place(number_of(position), policy_name(policy))
    except ValueError as error:
        raise ProblemError(400, "validation_error", "?after= must be `next` of the page before") from error
