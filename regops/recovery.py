"""After a crash: the audit events of commits that were sent and perhaps not logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from reconciler.audit import AuditEvent, AuditSink, Journal
from reconciler.core.errors import RegopsError
from reconciler.core.ports import Source

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 5.0


async def recover(journal: Journal, left: Mapping[str, list[dict[str, str]]], sink: AuditSink, source: Source) -> None:
    """Write an event, marked ``recovered``, for every request that a former process left in its journal.

    A commit that the branch contains was made; one that it does not contain never arrived.
    """
    if not left:
        return
    while True:
        try:
            await _recover(left, sink, source)
        except RegopsError as error:
            log.warning("audit journal waits", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            await asyncio.to_thread(journal.forget)
            log.info("audit journal recovered", extra={"events": len(left)})
            return


async def _recover(left: Mapping[str, list[dict[str, str]]], sink: AuditSink, source: Source) -> None:
    head = await source.fetch()
    for request_id, entries in left.items():
        made = [entry["commit"] for entry in entries if await source.contains(head, entry["commit"])]
        sink.emit(
            AuditEvent(
                actor=entries[-1]["actor"],
                action="write",
                resource=entries[-1]["policy"],
                result="committed" if made else "not_committed",
                request_id=request_id,
                commit=next(iter(made), None),
                recovered=True,
            )
        )
