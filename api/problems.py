"""Errors as RFC 9457 problem+json: one table from what went wrong to what is answered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from aiohttp import web

from reconciler.core.errors import RefusalError, RegopsError, StalledError, TransientError
from reconciler.core.model import FileError
from reconciler.edits import DeclinedError, InvalidPolicyError, KeyReusedError, OutcomeUnknownError
from reconciler.idempotency import TooManyKeysError
from reconciler.operations import NothingToConfirmError

CONTENT_TYPE: Final = "application/problem+json"
_CODES: Final = {
    400: "validation_error",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "payload_too_large",
    415: "unsupported_media_type",
    417: "expectation_failed",
    429: "too_many_requests",
    503: "unavailable",
}


class ProblemError(RefusalError):
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
        self.errors = tuple(errors)
        self.headers = headers or {}

    def text(self, request_id: str) -> str:
        """The problem document (RFC 9457 section 3)."""
        document = {
            "type": "about:blank",
            "title": self.code.replace("_", " "),
            "status": self.status,
            "code": self.code,
            "detail": self.message,
            "request_id": request_id,
            "errors": [asdict(error) for error in self.errors],
        }
        return json.dumps(document, ensure_ascii=False)

    def response(self, request_id: str) -> web.Response:
        """The whole answer."""
        return web.Response(
            status=self.status, text=self.text(request_id), headers=self.headers, content_type=CONTENT_TYPE
        )


def problem_of(error: Exception) -> ProblemError | None:
    """The answer to what went wrong; ``None`` for what nobody foresaw."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, RefusalError):
        return _refusal(error)
    if isinstance(error, web.HTTPException):
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return ProblemError(error.status, _CODES.get(error.status, "http_error"), error.reason, headers=headers)
    if isinstance(error, TransientError | StalledError):
        retry = "1" if isinstance(error, TransientError) else "30"
        return ProblemError(503, "unavailable", str(error), headers={"Retry-After": retry})
    if isinstance(error, RegopsError) and error.outcome == "conflict":
        return ProblemError(503, "unavailable", str(error), headers={"Retry-After": "1"})
    return None


def _refusal(error: RefusalError) -> ProblemError | None:
    found: ProblemError | None = None
    match error:
        case InvalidPolicyError():
            found = ProblemError(400, "validation_error", _first(error), errors=error.errors)
        case DeclinedError():
            found = ProblemError(422, "remote_declined", f"the Git remote refused the commit: {error}")
        case KeyReusedError():
            found = ProblemError(422, "idempotency_key_reused", str(error))
        case TooManyKeysError():
            found = ProblemError(429, "too_many_requests", str(error), headers={"Retry-After": "3600"})
        case NothingToConfirmError():
            found = ProblemError(409, "conflict", str(error))
        case OutcomeUnknownError():
            remedy = f"look for commit {error.commit}, or repeat the request with the same Idempotency-Key"
            found = ProblemError(504, "outcome_unknown", f"{error}: {remedy}", headers={"Retry-After": "5"})
    return found


def _first(error: InvalidPolicyError) -> str:
    more = f" (and {len(error.errors) - 1} more)" if len(error.errors) > 1 else ""
    return f"the policy would not go live: {error.errors[0]}{more}" if error.errors else str(error)
