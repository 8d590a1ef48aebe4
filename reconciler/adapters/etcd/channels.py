"""Connections to the members of one etcd cluster: one channel an endpoint, one of them in use at a time.

gRPC's own keepalive notices a dead peer only with ``grpc.http2.ping_timeout_ms``; its automatic retries, transparent
ones too, are off, since a write must never be sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import grpc

from reconciler.adapters.etcd import failures
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import etcd_pb2_grpc as rpc
from reconciler.core.errors import StalledError, StoreError

MAX_MESSAGE = 64 * 1024 * 1024
"""Largest answer that is taken, in bytes: etcd sends whole ranges and whole revisions."""

_WHY_SECONDS = 0.2
_STAGGER_SECONDS = 0.15
"""Lead of each member over the next in connecting, so that all clients together do not connect to every member."""
_SUSPECT_SECONDS = 15.0
"""A little longer than gRPC's keepalive takes to find a dead connection."""
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
    # Like etcd's own clients: a proxy for the way to Git or to a package registry is none to etcd.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # No pause, whatever its name says: the time that one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Channels:
    """The endpoints and which one is in use: it stays in use until a call on it fails."""

    def __init__(
        self, endpoints: Sequence[str], *, ca_file: Path | None, cert_file: Path | None, key_file: Path | None
    ) -> None:
        self._targets = {endpoint: _target(endpoint) for endpoint in endpoints}
        self._files = {"etcd.ca_file": ca_file, "etcd.key_file": key_file, "etcd.cert_file": cert_file}
        self._check()
        self._endpoints = tuple(self._targets)
        self._open: dict[str, tuple[grpc.aio.Channel, tuple[bytes | None, ...]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._index = 0
        self._suspects: dict[str, float] = {}  # endpoint → until when its open connection proves nothing

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All of them, as configured."""
        return self._endpoints

    def of(self, endpoint: str) -> grpc.aio.Channel:
        """The endpoint's channel, opened when first asked for, and anew when it is down and its files have changed.

        Raises `StalledError` for a file that cannot be read.
        """
        if endpoint in self._open and self._open[endpoint][0].get_state() is grpc.ChannelConnectivity.READY:
            return self._open[endpoint][0]
        files = self._read_files(endpoint)
        if endpoint in self._open and self._open[endpoint][1] != files:
            self._close(self._open.pop(endpoint)[0])
        if endpoint not in self._open:
            self._open[endpoint] = (self._connect(endpoint, files), files)
        return self._open[endpoint][0]

    async def connect(self, seconds: float, avoid: Collection[str] = ()) -> str:
        """The endpoint in use if its connection is up, else the first of all that comes up; it is then in use.

        ``avoid`` names endpoints that did not answer, taken only when there is no other. Raises `StoreError` with the
        reasons when none comes up within ``seconds``.
        """
        order = [each for each in self._in_order() if each not in avoid] or self._in_order()
        order.sort(key=self._is_suspect)  # stable: otherwise the order stays
        for endpoint in order:
            up = self.of(endpoint).get_state() is grpc.ChannelConnectivity.READY
            if up and not (self._is_suspect(endpoint) and len(order) > 1):
                return self._use(endpoint)
        waits = {asyncio.ensure_future(self._up(each, index)): each for index, each in enumerate(order)}
        try:
            await asyncio.wait(waits, timeout=seconds - _WHY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            ready = [each for each in waits if each.done() and each.exception() is None]
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if ready:
            return self._use(waits[ready[0]])
        raise await self._unreachable(order)

    def failed(self, endpoint: str) -> None:
        """Use the next endpoint, unless somebody has moved on from this one already.

        A member that hangs keeps its connections, so for a while an open one does not speak for it.
        """
        self._suspects[endpoint] = monotonic() + _SUSPECT_SECONDS
        if endpoint == self._endpoints[self._index]:
            self._index = (self._index + 1) % len(self._endpoints)

    def worked(self, endpoint: str) -> None:
        """It has answered: whatever was suspected is over."""
        self._suspects.pop(endpoint, None)

    async def aclose(self) -> None:
        """Close every channel; calls under way end with an error."""
        for channel, _ in self._open.values():
            self._close(channel)
        self._open.clear()
        await asyncio.gather(*self._closing)

    async def _up(self, endpoint: str, place: int) -> None:
        """Return when the connection is up, begun according to its place in the order."""
        await asyncio.sleep(place * _STAGGER_SECONDS)
        await self.of(endpoint).channel_ready()

    def _check(self) -> None:
        if not self._targets:
            raise _unusable("no etcd endpoints are configured", "Set etcd.endpoints (REGOPS_ETCD_ENDPOINTS).")
        given = [name for name, path in self._files.items() if path]
        if len({"etcd.key_file", "etcd.cert_file"} & set(given)) == 1:
            raise _unusable(f"{given[-1]} is set alone", "etcd.cert_file and etcd.key_file belong together.")
        plain = next((each for each in self._targets if not each.startswith("https://")), None)
        if given and plain:
            remedy = f"Write https:// in etcd.endpoints, or leave {given[0]} away."
            raise _unusable(f"{given[0]} is set, and {plain} uses no TLS", remedy)

    def _is_suspect(self, endpoint: str) -> bool:
        return monotonic() < self._suspects.get(endpoint, 0.0)

    def _in_order(self) -> list[str]:
        return [*self._endpoints[self._index :], *self._endpoints[: self._index]]

    def _use(self, endpoint: str) -> str:
        self._index = self._endpoints.index(endpoint)
        return endpoint

    def _read_files(self, endpoint: str) -> tuple[bytes | None, ...]:
        if not endpoint.startswith("https://"):
            return ()
        found: list[bytes | None] = []
        for name, path in self._files.items():
            try:
                found.append(path.read_bytes() if path else None)
            except OSError as error:
                remedy = f"Set {name} to a file in PEM format that this user may read."
                raise _unusable(f"{name}: {path}: {error.strerror}", remedy) from error
        return tuple(found)

    def _connect(self, endpoint: str, files: tuple[bytes | None, ...]) -> grpc.aio.Channel:
        target = self._targets[endpoint]
        if not files:
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(*files), options=_OPTIONS)

    def _close(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.ensure_future(channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _unreachable(self, endpoints: Sequence[str]) -> StoreError:
        """Ask once more: a channel that is down refuses at once, and says why."""
        return failures.unreachable(dict(zip(endpoints, await asyncio.gather(*map(self._why, endpoints)), strict=True)))

    async def _why(self, endpoint: str) -> str:
        try:
            await rpc.MaintenanceStub(self.of(endpoint)).Status(pb.StatusRequest(), timeout=_WHY_SECONDS)
        except grpc.aio.AioRpcError as error:
            return "" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error.details() or ""
        return ""


def _target(endpoint: str) -> str:
    """``host:port`` of a client URL. Raises `StalledError` for what is none."""
    parts = urlsplit(endpoint if "//" in endpoint else f"http://{endpoint}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port is None or parts.path.strip("/"):
        raise _unusable(f"etcd.endpoints: {endpoint!r} is no client URL", "Write https://HOST:2379 for each member.")
    return f"[{parts.hostname}]:{port}" if ":" in parts.hostname else f"{parts.hostname}:{port}"


def _unusable(message: str, remedy: str) -> StalledError:
    return StalledError(message, reason="InvalidSettings", remedy=remedy)
