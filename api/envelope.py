"""Around every request: its id, its caller, its audit event, its log line, and errors as problems."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from api import keys
from api.audited import ATTEMPT, attempt_of
from api.auth import authorization_of
from api.hook_proofs import PROVIDERS
from api.problems import ProblemError, problem_of
from api.requests import CALLER, TRACE
from api.ui import session
from api.ui.frame import problem_page
from api.wire import check_expectation
from reconciler.core.tracing import Tracer, context_of

log = logging.getLogger("api.request")

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
OPEN: Final = frozenset(
    {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", *(f"/hooks/{name}" for name in PROVIDERS)}
)
"""Routes that need no token; hooks have proofs of their own."""
_OPEN_BELOW: Final = ("/ui/assets/", "/hooks/")
"""The page's own files, and hooks also by a name that there is not: a Git host has no token to be asked for."""
UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics", "/events"})
"""Routes without a span: probes and scrapes, each of which would be a trace of its own, and a stream, whose span
would last as long as somebody listens."""
STREAMED: web.RequestKey[float] = web.RequestKey("streamed", float)
"""When a stream began: its answer was given then, however long it lasts (`time.perf_counter`)."""
_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "OPTIONS"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one middleware."""
    started = time.perf_counter()
    request[REQUEST_ID] = request_id = _request_id(request.headers.get("X-Request-ID"))
    tracer = request.app[keys.TRACER]
    if tracer.enabled and request.path not in UNTRACED:
        response, result = await _traced(request, handler, request_id, tracer)
    else:
        response, result = await _answer(request, handler, request_id)
    if not response.prepared:  # a stream has said so itself
        response.headers["X-Request-ID"] = request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
    until = request.get(STREAMED, time.perf_counter())
    _account(request, response.status, until - started, request_id)
    attempt = request.get(ATTEMPT)
    if attempt is not None:
        await request.app[keys.AUDITOR].record(request, attempt, result, request_id)
    return response


async def _traced(
    request: web.Request, handler: Handler, request_id: str, tracer: Tracer
) -> tuple[web.StreamResponse, str]:
    """`_answer` in a span of its own, in the caller's trace where it has one."""
    route, method = _route(request), request.method if request.method in _METHODS else "other"
    given = context_of(request.headers.get("traceparent"), request.headers.getall("tracestate", ()))
    with tracer.span(f"{method} {route}", given, "server") as span:
        request[TRACE] = span.context
        response, result = await _answer(request, handler, request_id)
        span.tell(http__request__method=method, http__route=route, http__response__status_code=response.status)
        if response.status >= 500:  # noqa: PLR2004 errors of the server
            span.fail(str(response.status))
    return response, result


async def _answer(request: web.Request, handler: Handler, request_id: str) -> tuple[web.StreamResponse, str]:
    """The answer, and its word for the audit event."""
    attempt = attempt_of(request)
    if attempt is not None:
        request[ATTEMPT] = attempt
    try:
        check_expectation(request)
        if not _open(request):
            shown = session.presented(request, authorization_of(request.headers))
            request[CALLER] = caller = await request.app[keys.VERIFIER].verify(shown)
            if attempt is not None:
                attempt.actor = caller.sub
        response = await handler(request)
    except asyncio.CancelledError:
        if attempt is not None:
            request.app[keys.AUDITOR].cut_off(request, attempt, request_id)
        raise
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            log.exception("request failed unexpectedly", extra={"request_id": request_id})
            problem = ProblemError(500, "internal_error", "an error of regops: see its log")
        if session.is_page(request):
            return problem_page(request, problem, request_id), problem.code
        return problem.response(request_id), problem.code
    return response, "done"


def _open(request: web.Request) -> bool:
    """Whether no token is needed: also for where one logs in."""
    return request.path in OPEN or request.path == "/login" or request.path.startswith(_OPEN_BELOW)


def _request_id(given: str | None) -> str:
    """The caller's where it is sane, else one that nobody else has; it is no secret."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(64):016x}"


def _route(request: web.Request) -> str:
    """By its template."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else "unknown"


def _account(request: web.Request, status: int, seconds: float, request_id: str) -> None:
    route = _route(request)
    method = request.method
    # A label value: strangers choose methods freely.
    request.app[keys.METRICS].answered(route, method if method in _METHODS else "other", status, seconds)
    request.app[keys.REQUEST_LOG].add(request_id, method, request.path, status, seconds)
