"""What `regops dev` tells while it runs: each applied commit with its timings, what is held, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.conditions import READY, VALIDATION_FAILED, StatusRecord
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Range
from reconciler.core.records import Held, Receipt

Say = Callable[[str], None]
_LOOK_EVERY: Final = 1.0
_ANSWERS: Final = 5.0


async def narrate(document: dict[str, Any], say: Say, since: datetime) -> None:
    """Follow etcd until cancelled. What was applied before ``since`` is not told."""
    store = EtcdStore(document["etcd"])
    narrator = _Narrator(store, say, len(document["opa"]), since)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_outages(store, say))
            while True:
                try:
                    await narrator.follow()
                except RegopsError:
                    await asyncio.sleep(0.5)
    finally:
        await store.aclose()


async def _outages(store: KeyValueStore, say: Say) -> NoReturn:
    """Tell when etcd does not answer any more, and when it does again: a watch of it is only silent."""
    away = False
    while True:
        try:
            async with asyncio.timeout(_ANSWERS):
                await store.read(Range(Keyspace().applied, keys_only=True))
        except (RegopsError, TimeoutError):
            if not away:
                say("etcd does not answer: nothing is applied, and the OPAs go on with what they have")
            away = True
        else:
            if away:
                say("etcd answers again")
            away = False
        await asyncio.sleep(_LOOK_EVERY)


class _Narrator:
    """Puts together what belongs to one commit: the leader's status and the agents' receipts."""

    def __init__(self, store: KeyValueStore, say: Say, opas: int, since: datetime) -> None:
        self._store = store
        self._say = say
        self._opas = opas
        self._since = since
        self._keys = Keyspace()
        self._apply: dict[str, Any] | None = None
        self._told: set[str] = set()
        self._receipts: dict[str, Receipt] = {}
        self._held: dict[str, Held] = {}
        self._trouble = ""

    async def follow(self) -> None:
        """Tell what is new: what is there and was not told yet, then every change. Raises what the store raises."""
        keys = self._keys
        kinds = (Range(keys.status), Range(keys.receipts, prefix=True), Range(keys.helds, prefix=True))
        now = await self._store.read(*kinds)
        found = {kv.key: kv.value for kvs in now.ranges for kv in kvs}
        for name in self._held.keys() - {key.removeprefix(keys.helds) for key in found}:
            self._release(name)
        for key, value in found.items():
            self._take(key, value)
        self._tell()
        async with self._store.watch(Range(keys.own, prefix=True), from_revision=now.revision + 1) as batches:
            async for batch in batches:
                for event in batch.events:
                    if not event.deleted:
                        self._take(event.kv.key, event.kv.value)
                    elif event.kv.key.startswith(keys.helds):
                        self._release(event.kv.key.removeprefix(keys.helds))
                self._tell()

    def _take(self, key: str, value: bytes) -> None:
        try:
            if key == self._keys.status:
                self._take_status(StatusRecord.decode(value))
            elif key.startswith(self._keys.receipts):
                self._receipts[key] = Receipt.decode(value)
            elif key.startswith(self._keys.helds):
                self._hold(key.removeprefix(self._keys.helds), Held.decode(value))
        except (ValueError, TypeError, KeyError):
            return

    def _take_status(self, status: StatusRecord) -> None:
        apply = status.last_apply
        if apply and not apply.get("renewed") and datetime.fromisoformat(apply["applied_at"]) >= self._since:
            self._apply = dict(apply)
        ready = next((condition for condition in status.conditions if condition.type == READY), None)
        if ready is None or ready.reason == VALIDATION_FAILED:  # what is held is told by itself
            return
        trouble = "" if ready.status == "True" else f"{ready.reason}: {ready.message}"
        if trouble != self._trouble:
            self._say(f"not ready: {trouble}" if trouble else "ready again")
        self._trouble = trouble

    def _hold(self, name: str, held: Held) -> None:
        if self._held.get(name) == held:
            return
        self._held[name] = held
        for error in held.errors:
            self._say(f"held: {name} ({held.reason}): {error}")

    def _release(self, name: str) -> None:
        if self._held.pop(name, None):
            self._say(f"no longer held: {name}")

    def _tell(self) -> None:
        apply = self._apply
        if apply is None or apply["applied_at"] in self._told:
            return
        there = [r for r in self._receipts.values() if r.proves(apply["commit"], apply.get("digest"))]
        if len(there) < self._opas:
            return
        self._told.add(apply["applied_at"])
        seen = datetime.fromisoformat(apply["seen_at"])
        applied = datetime.fromisoformat(apply["applied_at"]) - seen
        # A receipt that is older than the push is of the same content: it holds from the apply on.
        proven = max(datetime.fromisoformat(receipt.since) for receipt in there)
        enforced = (proven if proven > seen else datetime.now(UTC)) - seen
        counts = ", ".join(f"{apply[kind]} {kind}" for kind in ("created", "updated", "deleted", "held") if apply[kind])
        self._say(
            f"{apply['commit'][:12]} ({apply['trigger']}: {counts or 'no policy changed'})  "
            f"seen → applied in etcd +{applied.total_seconds() * 1000:.0f} ms → enforced by "
            f"{len(there)}/{self._opas} OPA +{enforced.total_seconds() * 1000:.0f} ms"
        )
