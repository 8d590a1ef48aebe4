"""Logging in: a token becomes a cookie that scripts cannot read and other sites cannot send.

The cookie counts for the page's own routes and for the stream that they follow, nowhere else: no write of the API ever
takes it. It holds the token itself, which is verified with each request as a header's would be; nothing is kept here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import time
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from aiohttp import web

from api.auth import Caller
from api.auth.claims import ends_at
from api.bodies import read_raw
from api.problems import ProblemError

SESSION: Final = "regops_session"
_LOGIN: Final = "regops_login"
_HOST: Final = "__Host-"
"""Of a cookie that browsers take only over https, for this host and all of its paths (RFC 6265bis)."""
LONGEST: Final = 3800
"""Characters of a token that fit into a cookie of 4096 bytes with its name and attributes."""
_FORM: Final = 128 * 1024
_LOCAL: Final = re.compile(r"/(?:ui(?:/[a-z0-9-]+)+(?:\?[A-Za-z0-9_.~=&%-]*)?)?")
"""Where a log-in may lead: a page of this server, never another host."""


def is_page(request: web.Request) -> bool:
    """Whether a person in a browser is to read the answer, also when it is an error."""
    path = request.path
    return path in {"/", "/login", "/logout"} or (path.startswith("/ui/") and not path.startswith("/ui/assets/"))


def presented(request: web.Request, header: str | None) -> str | None:
    """The ``Authorization`` of the request, or where the cookie counts what it would be."""
    if header is not None or not (is_page(request) or (request.path == "/events" and request.method == "GET")):
        return header
    token = request.cookies.get(_named(request, SESSION))
    return f"Bearer {token}" if token else None


def had_session(request: web.Request) -> bool:
    """Whether a cookie came along, whatever it is worth."""
    return _named(request, SESSION) in request.cookies


def secured(request: web.Request) -> bool:
    """Whether the browser speaks https, as far as this server or a proxy before it tells."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip() == "https"


def _named(request: web.Request, name: str) -> str:
    return f"{_HOST}{name}" if secured(request) else name


def _set(request: web.Request, response: web.StreamResponse, name: str, value: str, age: int) -> None:
    """Whole, so that no attribute depends on what the framework thinks best."""
    response.set_cookie(
        _named(request, name),
        value,
        path="/",
        max_age=age,
        httponly=True,
        samesite="Strict",
        secure=secured(request),
    )


def begin(request: web.Request, response: web.StreamResponse, caller: Caller, token: str) -> None:
    """Set the cookie, for as long as the token lasts."""
    _set(request, response, SESSION, token, max(1, int(ends_at(caller.claims) - time.time())))
    end(request, response, name=_LOGIN)


def end(request: web.Request, response: web.StreamResponse, *, name: str = SESSION) -> None:
    """Take the cookie away."""
    _set(request, response, name, "", 0)


# --- forms from this page only ---------------------------------------------------------------------------------------


def mark(caller: Caller) -> str:
    """What the forms of this session carry: nobody can know it who does not know the token."""
    return hashlib.sha256(b"regops form\n" + caller.token).hexdigest()


def login_mark(request: web.Request, response: web.StreamResponse) -> str:
    """The same for the form that begins a session: in the form and in a cookie."""
    value = request.cookies.get(_named(request, _LOGIN)) or secrets.token_hex(16)
    _set(request, response, _LOGIN, value, 3600)
    return value


async def form_of(request: web.Request) -> dict[str, str]:
    """The fields of a form that was sent by this site. Raises the 403, and what a body too long or too slow is."""
    _same_site(request)
    raw = await read_raw(request, {"application/x-www-form-urlencoded"}, _FORM)
    try:
        fields = parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise ProblemError(400, "validation_error", "the form cannot be read") from error
    return {name: values[-1] for name, values in fields.items()}


def check_mark(fields: dict[str, str], wanted: str) -> None:
    """Raises the 403."""
    if not hmac.compare_digest(fields.get("mark", "").encode(), wanted.encode()):
        raise _foreign()


def check_login_mark(request: web.Request, fields: dict[str, str]) -> None:
    """The same for the form that begins a session."""
    check_mark(fields, request.cookies.get(_named(request, _LOGIN)) or secrets.token_hex(16))


def _same_site(request: web.Request) -> None:
    """Browsers say where a form came from; what says nothing is held up by the form's mark."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
    foreign = origin is not None and urlsplit(origin).netloc != request.host
    if foreign or site not in {None, "same-origin"}:
        raise _foreign()


def _foreign() -> ProblemError:
    return ProblemError(403, "forbidden", "this form was not sent by this page, or is too old: load it again")


# --- where to, and tickets -------------------------------------------------------------------------------------------


def wanted(text: str | None) -> str:
    """Where to go after the log-in: what was asked for, when it is a page of this server."""
    return text if text is not None and _LOCAL.fullmatch(text) else "/"


def login_address(request: web.Request) -> str:
    """The log-in that leads back to this request."""
    target = wanted(request.path_qs) if request.method == "GET" else "/"
    return "/login" if target == "/" else f"/login?next={quote(target, safe='')}"


async def token_for(file: Path | None, ticket: str) -> str | None:
    """The token that this ticket stands for, by the file of tickets."""
    try:
        known = json.loads(await asyncio.to_thread(file.read_bytes)) if file else {}
    except (OSError, ValueError):
        return None
    found = None
    for name, token in known.items():  # all of them, in constant time each
        if hmac.compare_digest(str(name).encode(), ticket.encode("utf-8", "replace")):
            found = str(token)
    return found
