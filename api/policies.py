"""The policies, read from this replica's mirror of what is live, or from the branch's head."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from api import keys, versions
from api.auth import Action, may_read
from api.preconditions import not_modified
from api.problems import ProblemError
from api.rendered import body_of_any
from api.requests import authorized, choice, commit_of, moment, number, policy_of, seconds
from reconciler.agent.state import MirrorState
from reconciler.core.model import PolicyName
from reconciler.core.records import Held

_PAGE: Final = 100
_LIMIT: Final = 1000
_MIN_COMMIT_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0


async def list_policies(request: web.Request) -> web.Response:
    """{"items": [{"policy", "etag", "commit", "held"}], "next"}: what the caller may read, sorted by name."""
    caller = await authorized(request, None, Action.READ)
    at = moment(request, "at")
    if at is not None:
        return await versions.policies_at(request, caller, at)
    limit, after = number(request, "limit", _PAGE, _LIMIT), request.query.get("after", "")
    await _wait_for_commit(request)
    state = _state(request)
    names = sorted(name for name in state.policies if name > after and may_read(caller, name))
    items = [
        {
            "policy": name,
            "etag": state.policies[name].meta.etag,
            "commit": state.policies[name].meta.commit,
            "held": _held(request, name) is not None,
        }
        for name in names[:limit]
    ]
    following = names[limit - 1] if len(names) > limit else None
    return web.json_response({"items": items, "next": following}, headers={"Cache-Control": "no-cache"})


async def get_policy(request: web.Request) -> web.Response:
    """The live policy; with ``?ref=head`` the branch's, with ``?at=`` the one that was live then."""
    policy = policy_of(request)
    await authorized(request, policy, Action.READ)
    ref = choice(request, "ref", ("live", "head"), "live")
    at = moment(request, "at")
    if at is not None:
        return await versions.policy_at(request, policy, at)
    await _wait_for_commit(request)
    if ref == "head":
        return await _head(request, policy)
    return await _live(request, policy)


async def _live(request: web.Request, policy: PolicyName) -> web.Response:
    found = _state(request).policies.get(policy)
    held = _held(request, policy)
    if found is None:
        why = f", and its version in Git is held ({held.reason}): read it with ?ref=head" if held else ""
        raise ProblemError(404, "not_found", f"{policy} is not live{why}", errors=held.errors if held else ())
    headers = {"ETag": found.meta.etag, "Policy-Commit": found.meta.commit}
    if held is not None:
        headers["Policy-Held"] = held.reason
    return _answer(request, headers, lambda: request.app[keys.RENDERED].body(found.meta.etag, found.content))


async def _head(request: web.Request, policy: PolicyName) -> web.Response:
    """What the branch says now, valid or not: a held policy can be read and overwritten with this ETag."""
    source = request.app[keys.SOURCE]
    commit = await source.fetch()
    tree = await source.tree(commit)
    blobs = tree.policies.get(policy)
    if blobs is None:
        errors = tree.invalid.get(policy, ())
        raise ProblemError(404, "not_found", f"{policy} is not at the branch's head", errors=errors)
    headers = {"ETag": blobs.etag, "Policy-Commit": (await source.last_change(commit, policy)).commit}
    body = await asyncio.to_thread(body_of_any, await source.read(blobs))
    return _answer(request, headers, lambda: body)


def _answer(request: web.Request, headers: dict[str, str], body: Callable[[], bytes]) -> web.Response:
    headers["Cache-Control"] = "no-cache"
    if not_modified(request.headers, headers["ETag"]):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = "application/json"
    return web.Response(body=body(), headers=headers)


async def _wait_for_commit(request: web.Request) -> None:
    """``Policy-Min-Commit``: read one's own write, also from another replica."""
    commit = commit_of(request, "Policy-Min-Commit")
    if commit is None:
        return
    wait = seconds(request, "timeout", _MIN_COMMIT_SECONDS, _LONGEST_SECONDS)
    if not await request.app[keys.PROGRESS].known(commit):
        raise ProblemError(400, "validation_error", f"the branch has no commit {commit}: see Policy-Min-Commit")
    if not await request.app[keys.PROGRESS].until_mirrored(commit, wait):
        message = f"this replica does not have commit {commit} after {wait:g} s"
        raise ProblemError(503, "unavailable", message, headers={"Retry-After": "1"})


def _state(request: web.Request) -> MirrorState:
    state = request.app[keys.MIRROR].state
    if state is None:
        raise ProblemError(503, "unavailable", "etcd was not read yet", headers={"Retry-After": "1"})
    return state


def _held(request: web.Request, policy: str) -> Held | None:
    """Why the version in Git is not live."""
    return request.app[keys.HELD].values.get(request.app[keys.KEYSPACE].held(policy))
