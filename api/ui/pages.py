"""The pages: each gathers what it shows by the same functions as the API, narrowed for the same callers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, Caller, may_read, path_segments
from api.fleet_at import present
from api.passes import narrowed_pass
from api.policy_status import policy_view
from api.problems import ProblemError
from api.requests import authorized, caller_of, number, policy_of
from api.statusview import Observed, counted, narrowed, narrowed_agents, status_document
from api.ui import session
from api.ui.comparing import Compared, broken_in, compared, shown_of
from api.ui.frame import page, page_aside, see_other
from api.ui.plot import plot_of
from api.ui.trying import CannotTryError, rules_of
from api.versions import item_of
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.model import PolicyName
from reconciler.core.passes import PassRecord

_CELLS: Final = 400
"""Agents that the overview's matrix shows, the stragglers first; the others are counted."""
_ROWS: Final = 200
_RECENT: Final = 8
_POLICIES: Final = 100
_VERSIONS: Final = 20
_HISTORY: Final = 50
_TEXT: Final = 262_144
"""Bytes of a policy's text that a page shows."""
_AWAY: Final = "etcd cannot be read"
_ORDER: Final = {"unknown": 1, "behind": 0, "current": 2}


def _readable(caller: Caller) -> Callable[[PolicyName], bool]:
    return lambda name: may_read(caller, name)


# --- overview, fleet, history ----------------------------------------------------------------------------------------


async def overview(request: web.Request) -> web.Response:
    """What is live, what is held and why, who enforces it, what happened last."""
    caller = await authorized(request, None, Action.READ)
    seen, place = await request.app[keys.OBSERVER].look(), request.app[keys.PLACE]
    known, passes_error = await _passes(request, seen)

    def facts() -> dict[str, Any]:
        now = datetime.now(UTC)
        agents, passes = _agents(seen, known, place["branch"], caller, now), _entries(known, caller)
        return {
            "status": narrowed(status_document(seen, place, now), _readable(caller)),
            "agents": agents[:_CELLS],
            "agents_more": max(0, len(agents) - _CELLS),
            "stragglers": [each for each in agents if each["status"] != "current" or each["error"]][:_ROWS],
            "fleet_error": "" if seen.reachable else _AWAY,
            "passes": passes[:_RECENT],
            "passes_error": passes_error,
            "plot": plot_of(passes),
            "admin": caller.is_admin,
        }

    return await page_aside(request, "overview.html", facts)


async def fleet(request: web.Request) -> web.Response:
    """Each OPA in a row."""
    caller = await authorized(request, None, Action.READ)
    start = number(request, "page", 1, 10_000)
    seen, place = await request.app[keys.OBSERVER].look(), request.app[keys.PLACE]
    known, _ = await _passes(request, seen)

    def facts() -> dict[str, Any]:
        now = datetime.now(UTC)
        agents = _agents(seen, known, place["branch"], caller, now)
        return {
            "agents": agents[(start - 1) * _ROWS : start * _ROWS],
            "totals": status_document(seen, place, now)["fleet"],
            "number": start,
            "pages": max(1, -(-len(agents) // _ROWS)),
            "fleet_error": "" if seen.reachable else _AWAY,
        }

    return await page_aside(request, "fleet.html", facts)


async def history(request: web.Request) -> web.Response:
    """Every pass that the log has."""
    caller = await authorized(request, None, Action.READ)
    start = number(request, "page", 1, 100)
    known, error = await _passes(request)
    pages = max(1, -(-len(known) // _HISTORY))

    def facts() -> dict[str, Any]:
        passes = _entries(known, caller)
        shown = passes[(start - 1) * _HISTORY : start * _HISTORY]
        return {"passes": shown, "passes_error": error, "plot": plot_of(passes), "number": start, "pages": pages}

    return await page_aside(request, "history.html", facts)


async def _passes(request: web.Request, seen: Observed | None = None) -> tuple[Sequence[PassRecord], str]:
    """The log of passes; what was last known of it, and why, while etcd cannot be read. It is not asked again where
    that was ``seen`` already: each question takes its time to fail."""
    observer = request.app[keys.OBSERVER]
    if seen is not None and not seen.reachable:
        return observer.last_passes, _AWAY
    try:
        return await observer.passes(), ""
    except RegopsError:
        return observer.last_passes, _AWAY


def _entries(passes: Sequence[PassRecord], caller: Caller) -> list[dict[str, Any]]:
    return [narrowed_pass(each.document(), _readable(caller)) for each in passes]


def _agents(
    seen: Observed, passes: Sequence[PassRecord], branch: str, caller: Caller, now: datetime
) -> list[dict[str, Any]]:
    """Stragglers first. While etcd cannot be read those that were known last, each one unknown."""
    found = [present(each, seen, branch, passes) for each in counted(seen, now)]
    return _stragglers_first(narrowed_agents(found, _readable(caller)))


def _stragglers_first(agents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(agents, key=lambda each: (_ORDER[each["status"]], each["datacentre"], each["id"]))


# --- policies --------------------------------------------------------------------------------------------------------


async def policies(request: web.Request) -> web.Response:
    """Every policy in a row, held ones first; ``?q=`` looks for a part of the name."""
    caller = await authorized(request, None, Action.READ)
    query, start = request.query.get("q", "").strip().lower()[:80], number(request, "page", 1, 100_000)
    view = await policy_view(request.app)
    names = view.names(lambda name: query in name and may_read(caller, name))
    names.sort(key=lambda name: (name not in view.seen.held, name))
    facts = {
        "items": [view.item(name) for name in names[(start - 1) * _POLICIES : start * _POLICIES]],
        "query": query,
        "number": start,
        "pages": max(1, -(-len(names) // _POLICIES)),
        "total": len(names),
        "reachable": view.seen.reachable,
    }
    return await page_aside(request, "policies.html", lambda: facts)


async def policy(request: web.Request) -> web.Response:
    """One policy: what is live, what is held, its versions, the difference of two, and a decision to try."""
    name = policy_of(request)
    caller = await _reader(request, name)
    return await _policy_page(request, name, caller)


async def try_decision(request: web.Request) -> web.Response:
    """A decision of this policy, on its page."""
    name = policy_of(request)
    caller = await _reader(request, name)
    fields = await session.form_of(request)
    session.check_mark(fields, session.mark(caller))
    rule, text = fields.get("rule", ""), fields.get("input", "")
    trial: dict[str, Any] = {"rule": rule, "input": text, "decision": None, "error": ""}
    status = 200
    try:
        trial["decision"] = await request.app[keys.TRIAL].decide(name, rule, text)
    except CannotTryError as error:
        trial["error"], status = str(error), 400
    except TransientError as error:
        trial["error"], status = str(error), 503
    return await _policy_page(request, name, caller, trial, status)


async def _reader(request: web.Request, name: PolicyName) -> Caller:
    """The caller, who may read this policy, here and by the API.

    The platform's policy is asked about the page, and about the route of the API that gives the same text: what it
    refuses there is not shown here. A decision that is tried changes nothing, so that it is asked for as a GET.
    """
    caller = caller_of(request)
    for path in (path_segments(request.rel_url), ("policies", name.removeprefix("projects/"))):
        await request.app[keys.AUTHORIZER].authorize(caller, "GET", path, policy=name, action=Action.READ)
    return caller


async def _policy_page(
    request: web.Request, name: PolicyName, caller: Caller, trial: dict[str, Any] | None = None, status: int = 200
) -> web.Response:
    view = await policy_view(request.app)
    past, missing = await _versions(request, name)
    if name not in view.known and not past:
        raise ProblemError(404, "not_found", f"there never was a policy {name}")
    live = view.state.policies.get(name)
    known, _ = await _passes(request, view.seen)
    found = await compared(request, name, broken_in(past) if name in view.seen.held else None) if past else Compared()

    def facts() -> dict[str, Any]:
        rules = rules_of(name, live.content.rego) if live else []
        agents = _stragglers_first(narrowed_agents(view.enforced_by(name, known), _readable(caller)))
        return {
            "item": view.item(name),
            "address": address_of(name),
            "reachable": view.seen.reachable,
            "rego": _shown(live.content.rego) if live else None,
            "data": _shown(live.content.data) if live and live.content.data is not None else None,
            "agents": agents[:_ROWS],
            "agents_more": max(0, len(agents) - _ROWS),
            "versions": past,
            "missing": missing,
            "compared": found,
            "difference": shown_of(found),
            "rules": rules,
            "trial": trial or {"rule": _first(rules), "input": "{}", "decision": None, "error": ""},
        }

    return await page_aside(request, "policy.html", facts, status)


def address_of(name: str) -> str:
    """Where the page of a policy is."""
    return f"/ui/policies/{name}"


def _first(rules: Sequence[str]) -> str:
    """What is most likely asked for."""
    return next((each for each in rules if each.rpartition("/")[2] == "allow"), rules[0] if rules else "allow")


def _shown(text: bytes) -> str:
    cut = text[:_TEXT].decode("utf-8", "replace")
    return cut if len(text) <= _TEXT else f"{cut}\n… and {len(text) - _TEXT} bytes more"


async def _versions(request: web.Request, name: PolicyName) -> tuple[list[dict[str, Any]], str]:
    state = request.app[keys.MIRROR].state
    live = state.policies.get(name) if state else None
    try:
        past = await request.app[keys.HISTORY].versions(name, limit=_VERSIONS)
    except RegopsError as error:
        return [], str(error)
    return [item_of(each, live.meta.commit if live else None) for each in past.versions], past.missing


# --- logging in and out ----------------------------------------------------------------------------------------------


async def login(request: web.Request) -> web.Response:
    """The form, or with ``?ticket=`` the log-in itself."""
    ticket = request.query.get("ticket")
    if ticket is not None:
        token = await session.token_for(request.app[keys.TICKETS], ticket)
        if token is None:
            return _login_form(request, 401, "This link is not known here, or has had its time. Log in with a token.")
        return await _logged_in(request, token, "/")
    expired = "Your session is over, or its token does not count any more. Log in again."
    return _login_form(request, 200, expired if session.had_session(request) else "")


async def log_in(request: web.Request) -> web.Response:
    """A token from the form."""
    fields = await session.form_of(request)
    session.check_login_mark(request, fields)
    token = fields.get("token", "").strip().removeprefix("Bearer ").strip()
    if not token:
        return _login_form(request, 400, "Paste a token first.", fields.get("next"))
    return await _logged_in(request, token, session.wanted(fields.get("next")))


async def _logged_in(request: web.Request, token: str, target: str) -> web.Response:
    if len(token) > session.LONGEST:
        said = f"This token has {len(token)} characters; a browser's cookie holds {session.LONGEST}."
        return _login_form(request, 400, f"{said} Ask for one with fewer claims.", target)
    try:
        caller = await request.app[keys.VERIFIER].verify(f"Bearer {token}")
    except ProblemError as problem:
        return _login_form(request, problem.status, f"This token does not count: {problem.message}", target)
    except TransientError as error:
        return _login_form(request, 503, f"The token cannot be verified now: {error}", target)
    response = see_other(target)
    session.begin(request, response, caller, token)
    return response


async def log_out(request: web.Request) -> web.Response:
    """The cookie is taken away. The token itself lasts as long as it says."""
    fields = await session.form_of(request)
    session.check_mark(fields, session.mark(caller_of(request)))
    response = see_other("/login")
    session.end(request, response)
    return response


def _login_form(request: web.Request, status: int, message: str, target: str | None = None) -> web.Response:
    asked = session.wanted(target if target is not None else request.query.get("next"))
    scratch = web.Response()
    mark = session.login_mark(request, scratch)
    response = page(request, "login.html", status, message=message, next=asked, form=mark)
    response.cookies.update(scratch.cookies)
    return response
