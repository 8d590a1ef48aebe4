"""What happens before the middleware: requests that cannot be read, and ``Expect``."""

from __future__ import annotations

import logging
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from api.problems import ProblemError

LOG: Final = logging.getLogger("api.wire")
"""What aiohttp's own server logs to."""
_CONTINUE: Final = "100-continue"


class _WithoutTheRequest(logging.Filter):
    """aiohttp repeats the line that it could not read, and that may be the one with the token."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            record.msg, record.args, record.exc_info = "request cannot be read", (), None
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
            record.reason = type(error).__name__
        return True


LOG.addFilter(_WithoutTheRequest())


async def expect(request: web.Request) -> None:
    """Send on who asks whether to (RFC 9110 section 10.1.1). Other expectations are refused by `check_expectation`: by
    the middleware, so that the refusal is a problem with a request id, in the log, and in the audit trail."""
    if request.version >= HttpVersion11 and _expected(request) == _CONTINUE:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp does: the answer has not begun


def check_expectation(request: web.Request) -> None:
    """Raises the 417."""
    if request.version >= HttpVersion11 and _expected(request) not in {"", _CONTINUE}:
        raise ProblemError(417, "expectation_failed", "nothing but `Expect: 100-continue` can be met: leave it out")


def _expected(request: web.Request) -> str:
    return request.headers.get("Expect", "").strip().lower()
