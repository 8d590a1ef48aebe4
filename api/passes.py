"""``GET /history``: what the leader's passes did, from their log in etcd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, may_read
from api.conditional import conditional
from api.problems import ProblemError
from api.requests import authorized, number
from reconciler.core.model import PLATFORM, PolicyName, policy_name
from reconciler.core.passes import PassRecord
from reconciler.core.records import Applied, Receipt

_PAGE: Final = 20
_LIMIT: Final = 200


async def history(request: web.Request) -> web.Response:
    """{"items", "next"}: passes that wrote, and those that failed, newest first."""
    caller = await authorized(request, None, Action.READ)
    limit, after = number(request, "limit", _PAGE, _LIMIT), request.query.get("after")
    found = await request.app[keys.OBSERVER].passes()
    if after is not None:
        names = [each.id for each in found]
        if after not in names:
            raise ProblemError(400, "validation_error", "?after= must be `next` of the page before, which is no more")
        found = found[names.index(after) + 1 :]
    shown = found[:limit]
    items = [narrowed_pass(each.document(), lambda name: may_read(caller, name)) for each in shown]
    return conditional(request, {"items": items, "next": shown[-1].id if len(found) > limit else None})


def narrowed_pass(document: dict[str, Any], readable: Callable[[PolicyName], bool]) -> dict[str, Any]:
    """The entry for a caller who may not read everything: counts and times stay; of changes and commits those of its
    own policies, and neither who confirmed deletions nor a message, which could name others."""
    if readable(PLATFORM):
        return document
    mine = [each for each in document["changes"] if _mine(each["policy"], readable)]
    made = {each["commit"] for each in mine}
    commits = [each for each in document["commits"] if each["commit"] in made]
    return {
        **document,
        "changes": mine,
        "changes_more": document["changes_more"] + len(document["changes"]) - len(mine),
        "commits": commits,
        "commits_more": document["commits_more"] + len(document["commits"]) - len(commits),
        "message": document["reason"],
        "confirmed_by": None,
        "holds": [name for name in document["holds"] if _mine(name, readable)],
    }


def _mine(name: str, readable: Callable[[PolicyName], bool]) -> bool:
    try:
        return readable(policy_name(name))
    except ValueError:
        return False


def lag_of(receipt: Receipt, applied: Applied | None, passes: Sequence[PassRecord]) -> tuple[str | None, int | None]:
    """Since when an OPA is behind ``applied``, and by how many passes that changed what is live; both ``None`` for one
    that is not. The number is ``None`` too where the log does not reach back to what the OPA enforces."""
    if applied is None or receipt.proves(applied.commit, applied.digest):
        return None, None
    since, missed = applied.at, 0
    for each in passes:  # newest first
        if each.outcome != "applied":
            continue
        if receipt.proves(each.commit, each.digest):
            return since, missed
        if each.followed:
            since, missed = each.applied_at or since, missed + 1
            if each.moved and each.before is not None and receipt.proves(each.before, None):
                return since, missed
    return since, None
