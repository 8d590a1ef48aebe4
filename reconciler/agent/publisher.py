"""Writes this agent's receipt and sign of life to etcd, and never holds up the serving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, NoReturn

from reconciler.agent.latest import Pulse
from reconciler.agent.mirror import Backoff
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Put, Transaction
from reconciler.core.records import Receipt
from reconciler.core.times import rfc3339
from reconciler.metrics import AgentMetrics

LEASE_TTL: Final = 10
"""Seconds after which an agent that does not renew counts as gone."""
_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at the receipt when nothing happens: silence and staleness are time alone."""
_WRITE_GAP: Final = 0.05
"""Seconds between two writes of the receipt in the long run: many changes become few writes."""
_AT_ONCE: Final = 4
"""Writes that need not wait for each other: one activation takes two, the former proof withdrawn and the new one given,
and the second is what `wait=active` waits for."""
_MOVES_ON_WITHIN: Final = 1.0
"""Seconds, at random up to this, before a receipt is written that only names a newer commit with the same content: of
a fleet of sidecars nearly all do, at each commit, and of commits in a row the last one says it all. Nobody waits for
these: `wait=active` waits for those that answer for the changed policy."""
_REPEAT_EVERY: Final = 300.0
"""An unchanged receipt is written again: a restored etcd, or `fleet forget`, may have lost it, and `Receipt.seen_at`
says until when the agent was not silent."""
_LAST_WORDS: Final = 0.5

log = logging.getLogger(__name__)


class Publisher:
    """``receipt`` is asked for the current one after each beat of ``changed``, and every half second; the lease is
    renewed every ``renew_every`` seconds.

    Run `run_receipts` and `run_alive` as tasks.
    """

    def __init__(
        self,
        store: KeyValueStore,
        keyspace: Keyspace,
        receipt: Callable[[], Receipt],
        changed: Pulse,
        metrics: AgentMetrics,
        *,
        renew_every: float = 3.0,
        repeat_every: float = _REPEAT_EVERY,
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._receipt = receipt
        self._metrics = metrics
        self._renew_every = renew_every
        self._repeat_every = repeat_every
        self._changed = changed
        self._written: Receipt | None = None
        self._written_at = 0.0
        self._paid_until = 0.0
        self._due: float | None = None

    def repeat(self) -> None:
        """Write the receipt again even if it is unchanged: the store may not have it any more."""
        self._written = None
        self._changed.beat()

    async def run_receipts(self) -> NoReturn:
        """Write each changed receipt, until cancelled."""
        backoff = Backoff()
        while True:
            receipt = self._receipt()
            if receipt == self._written and time.monotonic() - self._written_at < self._repeat_every:
                await self._look_later()
                continue
            if (wait := self._may_wait(receipt)) > 0:
                await self._look_later(wait)
                continue
            try:
                stamped = replace(receipt, seen_at=rfc3339(datetime.now(UTC)))
                await self._put(self._keyspace.receipt(receipt.datacentre, receipt.id), stamped.encode())
            except RegopsError as error:
                self._failed("receipt", error)
                await backoff.sleep()
            else:
                self._written, self._written_at, self._due = receipt, time.monotonic(), None
                backoff.reset()
                await self._pace()

    async def run_alive(self) -> NoReturn:
        """Keep the leased key alive until cancelled; then end the lease, so that the fleet knows at once."""
        lease, backoff = 0, Backoff()
        try:
            while True:
                try:
                    lease = await self._renew(lease)
                except RegopsError as error:
                    self._failed("alive", error)
                    await backoff.sleep()
                else:
                    backoff.reset()
                    await asyncio.sleep(self._renew_every)
        finally:
            if lease:
                with contextlib.suppress(RegopsError, TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS):
                        await self._store.revoke(lease)

    async def _renew(self, lease: int) -> int:
        if lease and await self._store.keep_alive(lease) > 0:
            return lease
        receipt = self._receipt()
        lease = await self._store.grant(LEASE_TTL)
        value = json.dumps({"scope": receipt.scope}).encode()
        await self._put(self._keyspace.alive(receipt.datacentre, receipt.id), value, lease)
        self.repeat()
        return lease

    async def _put(self, key: str, value: bytes, lease: int = 0) -> None:
        await self._store.commit(Transaction((), (Put(key, value, lease),)))

    async def _pace(self) -> None:
        """Wait when more than `_AT_ONCE` writes came within their gaps."""
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now) + _WRITE_GAP
        await asyncio.sleep(max(0.0, self._paid_until - now - (_AT_ONCE - 1) * _WRITE_GAP))

    def _may_wait(self, receipt: Receipt) -> float:
        """Seconds for which this receipt may still wait for the next one to take its place."""
        if self._written is None or not _moves_on(self._written, receipt):
            return 0.0
        now = time.monotonic()
        if self._due is None:
            self._due = now + random.uniform(0.0, _MOVES_ON_WITHIN)  # noqa: S311 no secret
        return self._due - now

    async def _look_later(self, seconds: float = _LOOK_EVERY) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _failed(self, of: str, error: RegopsError) -> None:
        self._metrics.store_errors.labels(of).inc()
        log.warning("etcd does not take the agent's word", extra={"of": of, "error": str(error)})


def _moves_on(former: Receipt, receipt: Receipt) -> bool:
    """Whether nothing is told but that what was proven is the content of a newer commit too."""
    later = replace(
        former,
        enforced_revision=receipt.enforced_revision,
        since=receipt.since,
        stages=receipt.stages,
        live_digest=receipt.live_digest,  # of all policies: it is another one when any policy changes
    )
    return receipt.digest is not None and receipt.enforced_revision is not None and receipt == later
