"""`EtcdStore`: the port `KeyValueStore` on etcd's v3 API. Reads may move on to another member; a write is sent once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from reconciler.adapters.etcd import failures
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import etcd_pb2_grpc as rpc
from reconciler.adapters.etcd.channels import Channels
from reconciler.adapters.etcd.watch import Watcher
from reconciler.core.errors import DivergedError, RegopsError, StalledError, StoreError
from reconciler.core.keyspace import prefix_end
from reconciler.core.ports import (
    Compare,
    Delete,
    KeyValue,
    Outcome,
    Put,
    Range,
    Read,
    StoreHealth,
    Target,
    Transaction,
    WatchBatch,
)

_OLDEST = (3, 5)
_REQUEST_BYTES = 2_097_152
_PROBE_BYTES = 1_900_000
_CONNECT_SECONDS = 1.5
Metadata = tuple[tuple[str, str], ...]


class EtcdStore:
    """One etcd cluster. Deadlines are seconds; ``user`` and ``password`` where etcd asks for them."""

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
        self._user = user
        self._password = password
        self._read_timeout = read_timeout
        self._commit_timeout = commit_timeout
        self._token = ""
        self._seen = (0, 0, 0)  # cluster id, raft term, store revision

    async def aclose(self) -> None:
        """Close the connections."""
        await self._channels.aclose()

    # --- the port ----------------------------------------------------------------------------------------------------

    async def read(self, *ranges: Range, revision: int = 0) -> Read:
        """See `KeyValueStore.read`."""
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=_range(each, revision)) for each in ranges])
        before = self._seen
        response = await self._ask(lambda channel: rpc.KVStub(channel).Txn, request)
        self._check(response.header, before)
        return Read(
            revision=response.header.revision,
            ranges=tuple(tuple(map(key_value, part.response_range.kvs)) for part in response.responses),
            raft_term=response.header.raft_term,
        )

    async def commit(self, transaction: Transaction) -> Outcome:
        """See `KeyValueStore.commit`."""
        request = pb.TxnRequest(
            compare=list(map(_compare, transaction.compares)), success=list(map(_operation, transaction.operations))
        )
        before = self._seen
        response = await self._send(request)
        if response.succeeded:
            self._note(response.header)
        else:
            self._check(response.header, before)
        return Outcome(response.succeeded, response.header.revision)

    @contextlib.asynccontextmanager
    async def watch(self, *ranges: Range, from_revision: int) -> AsyncIterator[AsyncIterator[WatchBatch]]:
        """See `KeyValueStore.watch`."""
        watcher = Watcher(self._channels, self._metadata, ranges, from_revision)
        batches = watcher.batches()
        try:
            yield batches
        finally:
            await batches.aclose()

    async def grant(self, ttl: int) -> int:
        """See `KeyValueStore.grant`."""
        response = await self._ask(lambda channel: rpc.LeaseStub(channel).LeaseGrant, pb.LeaseGrantRequest(TTL=ttl))
        return int(response.ID)

    async def keep_alive(self, lease: int) -> int:
        """See `KeyValueStore.keep_alive`."""
        endpoint = self._channels.endpoint
        call = None
        try:
            metadata = await self._metadata()
            call = rpc.LeaseStub(self._channels.current()).LeaseKeepAlive(timeout=self._read_timeout, metadata=metadata)
            await call.write(pb.LeaseKeepAliveRequest(ID=lease))
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            self._moved(error, endpoint)
            raise failures.of_read(error, endpoint) from error
        except asyncio.InvalidStateError as error:  # the call ended before it was written to
            raise StoreError(f"etcd at {endpoint} did not renew the lease", reason="StoreUnavailable") from error
        finally:
            if call is not None:
                call.cancel()
        return 0 if answer is grpc.aio.EOF else int(answer.TTL)

    async def revoke(self, lease: int) -> None:
        """See `KeyValueStore.revoke`; a lease that is gone already is no error."""
        try:
            await self._ask(lambda channel: rpc.LeaseStub(channel).LeaseRevoke, pb.LeaseRevokeRequest(ID=lease))
        except RegopsError as error:
            if error.reason != "LeaseNotFound":
                raise

    async def health(self) -> StoreHealth:
        """Version, sizes, alarms, and whether large policies fit. `StalledError` for an etcd that is too old."""
        status = await self._ask(lambda channel: rpc.MaintenanceStub(channel).Status, pb.StatusRequest())
        if tuple(int(part) for part in status.version.split(".")[:2]) < _OLDEST:
            raise StalledError(
                f"etcd {status.version} is too old", reason="EtcdTooOld", remedy="Run etcd 3.5 or newer."
            )
        return StoreHealth(
            version=status.version,
            db_size=status.dbSize,
            quota=status.dbSizeQuota,
            alarms=tuple(status.errors),
            warnings=await self._request_limit(),
        )

    # --- below -------------------------------------------------------------------------------------------------------

    async def _request_limit(self) -> tuple[str, ...]:
        """Try, without writing, whether a policy at its size limits would be accepted."""
        never = (Compare("/", Target.CREATE, -1),)
        try:
            await self.commit(Transaction(never, (Put("/", b"\0" * _PROBE_BYTES),)))
        except StalledError as error:
            if error.reason != "TooLarge":
                raise
            return (f"etcd refuses policies near the size limit: start it with --max-request-bytes {_REQUEST_BYTES}",)
        return ()

    async def _send(self, request: Any) -> Any:
        """Send a write once. A connection that is not up is waited for first: until then nothing was sent."""
        channel, endpoint = self._channels.current(), self._channels.endpoint
        if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            try:
                await asyncio.wait_for(channel.channel_ready(), min(_CONNECT_SECONDS, self._commit_timeout))
            except TimeoutError as error:
                self._channels.rotate(endpoint)
                raise StoreError(f"etcd at {endpoint} cannot be reached", reason="StoreUnavailable") from error
        try:
            metadata = await self._metadata()
        except grpc.aio.AioRpcError as error:
            self._moved(error, endpoint)
            raise failures.of_read(error, endpoint) from error
        try:
            return await rpc.KVStub(channel).Txn(request, timeout=self._commit_timeout, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            self._moved(error, endpoint)
            raise failures.of_write(error, endpoint) from error

    async def _ask(self, method: Callable[[grpc.aio.Channel], Any], request: Any) -> Any:
        """A call that may be repeated: once more, on the next endpoint, when the first did not answer."""
        for attempt in (1, 2):
            endpoint = self._channels.endpoint
            try:
                metadata = await self._metadata()
                # A channel that failed a moment ago refuses at once; the second attempt waits for it to connect.
                return await method(self._channels.current())(
                    request, timeout=self._read_timeout, metadata=metadata, wait_for_ready=attempt > 1
                )
            except grpc.aio.AioRpcError as error:
                self._moved(error, endpoint)
                again = failures.may_move_on(error) and error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
                if attempt == 1 and (again or len(self._channels) > 1 or self._token_lost(error)):
                    continue
                raise failures.of_read(error, endpoint) from error
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _moved(self, error: grpc.aio.AioRpcError, endpoint: str) -> None:
        if failures.may_move_on(error):
            self._channels.rotate(endpoint)
        self._token_lost(error)

    def _token_lost(self, error: grpc.aio.AioRpcError) -> bool:
        lost = error.code() is grpc.StatusCode.UNAUTHENTICATED and bool(self._token)
        if lost:
            self._token = ""
        return lost

    async def _metadata(self) -> Metadata:
        if self._user and not self._token:
            request = pb.AuthenticateRequest(name=self._user, password=self._password)
            answer = await rpc.AuthStub(self._channels.current()).Authenticate(request, timeout=self._read_timeout)
            self._token = answer.token
        return (("token", self._token),) if self._token else ()

    def _note(self, header: Any) -> None:
        seen = (header.cluster_id, header.raft_term, header.revision)
        self._seen = max(self._seen, seen) if self._seen[0] == seen[0] else seen

    def _check(self, header: Any, before: tuple[int, int, int]) -> None:
        """Compare with what was seen before the request was *sent*: answers may overtake each other."""
        cluster, term, revision = before
        if cluster and (header.cluster_id != cluster or header.raft_term < term or header.revision < revision):
            self._seen = (header.cluster_id, header.raft_term, header.revision)
            raise DivergedError("etcd went back: another cluster or an older state answers", reason="StoreDiverged")
        self._note(header)


def key_value(kv: Any) -> KeyValue:
    """A key of etcd's; bytes that are no UTF-8 survive as surrogates."""
    return KeyValue(
        key=kv.key.decode("utf-8", "surrogateescape"),
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        lease=kv.lease,
    )


def key_bytes(key: str) -> bytes:
    """The key as etcd has it."""
    return key.encode("utf-8", "surrogateescape")


def _range(each: Range, revision: int) -> Any:
    end = key_bytes(prefix_end(each.key)) if each.prefix else b""
    return pb.RangeRequest(key=key_bytes(each.key), range_end=end, revision=revision, keys_only=each.keys_only)


def _compare(compare: Compare) -> Any:
    if compare.target is Target.CREATE:
        return pb.Compare(
            result=pb.Compare.EQUAL,
            target=pb.Compare.CREATE,
            key=key_bytes(compare.key),
            create_revision=compare.revision,
        )
    return pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key_bytes(compare.key), mod_revision=compare.revision
    )


def _operation(operation: Put | Delete) -> Any:
    if isinstance(operation, Put):
        put = pb.PutRequest(key=key_bytes(operation.key), value=operation.value, lease=operation.lease)
        return pb.RequestOp(request_put=put)
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key_bytes(operation.key)))
