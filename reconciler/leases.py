"""The leases that idempotency keys hang on: a short one that lives with the replica, long ones that answers share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import time
from typing import Final

from reconciler.core.errors import RegopsError, StoreError
from reconciler.core.ports import Compare, KeyValueStore, Outcome, Put, Transaction

log = logging.getLogger(__name__)

LEASE_SECONDS: Final = 15
"""How long a dead replica's claims stay."""
KEEP_SECONDS: Final = 24 * 3600
"""How long an answer is kept; it hangs on a lease that an hour's answers share."""
SHARED_SECONDS: Final = 3600


class Leases:
    """Writes keys with one of the two leases, which are granted when they are first needed."""

    def __init__(self, store: KeyValueStore, *, clock: Callable[[], float] = time) -> None:
        self._store = store
        self._clock = clock
        self._own = 0
        self._shared: tuple[float, int] = (0.0, 0)
        self._granting = asyncio.Lock()

    async def put_claim(self, compare: Compare, value: bytes) -> Outcome:
        """Write the compared key for as long as this replica lives. Raises what a commit raises."""
        try:
            return await self._put(compare, value, await self._of_replica())
        except StoreError as error:
            if not _lost(error):
                raise
            self._own = 0
            return await self._put(compare, value, await self._of_replica())

    async def put_answer(self, compare: Compare, value: bytes) -> Outcome:
        """Write the compared key for a day. Raises what a commit raises."""
        try:
            return await self._put(compare, value, await self._of_hour())
        except StoreError as error:
            if not _lost(error):
                raise
            self._shared = (0.0, 0)
            return await self._put(compare, value, await self._of_hour())

    async def renew(self) -> None:
        """Keep the replica's lease alive; to be called every few seconds. A lost one is replaced when it is needed."""
        if not self._own:
            return
        try:
            if not await self._store.keep_alive(self._own):
                self._own = 0
        except RegopsError as error:
            log.warning("lease not renewed", extra={"reason": error.reason})
            self._own = 0

    async def revoke(self) -> None:
        """The replica ends, and its claims with it."""
        if not self._own:
            return
        try:
            async with asyncio.timeout(1):
                await self._store.revoke(self._own)
        except (RegopsError, TimeoutError):
            log.debug("lease left to expire")

    async def _put(self, compare: Compare, value: bytes, lease: int) -> Outcome:
        return await self._store.commit(Transaction((compare,), (Put(compare.key, value, lease),)))

    async def _of_replica(self) -> int:
        async with self._granting:
            if not self._own:
                self._own = await self._store.grant(LEASE_SECONDS)
            return self._own

    async def _of_hour(self) -> int:
        async with self._granting:
            until, lease = self._shared
            if self._clock() >= until:
                lease = await self._store.grant(KEEP_SECONDS + SHARED_SECONDS)
                self._shared = (self._clock() + SHARED_SECONDS, lease)
            return lease


def _lost(error: StoreError) -> bool:
    """Whether etcd does not know the lease, so that nothing was written: it was rebuilt, or the lease has ended."""
    return error.reason == "LeaseNotFound"
