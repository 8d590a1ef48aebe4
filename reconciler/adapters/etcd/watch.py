"""One watch, resumed across reconnects from the last delivered revision: no gap, no repeat, no torn revision.

Several ranges are watched as the one range that covers them, and filtered here, so that a revision is never split.
A watch on a member without quorum would be silent for ever: ``hasleader`` makes etcd end it. A peer that is gone
without a word is found by a progress request that stays unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import grpc

from reconciler.adapters.etcd import failures
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import etcd_pb2_grpc as rpc
from reconciler.adapters.etcd.channels import Channels
from reconciler.core.errors import CompactedError, DivergedError, StalledError
from reconciler.core.keyspace import prefix_end
from reconciler.core.ports import Event, KeyValue, Range, WatchBatch

_PROBE_SECONDS = 1.5
_BACKOFF = (0.1, 1.0)


class _Lost(Exception):  # noqa: N818 never leaves this module
    """The stream ended; another one goes on where it stopped."""


class Watcher:
    """What one call of `KeyValueStore.watch` follows."""

    def __init__(
        self,
        channels: Channels,
        metadata: Callable[[], Awaitable[tuple[tuple[str, str], ...]]],
        ranges: Sequence[Range],
        from_revision: int,
    ) -> None:
        self._channels = channels
        self._metadata = metadata
        self._ranges = ranges
        self._next = from_revision
        self._failures = 0
        # etcd answers no progress request for a watch that begins in the future, so it begins one revision early.
        self._early = 1

    async def batches(self) -> AsyncGenerator[WatchBatch, None]:
        """Batches without end; see `KeyValueStore.watch` for the errors."""
        while True:
            endpoint = self._channels.endpoint
            try:
                async with contextlib.aclosing(self._stream()) as stream:
                    async for batch in stream:
                        self._failures = 0
                        if batch.events:
                            self._next = batch.revision + 1
                        yield self._wanted(batch)
            except (_Lost, grpc.aio.AioRpcError) as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.PERMISSION_DENIED:
                    raise failures.of_read(error, endpoint) from error
                self._channels.rotate(endpoint)
                self._failures += 1
                longest = min(_BACKOFF[1], _BACKOFF[0] * 2 ** min(self._failures, 8))
                await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 jitter is no secret

    async def _stream(self) -> AsyncGenerator[WatchBatch, None]:
        call = rpc.WatchStub(self._channels.current()).Watch(metadata=(*await self._metadata(), ("hasleader", "true")))
        reading: asyncio.Task[Any] | None = None
        events: list[Event] = []
        try:
            await asyncio.wait_for(call.write(self._create()), _PROBE_SECONDS * 2)
            asked = False
            while True:
                reading = reading or asyncio.ensure_future(call.read())
                done, _ = await asyncio.wait({reading}, timeout=_PROBE_SECONDS)
                if not done:
                    if asked:
                        raise _Lost
                    asked = True
                    await asyncio.wait_for(
                        call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest())), _PROBE_SECONDS
                    )
                    continue
                response, reading, asked = reading.result(), None, False
                if response is grpc.aio.EOF:
                    raise _Lost
                self._refused(response)
                events.extend(event for event in map(_event, response.events) if event.kv.mod_revision >= self._next)
                if response.fragment or (response.created and not events):
                    continue
                yield WatchBatch(events[-1].kv.mod_revision if events else response.header.revision, tuple(events))
                events = []
        except (TimeoutError, asyncio.InvalidStateError) as error:
            raise _Lost from error
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await reading

    def _refused(self, response: Any) -> None:
        if response.canceled and response.compact_revision == self._next and self._early:
            self._early = 0
            raise _Lost
        if response.canceled and response.compact_revision:
            raise CompactedError(f"revision {self._next} is compacted", compact_revision=int(response.compact_revision))
        if response.canceled:
            raise StalledError(f"etcd refuses the watch: {response.cancel_reason}", reason="PermissionDenied")
        if response.header.revision < self._next - 1:
            raise DivergedError("etcd went back behind the watched revision", reason="StoreDiverged")

    def _create(self) -> Any:
        keys = [each.key.encode() for each in self._ranges]
        ends = [prefix_end(each.key).encode() if each.prefix else each.key.encode() + b"\0" for each in self._ranges]
        create = pb.WatchCreateRequest(
            key=min(keys), range_end=max(ends), start_revision=max(1, self._next - self._early), fragment=True
        )
        return pb.WatchRequest(create_request=create)

    def _wanted(self, batch: WatchBatch) -> WatchBatch:
        if len(self._ranges) == 1:
            return batch
        return WatchBatch(batch.revision, tuple(event for event in batch.events if self._covers(event.kv.key)))

    def _covers(self, key: str) -> bool:
        return any(key.startswith(each.key) if each.prefix else key == each.key for each in self._ranges)


def _event(event: Any) -> Event:
    kv = event.kv
    key = kv.key.decode("utf-8", "surrogateescape")
    return Event(
        KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.lease), deleted=event.type == event.DELETE
    )
