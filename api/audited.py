"""One audit event for every attempt to write, whatever its end; written before the answer is given."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from reconciler.audit import AuditEvent, AuditSink, Journal
from reconciler.core.errors import RegopsError
from reconciler.metrics import AuditMetrics

log = logging.getLogger(__name__)

ANONYMOUS: Final = "anonymous"


@dataclass(slots=True)
class Attempt:
    """What is known of an attempt so far; handlers fill it in."""

    action: str
    resource: str
    actor: str = ANONYMOUS
    result: str | None = None
    etag_before: str | None = None
    etag_after: str | None = None
    commit: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))


ATTEMPT = web.RequestKey("attempt", Attempt)
DRY: Final = frozenset({"true", "1", ""})
"""Values of ``?dry_run=`` that mean yes."""
_ROLLBACK: Final = ":rollback"
_ADMIN: Final = {f"/admin/{word}": word for word in ("sync", "suspend", "resume", "confirm")}
"""Actions by path. A closed list: the action is a metric's label, and strangers choose paths freely."""
_VERBS: Final = {"PUT": "put", "PATCH": "patch", "DELETE": "delete"}


def attempt_of(request: web.Request) -> Attempt | None:
    """The attempt that this request is; ``None`` for one that cannot change anything."""
    if request.path in _ADMIN and request.method == "POST":
        return Attempt(_ADMIN[request.path], "reconciler")
    verb = _VERBS.get(request.method)
    if request.method == "POST" and request.path.endswith(_ROLLBACK):
        verb = "rollback"
    if verb is None or not request.path.startswith("/policies/") or request.query.get("dry_run") in DRY:
        return None
    name = request.path.removeprefix("/policies/").removesuffix(_ROLLBACK)
    return Attempt(verb, name if name == "platform" else f"projects/{name}")


class Auditor:
    """Writes the events of this replica."""

    def __init__(self, sink: AuditSink, journal: Journal, metrics: AuditMetrics) -> None:
        self._sink = sink
        self._journal = journal
        self._metrics = metrics

    async def record(self, request: web.Request, attempt: Attempt, result: str, request_id: str) -> None:
        """Never fails: what could not be logged stays in the journal, and is counted."""
        if self._emit(request, attempt, result, request_id):
            await self._journal.logged(attempt.id)

    def cut_off(self, request: web.Request, attempt: Attempt, request_id: str) -> None:
        """The request was ended with the server. What became of a commit that was sent is told from the journal when
        a server starts again."""
        if attempt.result is not None or not self._journal.is_open(attempt.id):
            self._emit(request, attempt, "cut_off", request_id)
            self._journal.close(attempt.id)

    def _emit(self, request: web.Request, attempt: Attempt, result: str, request_id: str) -> bool:
        event = AuditEvent(
            id=attempt.id,
            actor=attempt.actor,
            action=attempt.action,
            resource=attempt.resource,
            result=attempt.result or result,
            request_id=request_id,
            client_ip=request.remote,
            etag_before=attempt.etag_before,
            etag_after=attempt.etag_after,
            commit=attempt.commit,
        )
        try:
            self._sink.emit(event)
        except RegopsError as error:
            self._metrics.failures.inc()
            log.warning("audit event not written", extra={"request_id": request_id, "reason": error.reason})
            return False
        self._metrics.events.labels(event.action, event.result).inc()
        return True
