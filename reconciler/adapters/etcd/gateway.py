"""`EtcdStore`: the port `KeyValueStore` on etcd's v3 API. Reads may move on to another member; a write is sent once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from reconciler.adapters.etcd import wire
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import etcd_pb2_grpc as rpc
from reconciler.adapters.etcd.calls import Calls
from reconciler.adapters.etcd.channels import Channels
from reconciler.adapters.etcd.health import examine
from reconciler.adapters.etcd.identity import Identity
from reconciler.adapters.etcd.watch import Watcher
from reconciler.adapters.etcd.wire import Seen
from reconciler.core.errors import DivergedError, RegopsError, StoreError
from reconciler.core.ports import Outcome, Range, Read, StoreHealth, Transaction, WatchBatch


class EtcdStore:
    """One etcd cluster. Deadlines are seconds, of a whole call; ``user`` and ``password`` where etcd asks for them."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        user: str = "",
        password: str = "",
        read_timeout: float = 2.0,
        commit_timeout: float = 5.0,
    ) -> None:
        self._channels = Channels(endpoints, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        self._identity = Identity(user, password)
        self._calls = Calls(self._channels, self._identity)
        self._read_timeout = read_timeout
        self._commit_timeout = commit_timeout
        self._seen = Seen()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._channels.aclose()

    async def read(self, *ranges: Range, revision: int = 0) -> Read:
        """See `KeyValueStore.read`."""
        before = self._seen
        response = await self._calls.ask(_transact, wire.reading(ranges, revision), self._read_timeout)
        self._check(response.header, before)
        return wire.read(response)

    async def commit(self, transaction: Transaction) -> Outcome:
        """See `KeyValueStore.commit`."""
        before = self._seen
        response = await self._calls.send(_transact, wire.writing(transaction), self._commit_timeout)
        if response.succeeded:
            # It did happen, whatever else: that etcd went back is for the next read to say.
            self._seen = self._seen.joined(Seen.of(response.header))
        else:
            self._check(response.header, before)
        return Outcome(response.succeeded, response.header.revision)

    @contextlib.asynccontextmanager
    async def watch(self, *ranges: Range, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        """See `KeyValueStore.watch`."""
        watcher = Watcher(self._channels, self._identity, ranges, from_revision, seen=self._seen, newest=self._newest)
        batches = watcher.batches()
        try:
            yield batches
        finally:
            await batches.aclose()

    async def grant(self, ttl: int) -> int:
        """See `KeyValueStore.grant`. One that is asked for twice, of two members, leaves a lease that soon ends."""
        response = await self._calls.ask(_grant, pb.LeaseGrantRequest(TTL=ttl), self._read_timeout)
        return int(response.ID)

    async def keep_alive(self, lease: int) -> int:
        """See `KeyValueStore.keep_alive`."""
        answer = await self._calls.ask(_renew, pb.LeaseKeepAliveRequest(ID=lease), self._read_timeout)
        if answer is grpc.aio.EOF:
            raise StoreError("etcd ended the renewal of a lease without an answer", reason="StoreUnavailable")
        return int(answer.TTL)

    async def revoke(self, lease: int) -> None:
        """See `KeyValueStore.revoke`; a lease that is gone already is no error."""
        try:
            await self._calls.ask(_revoke, pb.LeaseRevokeRequest(ID=lease), self._read_timeout)
        except RegopsError as error:
            if error.reason != "LeaseNotFound":
                raise

    async def health(self) -> StoreHealth:
        """Version, sizes, alarms, and what a person should change. `StalledError` for an etcd that is too old."""
        return await examine(self._calls, self._channels.endpoints, self._read_timeout)

    async def _newest(self, key: Range) -> Seen:
        """The newest state of the cluster, as of now: a linearizable read of something that this user may read."""
        request = wire.reading([Range(key.key, keys_only=True)])
        response = await self._calls.ask(_transact, request, self._read_timeout)
        return Seen.of(response.header)

    def _check(self, header: Any, before: Seen) -> None:
        """Compare with what was seen before the request was *sent*: answers may overtake each other."""
        now = Seen.of(header)
        if before.is_behind(now):
            self._seen = now
            raise DivergedError("etcd went back: another cluster or an older state answers", reason="StoreDiverged")
        self._seen = self._seen.joined(now)


def _transact(channel: grpc.aio.Channel) -> Any:
    return rpc.KVStub(channel).Txn


def _grant(channel: grpc.aio.Channel) -> Any:
    return rpc.LeaseStub(channel).LeaseGrant


def _revoke(channel: grpc.aio.Channel) -> Any:
    return rpc.LeaseStub(channel).LeaseRevoke


def _renew(channel: grpc.aio.Channel) -> Any:
    return partial(_renew_once, channel)


async def _renew_once(channel: grpc.aio.Channel, request: Any, *, timeout: float, metadata: Any) -> Any:  # noqa: ASYNC109 gRPC's own
    """Renewing is a stream in etcd's API: one question and one answer of it."""
    call = rpc.LeaseStub(channel).LeaseKeepAlive(timeout=timeout, metadata=metadata)
    try:
        with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already: reading tells how
            await call.write(request)
        return await call.read()
    finally:
        call.cancel()
