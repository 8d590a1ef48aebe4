"""Around every request: its id, its caller, its audit event, its log line, and errors as problems."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from api import keys
from api.audited import ATTEMPT, attempt_of
from api.auth import authorization_of
from api.problems import ProblemError, problem_of
from api.requests import CALLER
from api.wire import check_expectation

log = logging.getLogger("api.request")

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
OPEN: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})
"""Routes that need no token."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one middleware."""
    given = request.headers.get("X-Request-ID", "")
    request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    request[REQUEST_ID] = request_id
    started = time.perf_counter()
    response, result = await _answer(request, handler, request_id)
    response.headers["X-Request-ID"] = request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    _account(request, response.status, time.perf_counter() - started, request_id)
    attempt = request.get(ATTEMPT)
    if attempt is not None:
        await request.app[keys.AUDITOR].record(request, attempt, result, request_id)
    return response


async def _answer(request: web.Request, handler: Handler, request_id: str) -> tuple[web.StreamResponse, str]:
    """The answer, and its word for the audit event."""
    attempt = attempt_of(request)
    if attempt is not None:
        request[ATTEMPT] = attempt
    try:
        check_expectation(request)
        if request.path not in OPEN:
            request[CALLER] = caller = await request.app[keys.VERIFIER].verify(authorization_of(request.headers))
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
        return problem.response(request_id), problem.code
    return response, "done"


def _account(request: web.Request, status: int, seconds: float, request_id: str) -> None:
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "unknown"
    metrics = request.app[keys.METRICS]
    metrics.requests.labels(route, _method(request), str(status)).inc()
    metrics.seconds.labels(route).observe(seconds)
    extra: dict[str, Any] = {
        "request_id": request_id,
        "method": request.method,
        "path": request.path,
        "status": status,
        "latency_ms": round(seconds * 1000, 2),
    }
    log.info("request", extra=extra)


def _method(request: web.Request) -> str:
    """A label value: strangers choose methods freely."""
    known = {"GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "OPTIONS"}
    return request.method if request.method in known else "other"
