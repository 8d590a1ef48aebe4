"""What `regops dev` tells while it runs: each applied commit with its timings, and what is held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.conditions import StatusRecord
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Range
from reconciler.core.records import Held, Receipt

Say = Callable[[str], None]


async def narrate(document: dict[str, Any], say: Say) -> None:
    """Follow etcd until cancelled."""
    store = EtcdStore(document["etcd"])
    try:
        while True:
            try:
                await _Narrator(store, say, len(document["opa"])).follow()
            except RegopsError:
                await asyncio.sleep(0.5)
    finally:
        await store.aclose()


class _Narrator:
    """Puts together what belongs to one commit: the leader's status and the agents' receipts."""

    def __init__(self, store: KeyValueStore, say: Say, opas: int) -> None:
        self._store = store
        self._say = say
        self._opas = opas
        self._keys = Keyspace()
        self._apply: dict[str, Any] | None = None
        self._told: set[str] = set()
        self._enforced: dict[str, str] = {}
        self._held: set[str] = set()

    async def follow(self) -> None:
        """Tell what is new, from now on."""
        now = await self._store.read(Range(self._keys.status))
        async with self._store.watch(Range(self._keys.own, prefix=True), from_revision=now.revision + 1) as batches:
            async for batch in batches:
                for event in batch.events:
                    if not event.deleted:
                        self._take(event.kv.key, event.kv.value)
                self._tell()

    def _take(self, key: str, value: bytes) -> None:
        try:
            if key == self._keys.status:
                self._apply = dict(StatusRecord.decode(value).last_apply or {}) or self._apply
            elif key.startswith(self._keys.receipts):
                receipt = Receipt.decode(value)
                self._enforced[receipt.id] = receipt.enforced_revision or ""
            elif key.startswith(self._keys.helds):
                held = Held.decode(value)
                name = key.removeprefix(self._keys.helds)
                for error in held.errors:
                    self._say(f"held: {name} ({held.reason}): {error}")
        except (ValueError, TypeError, KeyError):
            return

    def _tell(self) -> None:
        apply = self._apply
        if apply is None or apply["applied_at"] in self._told:
            return
        there = sum(commit == apply["commit"] for commit in self._enforced.values())
        if there < self._opas:
            return
        self._told.add(apply["applied_at"])
        seen = datetime.fromisoformat(apply["seen_at"])
        applied = (datetime.fromisoformat(apply["applied_at"]) - seen).total_seconds()
        enforced = (datetime.now(UTC) - seen).total_seconds()
        counts = ", ".join(f"{apply[kind]} {kind}" for kind in ("created", "updated", "deleted", "held") if apply[kind])
        self._say(
            f"{apply['commit'][:12]} ({apply['trigger']}: {counts or 'no policy changed'})  "
            f"seen → applied in etcd +{applied * 1000:.0f} ms → enforced by {there}/{self._opas} OPA "
            f"+{enforced * 1000:.0f} ms"
        )
