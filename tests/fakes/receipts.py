"""The record of receipts in memory. The contract suite keeps it honest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from fakes.record import _Faulty
from reconciler.core.enforcement import FORGOTTEN_AFTER, Interval


class InMemoryReceipts(_Faulty):
    """Implements `ReceiptStore`."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[tuple[str, datetime, str], Interval] = {}
        self.marked: dict[str, datetime] = {}

    async def write(self, intervals: Sequence[Interval]) -> None:
        await self._called("write")
        for each in intervals:
            old = self.stored.get(each.key)
            if old is None or old.seen <= each.seen:
                self.stored[each.key] = each

    async def open(self, datacentres: Collection[str]) -> Sequence[Interval]:
        await self._called("open")
        return [each for each in self.stored.values() if each.until is None and each.datacentre in datacentres]

    async def mark(self, datacentres: Collection[str], at: datetime) -> None:
        await self._called("mark")
        for name in datacentres:
            self.marked[name] = max(at, self.marked.get(name, at))

    async def marks(self) -> Mapping[str, datetime]:
        await self._called("marks")
        return dict(self.marked)

    async def at(self, at: datetime) -> Sequence[Interval]:
        await self._called("at")
        begun = [each for each in self.stored.values() if each.since <= at]
        begun.sort(key=lambda each: (each.since, each.seen))
        lasts = {each.agent: each for each in begun}
        return [each for each in lasts.values() if each.until is None or each.until > at - FORGOTTEN_AFTER]

    async def since(self, at: datetime, *, limit: int) -> Sequence[Interval]:
        await self._called("since")
        found = [each for each in self.stored.values() if each.since >= at]
        return sorted(found, key=lambda each: each.since)[:limit]

    async def begins(self) -> datetime | None:
        await self._called("begins")
        return min((each.since for each in self.stored.values()), default=None)

    def intervals(self, agent: str) -> list[Interval]:
        """One agent's, oldest first."""
        found = [each for each in self.stored.values() if each.agent == agent]
        return sorted(found, key=lambda each: (each.since, each.seen))
