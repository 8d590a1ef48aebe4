"""The leader's status in etcd, for every replica to show."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from reconciler.core.conditions import StatusRecord, carry_over, while_working, without_work
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Fence, KeyValueStore, Put, Range, Transaction
from reconciler.core.records import Requested

log = logging.getLogger(__name__)


class StatusKeeper:
    """Keeps the leader's status in etcd: written when it changed, read once when leadership begins."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace, *, source: Mapping[str, str], leader: str) -> None:
        self._store = store
        self._keyspace = keyspace
        self._published: StatusRecord | None = None
        self._publishing = asyncio.Lock()
        self.record = StatusRecord(
            conditions=(),
            source=source,
            last_attempted_revision=None,
            last_handled_reconcile_at=None,
            blocked_deletions=(),
            ignored_files=(),
            leader=leader,
            at="",
        )

    async def load(self) -> None:
        """Take over what the former leader found, so that transition times and notices survive it.

        What this replica published under an earlier leadership says nothing about what is there now.
        """
        self._published = None
        kvs = (await self._store.read(Range(self._keyspace.status))).ranges[0]
        try:
            former = StatusRecord.decode(kvs[0].value) if kvs else None
        except (ValueError, TypeError, KeyError):
            former = None
        if former is not None:
            found = without_work(former.conditions)
            self.record = replace(former, source=self.record.source, leader=self.record.leader, conditions=found)

    async def requested(self) -> str | None:
        """The token of the last request; ``None`` where there is none or etcd does not answer."""
        try:
            kvs = (await self._store.read(Range(self._keyspace.requested))).ranges[0]
            return Requested.decode(kvs[0].value).token if kvs else None
        except (RegopsError, ValueError, TypeError, KeyError):
            return None

    async def publish(self, fence: Fence, record: StatusRecord, now: str) -> None:
        """Write the record when something in it changed. An etcd that is away is no error here: it shows as Unknown."""
        async with self._publishing:
            self.record = record
            await self._publish(fence, record, now)

    async def work(self, fence: Fence, says: Callable[[], str | None], now: str) -> None:
        """Show what takes long, as ``says`` puts it once it is its turn; where that is nothing any more, `record`.

        What a pass has found stays in `record`: progress is shown, and not remembered.
        """
        async with self._publishing:
            message, shown = says(), self.record
            if message is not None:
                before = (self._published or self.record).conditions
                found = carry_over(while_working(message, self.record.conditions), before, now)
                shown = replace(self.record, conditions=found)
            if shown.conditions:
                await self._publish(fence, shown, now)

    async def _publish(self, fence: Fence, record: StatusRecord, now: str) -> None:
        if self._published is not None and replace(record, at="") == replace(self._published, at=""):
            return
        put = Put(self._keyspace.status, replace(record, at=now).encode())
        try:
            outcome = await self._store.commit(Transaction((fence.compare(),), (put,)))
        except RegopsError as error:
            log.warning("status not published", extra={"reason": error.reason})
            return
        if outcome.succeeded:
            self._published = record
