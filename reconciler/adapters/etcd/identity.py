"""The user that etcd knows us as: a token that is asked for once and again when etcd no longer takes it."""

from __future__ import annotations

import asyncio

import grpc

from reconciler.adapters.etcd import failures
from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.adapters.etcd._pb import etcd_pb2_grpc as rpc

Metadata = tuple[tuple[str, str], ...]


class Identity:
    """User and password; without a user nothing is asked and nothing is sent."""

    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._token: str | None = None if user else ""
        self._asking = asyncio.Lock()

    async def metadata(self, channel: grpc.aio.Channel, seconds: float) -> Metadata:
        """What goes with a call. Raises `TimeoutError` and what gRPC raises."""
        async with asyncio.timeout(seconds), self._asking:
            if self._token is None:
                self._token = await self._authenticate(channel, seconds)
        return (("token", self._token),) if self._token else ()

    def refused(self, words: str) -> bool:
        """Whether these words of etcd's mean that the token is of no use any more; the next call asks for another."""
        if not self._user or not failures.is_stale_token(words):
            return False
        self._token = None
        return True

    async def _authenticate(self, channel: grpc.aio.Channel, seconds: float) -> str:
        request = pb.AuthenticateRequest(name=self._user, password=self._password)
        try:
            answer = await rpc.AuthStub(channel).Authenticate(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if "authentication is not enabled" in (error.details() or ""):
                return ""
            raise
        return str(answer.token)
