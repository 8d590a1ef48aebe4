"""What handlers ask a request: who, which policy, which flags. Every answer is checked, every error a problem."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import web

from api import keys
from api.audited import DRY
from api.auth import Action, Caller, path_segments
from api.problems import ProblemError
from reconciler.core.model import PLATFORM, PolicyName, policy_name, project_policy

CALLER: web.RequestKey[Caller] = web.RequestKey("caller")
TRACE: web.RequestKey[str | None] = web.RequestKey("trace")
"""The trace context of the request's span, where somebody traces."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGITS: Final = 9
_CLOCKS: Final = timedelta(seconds=5)
"""How far the caller's clock may be ahead of this one."""
_TRUE, _FALSE = DRY, frozenset({"false", "0"})


def caller_of(request: web.Request) -> Caller:
    """Who asks; every route but the open ones has one."""
    return request[CALLER]


def policy_of(request: web.Request) -> PolicyName:
    """The policy that the path names; 400 for an impossible name."""
    project = request.match_info.get("project")
    if project is None:
        return PLATFORM
    try:
        return project_policy(project)
    except ValueError as error:
        raise ProblemError(400, "validation_error", str(error)) from error


async def authorized(request: web.Request, policy: PolicyName | None, action: Action) -> Caller:
    """The caller, who may do this; 403 else, and 503 when nobody can say."""
    caller = caller_of(request)
    await request.app[keys.AUTHORIZER].authorize(
        caller, request.method, path_segments(request.rel_url), policy=policy, action=action
    )
    return caller


def flag(request: web.Request, name: str) -> bool:
    """A boolean of the query; absent is false."""
    text = _asked(request, name)
    if text is None or text in _FALSE:
        return False
    if text not in _TRUE:
        raise ProblemError(400, "validation_error", f"?{name}= must be true or false, not {text!r}")
    return True


def choice(request: web.Request, name: str, among: tuple[str, ...], default: str) -> str:
    """One of a few words of the query."""
    text = _asked(request, name)
    if text is None:
        return default
    if text not in among:
        raise ProblemError(400, "validation_error", f"?{name}= must be one of {', '.join(among)}, not {text!r}")
    return text


def seconds(request: web.Request, name: str, default: float, most: float) -> float:
    """A duration of the query, above 0 and not above ``most``."""
    text = _asked(request, name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise ProblemError(400, "validation_error", f"?{name}= must be seconds, above 0 and up to {most:g}")
    return value


def moment(request: web.Request, name: str, *, to_come: bool = False) -> str | None:
    """A time of the query, as RFC 3339 UTC; one that is still ``to_come`` is refused unless that makes sense."""
    text = _asked(request, name)
    if text is None:
        return None
    at = _aware(re.sub(r" (?=\d\d:\d\d$)", "+", text))  # an unescaped + is a space in a query
    if at is None:
        message = f"?{name}= must be a time as RFC 3339 has it, such as 2026-01-31T12:00:00Z, not {text[:40]!r}"
        raise ProblemError(400, "validation_error", message)
    if not to_come and at > datetime.now(UTC) + _CLOCKS:
        raise ProblemError(400, "validation_error", f"?{name}={text[:40]} is still to come")
    return at.isoformat().replace("+00:00", "Z")


def _aware(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None


def number(request: web.Request, name: str, default: int, most: int) -> int:
    """A number of the query, from 1 to ``most``."""
    text = _asked(request, name)
    # Python reads no integer of more than 4300 digits.
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS or not 1 <= int(text) <= most:
        raise ProblemError(400, "validation_error", f"?{name}= must be a number from 1 to {most}, not {text[:20]!r}")
    return int(text)


def policy_asked(request: web.Request, name: str = "policy") -> PolicyName | None:
    """A policy of the query, by its whole name or a project's."""
    text = _asked(request, name)
    if text is None:
        return None
    try:
        return policy_name(text) if "/" in text or text == PLATFORM else project_policy(text)
    except ValueError as error:
        raise ProblemError(400, "validation_error", f"?{name}=: {error}") from error


def commit_of(request: web.Request, header: str) -> str | None:
    """A whole commit id in a header."""
    text = request.headers.get(header)
    if text is not None and not _COMMIT.fullmatch(text):
        raise ProblemError(400, "validation_error", f"{header} must be a whole commit id, 40 hex digits")
    return text


def _asked(request: web.Request, name: str) -> str | None:
    """What the query says; most requests have none, and need none parsed."""
    return request.query.get(name) if request.query_string else None
