"""Connections to the members of one etcd cluster: one channel an endpoint, one of them in use at a time.

gRPC's own keepalive notices a dead peer only with ``grpc.http2.ping_timeout_ms``; its automatic retries are off, since
a write must never be sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from reconciler.core.errors import StalledError

MAX_MESSAGE = 64 * 1024 * 1024
"""Largest answer that is taken, in bytes: etcd sends whole ranges and whole revisions."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.enable_retries", 0),
    # Unlike Go's, this gRPC would ask ``http_proxy`` even for an etcd on loopback.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)


class Channels:
    """The endpoints and which one is in use. ``rotate`` moves on to the next after a failure."""

    def __init__(
        self, endpoints: Sequence[str], *, ca_file: Path | None, cert_file: Path | None, key_file: Path | None
    ) -> None:
        if not endpoints:
            raise StalledError("no etcd endpoints are configured", reason="InvalidSettings")
        self._endpoints = tuple(endpoints)
        self._files = (ca_file, key_file, cert_file)
        self._open: dict[str, grpc.aio.Channel] = {}
        self._index = 0

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def endpoint(self) -> str:
        """The one in use."""
        return self._endpoints[self._index]

    def current(self) -> grpc.aio.Channel:
        """The channel in use, opened when first asked for."""
        if self.endpoint not in self._open:
            self._open[self.endpoint] = self._connect(self.endpoint)
        return self._open[self.endpoint]

    def rotate(self, failed: str) -> None:
        """Use the next endpoint, unless somebody has moved on from ``failed`` already."""
        if failed == self.endpoint:
            self._index = (self._index + 1) % len(self._endpoints)

    async def aclose(self) -> None:
        """Close every channel; calls under way end with an error."""
        for channel in self._open.values():
            await channel.close()
        self._open.clear()

    def _connect(self, endpoint: str) -> grpc.aio.Channel:
        parts = urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        target = parts.netloc
        if parts.scheme != "https":
            return grpc.aio.insecure_channel(target, options=_OPTIONS)
        ca, key, cert = (path.read_bytes() if path else None for path in self._files)
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options=_OPTIONS)
