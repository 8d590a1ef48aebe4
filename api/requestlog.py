"""One JSON line for each request, written at a fraction of what a log record costs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted

log = logging.getLogger("api.request")


class RequestLog:
    """Lines on standard error, in the form of the process's other lines.

    The lines of one turn of the event loop are written together, so a line is late by microseconds and only a killed
    process loses one: what must survive that is the audit trail's.
    """

    def __init__(self, service: str) -> None:
        self._head = f'"service": {quoted(service)}, "level": "info", "logger": "{log.name}"'
        self._lines: list[str] = []
        self._second = (0, "")

    def add(self, request_id: str, method: str, path: str, status: int, seconds: float) -> None:
        """The request that has just been answered. ``request_id`` is plain by its grammar."""
        if not log.isEnabledFor(logging.INFO):
            return
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        self._lines.append(
            f'{{"ts": "{self._now()}", {self._head}, "message": "request", "request_id": "{request_id}", '
            f'"method": {quoted(method)}, "path": {quoted(path)}, "status": {status}, '
            f'"latency_ms": {seconds * 1000:.2f}}}\n'
        )

    def flush(self) -> None:
        """Write what was added. A reader that is gone costs the lines, never the service."""
        lines, self._lines = self._lines, []
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second[0]:
            self._second = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
        return f"{self._second[1]}.{int((now - second) * 1000):03d}Z"
