"""After a crash: the audit events of commits that were sent and perhaps not logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Final

from reconciler.audit import AuditEvent, AuditSink, Journal, Line
from reconciler.core.errors import RegopsError
from reconciler.core.ports import Source

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 1.0
_PATIENCE: Final = 60.0
"""Seconds for which a push may outlive the process that began it: the remote's hooks go on without it."""


async def recover(journal: Journal, left: Mapping[str, Sequence[Line]], sink: AuditSink, source: Source) -> None:
    """Write an event, marked ``recovered``, for every attempt that a former process left in its journal.

    A commit that the branch contains was made (``committed``). One that it does not contain never will be once the
    branch is elsewhere (``not_committed``); while it could still come, it is waited for, in the end in vain
    (``outcome_unknown``).
    """
    open_attempts, deadline = dict(left), monotonic() + _PATIENCE
    while open_attempts:
        try:
            await _recover(journal, open_attempts, sink, source, hopes=monotonic() < deadline)
        except RegopsError as error:
            log.warning("audit journal waits", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            if open_attempts:
                await asyncio.sleep(_LOOK_SECONDS)
    if left:
        log.info("audit journal recovered", extra={"events": len(left)})
    await asyncio.to_thread(journal.forget)


async def _recover(
    journal: Journal, left: dict[str, Sequence[Line]], sink: AuditSink, source: Source, *, hopes: bool
) -> None:
    """Deal with what can be told now, and take it out of ``left``."""
    head = await source.fetch()
    for attempt, lines in list(left.items()):
        commits = [line["commit"] for line in lines]
        made = [commit for commit in commits if await source.contains(head, commit)]
        # The push was for the very head that the branch still has, so that it may come at any moment.
        pending = [commit for commit in commits if not made and await source.contains(commit, head)]
        if pending and hopes:
            continue
        result = "committed" if made else "outcome_unknown" if pending else "not_committed"
        # It may have died after the event was written and before the journal said so.
        if not await asyncio.to_thread(sink.holds, attempt):
            sink.emit(
                AuditEvent(
                    id=attempt,
                    actor=lines[-1]["actor"],
                    action="write",
                    resource=lines[-1]["policy"],
                    result=result,
                    request_id=lines[-1]["request_id"],
                    commit=next(iter(made or pending[-1:]), None),
                    recovered=True,
                )
            )
        del left[attempt]
        await asyncio.to_thread(journal.recovered, attempt)
