"""Errors as RFC 9457 problem+json, request ids, and one log line a request: one middleware, one table."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from aiohttp import web

from reconciler.core.errors import TransientError
from reconciler.core.model import FileError
from reconciler.metrics import ApiMetrics

log = logging.getLogger("api.request")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CODES = {
    400: "validation_error",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
    503: "unavailable",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemError(Exception):
    """An answer that is an error; ``code`` is API, ``message`` is for a person."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        errors: Sequence[FileError] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.errors = errors
        self.headers = headers or {}


def middleware(metrics: ApiMetrics) -> Any:
    """Give each request an id, turn every error into a problem, count and log."""

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("X-Request-ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        started = time.perf_counter()
        response = await _answer(request, handler, request_id)
        seconds = time.perf_counter() - started
        response.headers["X-Request-ID"] = request_id
        response.headers["X-Content-Type-Options"] = "nosniff"
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "unknown"
        metrics.requests.labels(route, request.method, str(response.status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        log.info(
            "request",
            extra={
                "request_id": request_id,
                "method": request.method,
                "path": request.path,
                "status": response.status,
                "latency_ms": round(seconds * 1000, 2),
            },
        )
        return response

    return handle


async def _answer(request: web.Request, handler: Handler, request_id: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except ProblemError as problem:
        return _problem(problem, request_id)
    except web.HTTPException as error:
        if error.status < web.HTTPBadRequest.status_code:
            raise
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        code = _CODES.get(error.status, "http_error")
        return _problem(ProblemError(error.status, code, error.reason, headers=headers), request_id)
    except TransientError as error:
        return _problem(ProblemError(503, "unavailable", str(error), headers={"Retry-After": "1"}), request_id)
    except Exception:
        log.exception("request failed unexpectedly", extra={"request_id": request_id})
        return _problem(ProblemError(500, "internal_error", "an error of regops: see its log"), request_id)


def _problem(problem: ProblemError, request_id: str) -> web.Response:
    body = {
        "type": "about:blank",
        "title": problem.code.replace("_", " "),
        "status": problem.status,
        "code": problem.code,
        "detail": problem.message,
        "request_id": request_id,
        "errors": [asdict(error) for error in problem.errors],
    }
    response = web.json_response(body, status=problem.status, headers=problem.headers)
    response.content_type = "application/problem+json"
    return response
