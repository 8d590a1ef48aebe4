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
from reconciler.adapters.etcd.identity import Identity
from reconciler.adapters.etcd.wire import Seen, bounds, event
from reconciler.core.errors import CompactedError, DivergedError, StalledError, StoreError
from reconciler.core.ports import Event, Range, WatchBatch

_PROBE_SECONDS = 1.5
_CONNECT_SECONDS = 3.0
_BACKOFF = (0.1, 1.0)


class _Lost(Exception):  # noqa: N818 never leaves this module
    """The stream ended; another one goes on where it stopped."""


class _Anew(Exception):  # noqa: N818 the same
    """Another stream of the same member is needed, and nothing is wrong with it."""


class _Doubt(Exception):  # noqa: N818 the same
    """The member is behind what was seen: it lags, or the store went back."""


class Watcher:
    """What one call of `KeyValueStore.watch` follows.

    ``seen`` is the newest that is known of the store, and ``newest`` asks for it: a member that lags is told apart from
    a store that went back.
    """

    def __init__(
        self,
        channels: Channels,
        identity: Identity,
        ranges: Sequence[Range],
        from_revision: int,
        *,
        seen: Seen,
        newest: Callable[[Range], Awaitable[Seen]],
    ) -> None:
        self._channels = channels
        self._identity = identity
        self._ranges = ranges
        self._next = from_revision
        self._seen = Seen(seen.cluster, seen.term, max(seen.revision, from_revision - 1))
        self._newest = newest
        self._failures = 0
        # etcd answers no progress request for a watch that begins in the future, so it begins one revision early.
        self._early = 1
        self._established = False

    async def batches(self) -> AsyncGenerator[WatchBatch, None]:
        """Batches without end; see `KeyValueStore.watch` for the errors."""
        while True:
            endpoint = ""
            try:
                endpoint = await self._channels.connect(_CONNECT_SECONDS)
                async with contextlib.aclosing(self._stream(self._channels.of(endpoint))) as stream:
                    async for batch in stream:
                        self._failures = 0
                        yield batch
            except _Doubt:
                await self._went_back()
            except grpc.aio.AioRpcError as error:
                self._ended(endpoint, error)
            except (_Lost, TimeoutError):
                self._channels.failed(endpoint)
            except (_Anew, StoreError):
                pass  # while no member can be reached, the consumer's own clock decides what that means
            self._failures += 1
            longest = min(_BACKOFF[1], _BACKOFF[0] * 2 ** min(self._failures, 8))
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 jitter is no secret

    async def _stream(self, channel: grpc.aio.Channel) -> AsyncGenerator[WatchBatch, None]:
        """One stream's batches until it ends by `_Lost`, `_Doubt`, `TimeoutError` or what gRPC raises."""
        metadata = await self._identity.metadata(channel, _CONNECT_SECONDS)
        call = rpc.WatchStub(channel).Watch(metadata=(*metadata, ("hasleader", "true")))
        events: list[Event] = []
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):  # `wait_for` of Python 3.11 can lose a cancellation
                await call.write(self._create())
            async with contextlib.aclosing(_responses(call)) as responses:
                async for response in responses:
                    self._refused(response)
                    if response.created:
                        if self._established:
                            yield WatchBatch(self._next - 1, resumed=True)
                        self._established = True
                    events += [each for each in map(event, response.events) if each.kv.mod_revision >= self._next]
                    if response.fragment or (response.created and not events):
                        continue
                    yield self._batch(response.header.revision, events)
                    events = []
        except asyncio.InvalidStateError as error:
            raise _Lost from error
        finally:
            call.cancel()

    def _batch(self, revision: int, events: Sequence[Event]) -> WatchBatch:
        if not events:
            return WatchBatch(revision)
        revision = events[-1].kv.mod_revision
        self._next, self._early = revision + 1, 1
        return WatchBatch(revision, tuple(each for each in events if self._covers(each.kv.key)))

    def _refused(self, response: Any) -> None:
        """Raise for whatever is no event or sign of life."""
        if response.canceled:
            self._cancelled(int(response.compact_revision), response.cancel_reason)
        header = Seen.of(response.header)
        if response.created and self._seen.is_behind(header):
            raise _Doubt
        self._seen = self._seen.joined(header)

    def _cancelled(self, compact_revision: int, reason: str) -> None:
        """Raise what a stream that etcd has ended means."""
        if compact_revision == self._next and self._early:
            self._early = 0
            raise _Anew
        if compact_revision:
            raise CompactedError(f"revision {self._next} is compacted", compact_revision=compact_revision)
        if self._identity.refused(reason):
            raise _Anew
        raise failures.of_cancelled_watch(reason) or _Lost

    def _ended(self, endpoint: str, error: grpc.aio.AioRpcError) -> None:
        """Raise what trying again cannot help; otherwise move on."""
        if self._identity.refused(failures.words(error)):
            return
        failure = failures.of_read(error, endpoint)
        if isinstance(failure, StalledError):
            raise failure from error
        self._channels.failed(endpoint)

    async def _went_back(self) -> None:
        """Raise `DivergedError` unless the newest state is as new as what was seen: then only the member lags."""
        try:
            newest = await self._newest(self._ranges[0])
        except StoreError:
            return
        if self._seen.is_behind(newest):
            raise DivergedError("etcd went back behind the watched revision", reason="StoreDiverged")

    def _create(self) -> Any:
        firsts, ends = zip(*map(bounds, self._ranges), strict=True)
        create = pb.WatchCreateRequest(
            key=min(firsts), range_end=max(ends), start_revision=max(1, self._next - self._early), fragment=True
        )
        return pb.WatchRequest(create_request=create)

    def _covers(self, key: str) -> bool:
        return any(key.startswith(each.key) if each.prefix else key == each.key for each in self._ranges)


async def _responses(call: Any) -> AsyncGenerator[Any, None]:
    """What a stream brings. A silent one is asked for its progress, and is lost when that brings nothing either."""
    reading: asyncio.Future[Any] | None = None
    asked = False
    try:
        while True:
            reading = reading or asyncio.ensure_future(call.read())
            done, _ = await asyncio.wait({reading}, timeout=_PROBE_SECONDS)
            if done:
                response, reading, asked = reading.result(), None, False
                if response is grpc.aio.EOF:
                    raise _Lost
                yield response
            elif asked:
                raise _Lost
            else:
                asked = True
                progress = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
                async with asyncio.timeout(_PROBE_SECONDS):
                    await call.write(progress)
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
