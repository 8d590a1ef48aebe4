"""What this replica sees of the whole system: one linearizable read of etcd for each look, and little work beside it.

Records are decoded once for each version of theirs, and live policies are counted in the mirror where it is at the
commit that was read: a look costs as much as what moves, also with thousands of policies and agents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from api.statusview import Observed
from reconciler.agent.mirror import Mirror
from reconciler.core.conditions import StatusRecord
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.passes import PassRecord
from reconciler.core.ports import KeyValue, KeyValueStore, Range
from reconciler.core.records import Applied, Held, Receipt, Record, Suspended
from reconciler.core.silence import FORGET_AFTER
from reconciler.core.times import rfc3339

_REMEMBERED: Final = 20_000


class Observer:
    """Looks at etcd for the status; remembers the last look for when etcd is away."""

    def __init__(
        self, store: KeyValueStore, keyspace: Keyspace, mirror: Mirror, *, forget_after: timedelta = FORGET_AFTER
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._mirror = mirror
        self._decoded: dict[str, tuple[bytes, Record | None]] = {}
        self._began = _now()
        self._forget_after = forget_after
        self.last = Observed(since=self._began, forget_after=forget_after)
        self.last_passes: tuple[PassRecord, ...] = ()

    async def look(self) -> Observed:
        """What is there now; what was there last, marked as out of reach, when etcd cannot be read."""
        try:
            self.last = await self.read()
        except RegopsError:
            if self.last.reachable:
                self.last = replace(self.last, reachable=False, since=_now())
        return self.last

    async def read(self) -> Observed:
        """What is there now. Raises what the store raises."""
        space = self._keyspace
        read = await self._store.read(
            Range(space.status),
            Range(space.applied),
            Range(space.suspended),
            Range(space.helds, prefix=True),
            Range(space.receipts, prefix=True),
            Range(space.alives, prefix=True, keys_only=True),
            Range(space.leader),
        )
        record, applied, suspended, helds, receipts, alives, leader = read.ranges
        held = {kv.key.removeprefix(space.helds): self._record(Held, kv) for kv in helds}
        found = (self._record(Receipt, kv) for kv in receipts)
        now = self._first(Applied, applied)
        return Observed(
            record=self._first(StatusRecord, record),
            applied=now,
            suspended=(self._first(Suspended, suspended) or Suspended("", "", "")) if suspended else None,
            held={name: value for name, value in held.items() if value is not None},
            live=await self._live(now),
            receipts=tuple(receipt for receipt in found if receipt is not None),
            alive=frozenset(kv.key.removeprefix(space.alives) for kv in alives),
            led=bool(leader),
            since=self._began,
            forget_after=self._forget_after,
        )

    async def passes(self) -> tuple[PassRecord, ...]:
        """The log of passes, newest first. Raises what the store raises."""
        kvs = (await self._store.read(Range(self._keyspace.passes, prefix=True))).ranges[0]
        newest = sorted(kvs, key=lambda kv: kv.create_revision, reverse=True)
        found = (self._record(PassRecord, kv) for kv in newest)
        self.last_passes = tuple(record for record in found if record is not None)
        return self.last_passes

    async def _live(self, applied: Applied | None) -> int:
        """How many policies are live."""
        state = self._mirror.state
        if applied is not None and state is not None and state.applied is not None and state.applied.id == applied.id:
            return len(state.policies)
        return len((await self._store.read(Range(self._keyspace.metas, prefix=True, keys_only=True))).ranges[0])

    def _first(self, kind: type[Any], kvs: Iterable[KeyValue]) -> Any:
        return next((self._record(kind, kv) for kv in kvs), None)

    def _record(self, kind: type[Any], kv: KeyValue) -> Any:
        """The record under a key; ``None`` for what cannot be read."""
        known = self._decoded.get(kv.key)
        if known is not None and known[0] == kv.value:  # not by revision: a rebuilt etcd counts anew
            return known[1]
        try:
            record = kind.decode(kv.value)
        except (ValueError, TypeError, KeyError):
            record = None
        if len(self._decoded) > _REMEMBERED:
            self._decoded.clear()
        self._decoded[kv.key] = (kv.value, record)
        return record


def _now() -> str:
    return rfc3339(datetime.now(UTC))
