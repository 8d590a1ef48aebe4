"""What every page shares: templates, headers, assets, errors as pages."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any, Final

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from api.auth import Caller
from api.problems import ProblemError
from api.requests import CALLER
from api.ui import session

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""The pages' Content-Security-Policy: nothing inline, nothing from outside."""
_HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_YEAR: Final = 31_536_000
_DONE: Final = {"create": "created", "update": "updated", "delete": "deleted", "heal": "healed"}
"""What a pass did to a policy, by the word of the log of passes."""
_TITLES: Final = {
    401: "Log in",
    403: "This is not for you",
    404: "There is nothing here",
    503: "Out of reach",
}


def page(request: web.Request, template: str, code: int = 200, **facts: Any) -> web.Response:
    """A rendered page. ``facts`` are what the template names."""
    caller: Caller | None = request.get(CALLER)
    text = (
        _environment()
        .get_template(template)
        .render(
            caller=caller,
            mark=session.mark(caller) if caller else "",
            path=request.path,
            now=datetime.now(UTC),
            **facts,
        )
    )
    return web.Response(text=text, status=code, content_type="text/html", headers=_HEADERS)


async def page_aside(
    request: web.Request, template: str, facts: Callable[[], Mapping[str, Any]], code: int = 200
) -> web.Response:
    """A page that may be long, made in a thread with its ``facts``, which are pure: requests are served meanwhile."""
    return await asyncio.to_thread(lambda: page(request, template, code, **facts()))


def see_other(location: str) -> web.Response:
    """303: go there with GET."""
    return web.Response(status=303, headers={**_HEADERS, "Location": location})


def problem_page(request: web.Request, problem: ProblemError, request_id: str) -> web.Response:
    """An error, for a person. Who is not logged in is led to where one can."""
    if problem.status == 401 and request.path != "/login":  # noqa: PLR2004 unauthorized
        return see_other(session.login_address(request))
    title = _TITLES.get(problem.status, "Something is wrong")
    response = page(request, "problem.html", problem.status, title=title, problem=problem, request_id=request_id)
    response.headers.update({name: value for name, value in problem.headers.items() if name != "WWW-Authenticate"})
    return response


async def asset(request: web.Request) -> web.Response:
    """A file of this package, which its address names by content: it may be kept for ever."""
    name = request.match_info["name"]
    found = next((body for address, body in _assets().values() if address == f"/ui/assets/{name}"), None)
    if found is None:
        raise ProblemError(404, "not_found", "there is no such file")
    headers = {"Cache-Control": f"public, max-age={_YEAR}, immutable"}
    return web.Response(body=found, content_type=_TYPES[name.rpartition(".")[2]], charset="utf-8", headers=headers)


@cache
def _assets() -> dict[str, tuple[str, bytes]]:
    """Address and bytes of each asset, by its name."""
    found = {}
    for file in resources.files("api.ui").joinpath("assets").iterdir():
        stem, _, kind = file.name.rpartition(".")
        if kind in _TYPES:
            body = file.read_bytes()
            found[file.name] = (f"/ui/assets/{stem}.{hashlib.sha256(body).hexdigest()[:16]}.{kind}", body)
    return found


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("api.ui"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["asset"] = lambda name: _assets()[name][0]
    environment.filters |= {
        "short": short,
        "clock": clock,
        "ago": ago,
        "seconds": seconds,
        "person": person,
        "words": words,
        "done": lambda operation: _DONE.get(operation, operation),
    }
    return environment


def short(revision: str | None) -> str:
    """The first digits of a commit, or of a revision's."""
    return "none" if revision is None else revision.rpartition(":")[2][:12]


def clock(text: str | None) -> str:
    """A time as people read it: UTC, to the second."""
    return "" if not text else text[:19].replace("T", " ") + " UTC"


def ago(text: str | None, now: datetime) -> str:
    """How long ago that was, in one unit."""
    try:
        past = max(0, int((now - datetime.fromisoformat(text or "")).total_seconds()))
    except (ValueError, TypeError):
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if past >= size:
            return f"{past // size} {unit} ago"
    return f"{past} s ago"


def seconds(value: float | None) -> str:
    """A duration in milliseconds, or from ten seconds on in seconds."""
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 10 else f"{value:.1f} s"  # noqa: PLR2004 where milliseconds say nothing


def words(text: str) -> Markup:
    """A message: escaped, with `backquotes` as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup().join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def person(author: str | None) -> str:
    """A name without the address."""
    return (author or "").partition(" <")[0]
