"""The agents' receipts, followed in etcd for as long as the server runs: who enforces what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

from reconciler.agent.latest import Pulse
from reconciler.agent.scope import Scope
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PolicyName
from reconciler.core.ports import KeyValue, KeyValueStore, Range, WatchBatch
from reconciler.core.records import Receipt

log = logging.getLogger(__name__)

FORGOTTEN: Final = timedelta(days=7)
"""An agent that has been silent for so long does not count any more."""
_RETRY_SECONDS: Final = 0.5


class Fleet:
    """The last receipt of every agent, and which of them are alive. Run `run` as a task."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace) -> None:
        self._store = store
        self._keyspace = keyspace
        self._receipts: dict[str, Receipt] = {}
        self._alive: set[str] = set()
        self._pulse = Pulse()

    async def run(self) -> NoReturn:
        """Follow until cancelled; after a gap everything is read again."""
        while True:
            try:
                await self._follow()
            except RegopsError as error:
                log.warning("receipts not followed", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(_RETRY_SECONDS)

    def answering_for(self, policy: PolicyName) -> Mapping[str, Receipt | None]:
        """Every agent whose OPA answers for the policy: its receipt, ``None`` while it is silent."""
        now = datetime.now(UTC)
        return {
            name: receipt if name in self._alive else None
            for name, receipt in self._receipts.items()
            if _covers(receipt, policy) and (name in self._alive or now - _since(receipt) < FORGOTTEN)
        }

    async def changed(self) -> None:
        """Until the next news. Has no deadline of its own."""
        await self._pulse.wait()

    async def _follow(self) -> None:
        ranges = Range(self._keyspace.receipts, prefix=True), Range(self._keyspace.alives, prefix=True, keys_only=True)
        read = await self._store.read(*ranges)
        receipts, alives = read.ranges
        self._receipts = {name: receipt for kv in receipts if (receipt := _receipt(kv)) for name in [self._name(kv)]}
        self._alive = {self._name(kv) for kv in alives}
        self._pulse.beat()
        async with self._store.watch(*ranges, from_revision=read.revision + 1) as batches:
            async for batch in batches:
                self._take(batch)

    def _take(self, batch: WatchBatch) -> None:
        for event in batch.events:
            name = self._name(event.kv)
            if event.kv.key.startswith(self._keyspace.alives):
                (self._alive.discard if event.deleted else self._alive.add)(name)
            elif (receipt := None if event.deleted else _receipt(event.kv)) is not None:
                self._receipts[name] = receipt
            else:
                self._receipts.pop(name, None)
        if batch.events:
            self._pulse.beat()

    def _name(self, kv: KeyValue) -> str:
        return kv.key.removeprefix(self._keyspace.receipts).removeprefix(self._keyspace.alives)


def _receipt(kv: KeyValue) -> Receipt | None:
    try:
        return Receipt.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        return None


def _covers(receipt: Receipt, policy: PolicyName) -> bool:
    """A scope of a newer kind counts, so that nothing is called active on doubt."""
    try:
        return Scope.parse(receipt.scope).contains(policy)
    except ValueError:
        return True


def _since(receipt: Receipt) -> datetime:
    try:
        return datetime.fromisoformat(receipt.since).astimezone(UTC)
    except (ValueError, TypeError):
        return datetime.now(UTC)
