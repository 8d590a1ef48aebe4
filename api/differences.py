"""What changed between two versions of a policy, and which one a rollback brings back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action
from api.data_diff import changes
from api.diffs import unified
from api.problems import ProblemError
from api.requests import authorized, policy_of
from api.texts import dump, strict_object
from api.versions import item_of, number_of, stored_version, unknown
from reconciler.core.limits import Limits
from reconciler.core.model import DATA_FILE, REGO_FILE, Content, PolicyName
from reconciler.core.versions import StoredVersion

_LIVE, _HEAD = "live", "head"
_NESTING: Final = Limits().nesting


async def diff(request: web.Request) -> web.Response:
    """{"policy", "from", "to", "rego", "data", "data_text"}: what changed between two versions."""
    policy = policy_of(request)
    await authorized(request, policy, Action.READ)
    body = await difference(request, policy, request.query.get("from"), request.query.get("to", _LIVE))
    return web.Response(body=body, content_type="application/json")


async def difference(request: web.Request, policy: PolicyName, start: str | None, end: str) -> bytes:
    """What changed from one version to another: the document of `diff`. Without ``start`` from the one before."""
    to = await _side(request, policy, end)
    old = await (_before(request, policy, to) if start is None else _side(request, policy, start))
    return await asyncio.to_thread(_diff, policy, old, to)


async def restorable(request: web.Request, policy: PolicyName, wanted: int | None) -> StoredVersion:
    """The version that a rollback brings back: without a number the last one applied that is not as the live one."""
    if wanted is None:
        live = await _side(request, policy, _LIVE)
        former = await request.app[keys.HISTORY].former(policy, live.name["etag"])
        if former is None:
            raise ProblemError(404, "not_found", f"{policy} has no earlier version to go back to")
        wanted = former.version
    stored = await stored_version(request, policy, wanted)
    if stored.content is None:
        what = "deleted it: DELETE the policy" if stored.version.deleted else "is no policy: choose another one"
        raise ProblemError(400, "validation_error", f"version {wanted} of {policy} {what}")
    return stored


# --- two sides -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Side:
    """What is compared: a version, or what is live, or what the branch says. ``content`` is ``None`` for nothing."""

    name: dict[str, Any]
    content: Content | None


async def _side(request: web.Request, policy: PolicyName, text: str) -> _Side:
    if text == _LIVE:
        state = request.app[keys.MIRROR].state
        found = state.policies.get(policy) if state else None
        if state is None:
            raise ProblemError(503, "unavailable", "etcd was not read yet", headers={"Retry-After": "1"})
        if found is None:
            return _Side({"ref": _LIVE, "etag": None, "commit": None}, None)
        return _Side({"ref": _LIVE, "etag": found.meta.etag, "commit": found.meta.commit}, found.content)
    if text == _HEAD:
        source = request.app[keys.SOURCE]
        commit = await source.fetch()
        blobs = (await source.tree(commit)).policies.get(policy)
        name = {"ref": _HEAD, "etag": blobs.etag if blobs else None, "commit": commit}
        return _Side(name, await source.read(blobs) if blobs else None)
    try:
        wanted = number_of(text)
    except ValueError as error:
        message = f"from and to must be a version's number, {_LIVE} or {_HEAD}, not {text[:20]!r}"
        raise ProblemError(400, "validation_error", message) from error
    return _of(await stored_version(request, policy, wanted))


def _of(stored: StoredVersion) -> _Side:
    return _Side(item_of(stored.version), stored.content)


async def _before(request: web.Request, policy: PolicyName, to: _Side) -> _Side:
    """Without ``from``: the version before a version; for what is live the last one applied that is another."""
    if "version" in to.name:
        wanted = to.name["version"] - 1
        return _of(await stored_version(request, policy, wanted)) if wanted else _Side({"ref": "nothing"}, None)
    former = await request.app[keys.HISTORY].former(policy, to.name["etag"])
    if former is None:
        if to.content is None:
            raise unknown(policy)
        return _Side({"ref": "nothing"}, None)
    return _of(await stored_version(request, policy, former.version))


def _diff(policy: PolicyName, old: _Side, new: _Side) -> bytes:
    """Rego as ``git diff`` shows it, data by path; what is no JSON object, or differs in its form only, as text."""
    before, after = old.content, new.content
    rego = (before.rego if before else None, after.rego if after else None)
    data = (before.data if before else None, after.data if after else None)
    document: dict[str, Any] = {
        "policy": policy,
        "from": old.name,
        "to": new.name,
        "rego": unified(f"{policy}/{REGO_FILE}", *rego) if rego[0] != rego[1] else "",
        "data": [],
    }
    try:
        document["data"] = list(changes(_parsed(data[0]), _parsed(data[1])))
    except (ValueError, RecursionError):
        document["data_text"] = unified(f"{policy}/{DATA_FILE}", *data)
    else:
        if data[0] != data[1] and not document["data"]:
            document["data_text"] = unified(f"{policy}/{DATA_FILE}", *data)
    return dump(document)


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    return None if data is None else strict_object(data.decode(), _NESTING)
