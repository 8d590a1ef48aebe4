"""Who leads: one leased key. Safety never depends on the lease: every write is compared with its create_revision."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from time import monotonic

from reconciler.core.errors import DivergedError, RegopsError
from reconciler.core.ports import Compare, Fence, KeyValueStore, Put, Range, Target, Transaction
from reconciler.core.times import rfc3339

log = logging.getLogger(__name__)


class Leadership:
    """Held until the lease is lost; `fence` goes into every write."""

    def __init__(self, store: KeyValueStore, lease: int, fence: Fence, ttl: int, since: float) -> None:
        self._store = store
        self._lease = lease
        self._ttl = ttl
        self._renewed = since
        self._over = asyncio.Event()
        self.fence = fence

    def valid(self) -> bool:
        """Whether a write makes sense: counted from before the last renewal was *sent*, less a margin."""
        return not self._over.is_set() and monotonic() < self._renewed + self._ttl - max(1.0, self._ttl / 3)

    async def lost(self) -> None:
        """Return when leadership is over."""
        await self._over.wait()

    async def keep(self) -> None:
        """Renew the lease until it, or the key, is gone; an etcd that does not answer is asked again, for twice the
        time that the lease lasts: etcd itself prolongs leases when it restarts."""
        pause = self._ttl / 3
        try:
            while monotonic() < self._renewed + self._ttl * 2:
                await asyncio.sleep(pause)
                sent = monotonic()
                try:
                    held = await self._renew()
                except RegopsError as error:
                    log.warning("lease not renewed", extra={"reason": error.reason, "error": str(error)})
                    pause = self._ttl / 10
                    continue
                if not held:
                    return
                self._renewed, pause = sent, self._ttl / 3
        finally:
            self._over.set()

    async def _renew(self) -> bool:
        """Whether lease and key are still ours. A key that somebody deleted, or a store that went back, ends the lead:
        no write would pass any more, while the lease could live for ever."""
        if await self._store.keep_alive(self._lease) <= 0:
            return False
        try:
            (found,) = (await self._store.read(Range(self.fence.key, keys_only=True))).ranges
        except DivergedError:
            return False
        return [kv.create_revision for kv in found] == [self.fence.create_revision]

    def resign(self) -> None:
        """It is over, whatever the lease says."""
        self._over.set()


class Election:
    """Campaigns for one key; ``ttl`` in seconds is how long a silent leader stays in office."""

    def __init__(self, store: KeyValueStore, key: str, identity: str, ttl: int = 5) -> None:
        self._store = store
        self._key = key
        self._identity = identity
        self._ttl = ttl
        self._owed = 0  # the lease to give back, 0 when there is none

    @contextlib.asynccontextmanager
    async def lead(self) -> AsyncIterator[Leadership]:
        """Wait to be elected, lead, and resign at the end. Raises `RegopsError` while etcd cannot be asked."""
        leadership = await self._campaign()
        keeping = asyncio.create_task(leadership.keep(), name="lease")
        try:
            yield leadership
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            leadership.resign()
            with contextlib.suppress(RegopsError):  # tried again by the next campaign
                await self._pay()

    async def _campaign(self) -> Leadership:
        while True:
            await self._pay()
            await self._vacant()
            sent = monotonic()
            lease = self._owed = await self._store.grant(self._ttl)
            try:
                revision = await self._take(lease)
            except BaseException:
                with contextlib.suppress(RegopsError):
                    await asyncio.shield(self._pay())
                raise
            if revision:
                return Leadership(self._store, lease, Fence(self._key, revision), self._ttl, sent)

    async def _pay(self) -> None:
        """End the former lease where etcd was away when it was to be given back.

        An etcd that starts again lets every lease begin anew, so this replica would wait a whole term for itself.
        """
        if self._owed:
            await self._store.revoke(self._owed)
            self._owed = 0

    async def _take(self, lease: int) -> int:
        """The key's create_revision when it is ours now, else 0."""
        since = rfc3339(datetime.now(UTC))
        value = json.dumps({"id": self._identity, "since": since}).encode()
        outcome = await self._store.commit(
            Transaction((Compare(self._key, Target.CREATE, 0),), (Put(self._key, value, lease),))
        )
        return outcome.revision if outcome.succeeded else 0

    async def _vacant(self) -> None:
        """Wait until nobody holds the key."""
        found = await self._store.read(Range(self._key))
        if not found.ranges[0]:
            return
        async with self._store.watch(Range(self._key), from_revision=found.revision + 1) as batches:
            async for batch in batches:
                if any(event.deleted for event in batch.events):
                    return
