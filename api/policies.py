"""The live policies, read from this replica's mirror."""

from __future__ import annotations

import json
import re

from aiohttp import web

from api import keys
from api.problems import ProblemError
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.errors import RegopsError
from reconciler.core.model import PLATFORM, PolicyName, project_policy
from reconciler.core.ports import Range
from reconciler.core.records import Held

_PAGE = 100
_LIMIT = 1000
_TAG = re.compile(r'(?:W/)?("[^"]*")')


async def list_policies(request: web.Request) -> web.Response:
    """{"items": [{"policy", "etag", "commit", "held"}], "next"}: sorted by name; ``?limit=`` and ``?after=`` page."""
    state = _state(request)
    limit, after = _limit(request), request.query.get("after", "")
    held = await _held_names(request)
    names = sorted(name for name in state.policies if name > after)
    items = [
        {
            "policy": name,
            "etag": state.policies[name].meta.etag,
            "commit": state.policies[name].meta.commit,
            "held": name in held,
        }
        for name in names[:limit]
    ]
    following = names[limit - 1] if len(names) > limit else None
    return web.json_response({"items": items, "next": following}, headers={"Cache-Control": "no-cache"})


async def get_platform(request: web.Request) -> web.Response:
    """The platform's policy."""
    return await _get(request, PLATFORM)


async def get_project(request: web.Request) -> web.Response:
    """One project's policy."""
    try:
        policy = project_policy(request.match_info["project"])
    except ValueError as error:
        raise ProblemError(400, "validation_error", str(error)) from error
    return await _get(request, policy)


async def _get(request: web.Request, policy: PolicyName) -> web.Response:
    if "ref" in request.query:
        raise ProblemError(400, "validation_error", "?ref= is not served yet: leave it out to read the live policy")
    found = _state(request).policies.get(policy)
    held = await _held(request, policy)
    if found is None:
        why = f", and its version in Git is held ({held.reason}): see /status" if held else ""
        raise ProblemError(404, "not_found", f"{policy} is not live{why}", errors=held.errors if held else ())
    headers = {"ETag": found.meta.etag, "Policy-Commit": found.meta.commit, "Cache-Control": "no-cache"}
    if held is not None:
        headers["Policy-Held"] = held.reason
    if _matches(request.headers.getall("If-None-Match", []), found.meta.etag):
        return web.Response(status=304, headers=headers)
    return web.Response(body=_body(found), headers=headers, content_type="application/json")


def _body(policy: MirrorPolicy) -> bytes:
    """{"rego", "data"}; the data's own text stands in it, so that no number changes its form."""
    rego = json.dumps(policy.content.rego.decode(), ensure_ascii=False).encode()
    if policy.content.data is None:
        return b'{"rego":%b}' % rego
    return b'{"rego":%b,"data":%b}' % (rego, policy.content.data)


def _matches(headers: list[str], etag: str) -> bool:
    """RFC 9110 section 13.1.2: ``*`` or a list of entity-tags, compared weakly."""
    text = ",".join(headers).strip()
    return text == "*" or etag in _TAG.findall(text)


def _state(request: web.Request) -> MirrorState:
    state = request.app[keys.MIRROR].state
    if state is None:
        raise ProblemError(503, "unavailable", "etcd was not read yet", headers={"Retry-After": "1"})
    return state


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(_PAGE))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _LIMIT:
        raise ProblemError(400, "validation_error", f"limit must be a number from 1 to {_LIMIT}")
    return int(text)


async def _held(request: web.Request, policy: PolicyName) -> Held | None:
    """Why the version in Git is not live; ``None`` too while etcd cannot be asked: the live text is served then."""
    space = request.app[keys.KEYSPACE]
    try:
        kvs = (await request.app[keys.STORE].read(Range(space.held(policy)))).ranges[0]
        return Held.decode(kvs[0].value) if kvs else None
    except (RegopsError, ValueError, TypeError, KeyError):
        return None


async def _held_names(request: web.Request) -> frozenset[str]:
    space = request.app[keys.KEYSPACE]
    kvs = (await request.app[keys.STORE].read(Range(space.helds, prefix=True, keys_only=True))).ranges[0]
    return frozenset(kv.key.removeprefix(space.helds) for kv in kvs)
