"""What the record of receipts needs from its database. See `reconciler.core.record_ports` for the rules: it is a
projection, every write may be repeated, and several recorders may write at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from reconciler.core.enforcement import Interval


class ReceiptStore(Protocol):
    """What every OPA enforced, from when to when. Times are UTC, to the millisecond."""

    async def write(self, intervals: Sequence[Interval]) -> None:
        """Insert or replace these, each by its `Interval.key`; where a word with a later ``seen`` is there, that
        stays. What has ended is kept for some days, what lasts for ever."""
        ...

    async def open(self, datacentres: Collection[str]) -> Sequence[Interval]:
        """The intervals of these datacentres' agents that have no end."""
        ...

    async def mark(self, datacentres: Collection[str], at: datetime) -> None:
        """Everything that is open of these datacentres still lasted ``at`` this time; never back."""
        ...

    async def marks(self) -> Mapping[str, datetime]:
        """The last mark of each datacentre."""
        ...

    async def at(self, at: datetime) -> Sequence[Interval]:
        """Of every agent the last interval that began at or before ``at``, unless it had ended 7 days
        (`reconciler.core.enforcement.FORGOTTEN_AFTER`) before. In no order."""
        ...

    async def since(self, at: datetime, *, limit: int) -> Sequence[Interval]:
        """The intervals that began at or after ``at``, the oldest ones up to ``limit``, in the order of their
        beginning."""
        ...

    async def begins(self) -> datetime | None:
        """When the oldest interval began; ``None`` when there is none."""
        ...
