"""Records of etcd, held in memory and followed for as long as the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Generic, NoReturn, TypeVar

from reconciler.agent.latest import Pulse
from reconciler.core.errors import RegopsError
from reconciler.core.ports import KeyValue, KeyValueStore, Range

log = logging.getLogger(__name__)

T = TypeVar("T")
_RETRY_SECONDS: Final = 0.5


class Followed(Generic[T]):
    """``values``: every key of some ranges, decoded; what cannot be decoded counts as absent. Run `run` as a task.

    While etcd is away the last values stay.
    """

    def __init__(self, store: KeyValueStore, *ranges: Range, decode: Callable[[KeyValue], T]) -> None:
        """``decode`` raises `ValueError`, `TypeError` or `KeyError` for what it cannot read."""
        self.values: dict[str, T] = {}
        self._store = store
        self._ranges = ranges
        self._decode = decode
        self._pulse = Pulse()

    async def run(self) -> NoReturn:
        """Follow until cancelled; after a gap everything is read again."""
        while True:
            try:
                await self._follow()
            except RegopsError as error:
                keys = [item.key for item in self._ranges]
                log.warning("keys not followed", extra={"keys": keys, "reason": error.reason, "error": str(error)})
            await asyncio.sleep(_RETRY_SECONDS)

    async def changed(self) -> None:
        """Until the next news. Has no deadline of its own."""
        await self._pulse.wait()

    async def _follow(self) -> None:
        read = await self._store.read(*self._ranges)
        values: dict[str, T] = {}
        for kvs in read.ranges:
            for kv in kvs:
                self._put(values, kv)
        self.values = values
        self._pulse.beat()
        async with self._store.watch(*self._ranges, from_revision=read.revision + 1) as batches:
            async for batch in batches:
                if batch.resumed:
                    return  # it may be another store by now: everything is read again
                for event in batch.events:
                    self.values.pop(event.kv.key, None)
                    if not event.deleted:
                        self._put(self.values, event.kv)
                if batch.events:
                    self._pulse.beat()

    def _put(self, values: dict[str, T], kv: KeyValue) -> None:
        try:
            values[kv.key] = self._decode(kv)
        except (ValueError, TypeError, KeyError):
            log.warning("record cannot be read", extra={"key": kv.key})
