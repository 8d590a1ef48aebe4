"""How a call is made: a question may be asked again and elsewhere, a write is sent once. Both have one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

import grpc

from reconciler.adapters.etcd import failures
from reconciler.adapters.etcd.channels import Channels
from reconciler.adapters.etcd.identity import Identity
from reconciler.core.errors import RegopsError, StoreError

Method = Callable[[grpc.aio.Channel], Any]
"""From a channel to what is called with a request, ``timeout`` and ``metadata``."""

_CONNECT_SECONDS = 2.0
"""A write waits no longer for a connection: until then nothing was sent, and the caller may know better."""
_PATIENCE = 0.25
"""Part of a question's deadline after which a second member is asked as well."""


class _Again(Exception):  # noqa: N818 never leaves this module
    """The same may be asked elsewhere; ``failure`` is what to say when nobody answers."""

    def __init__(self, failure: RegopsError) -> None:
        super().__init__(failure)
        self.failure = failure


class Calls:
    """Calls on the endpoint in use."""

    def __init__(self, channels: Channels, identity: Identity) -> None:
        self._channels = channels
        self._identity = identity

    async def ask(self, method: Method, request: Any, seconds: float) -> Any:
        """The first answer. A member that fails, or is silent for a while, is asked no longer alone.

        Raises what `failures.of_read` says. A question must not change anything when it is asked twice.
        """
        end = monotonic() + seconds
        most = len(self._channels) + 1
        tried: set[str] = set()
        tasks: list[asyncio.Task[Any]] = []
        running: set[asyncio.Task[Any]] = set()
        failure: RegopsError = StoreError("etcd did not answer in time", reason="StoreUnavailable")
        try:
            while True:
                # An attempt that is not connected yet tries every member already.
                if len(tasks) < most and len(running) < len(self._channels) and (len(tried) >= len(running)):
                    tasks.append(asyncio.create_task(self._try(method, request, end, tried)))
                    running.add(tasks[-1])
                if not running:
                    raise failure
                done, running = await asyncio.wait(
                    running, timeout=seconds * _PATIENCE, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if error is None:
                        return task.result()
                    if not isinstance(error, _Again):
                        raise error
                    failure = error.failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask_at(self, endpoint: str, method: Method, request: Any, seconds: float) -> Any:
        """The answer of one member. Raises what `failures.of_read` says."""
        end = monotonic() + seconds
        channel = self._channels.of(endpoint)
        try:
            metadata = await self._identity.metadata(channel, seconds)
            return await method(channel)(request, timeout=_until(end), metadata=metadata, wait_for_ready=True)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            self._identity.refused(failures.words(error))
            raise failures.of_read(error, endpoint) from error

    async def send(self, method: Method, request: Any, seconds: float) -> Any:
        """Send a write once. A connection that is not up is waited for first: until then nothing was sent.

        Only what etcd refuses for an outdated token, so what surely did not happen, is sent again with a new one, as
        etcd's own client does (client/v3/retry_interceptor.go). Raises what `failures.of_write` says.
        """
        end = monotonic() + seconds
        for last in (False, True):
            endpoint = await self._channels.connect(min(_CONNECT_SECONDS, _until(end)))
            channel = self._channels.of(endpoint)
            try:
                metadata = await self._identity.metadata(channel, _until(end))
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                self._channels.failed(endpoint)
                raise failures.of_read(error, endpoint) from error
            try:
                answer = await method(channel)(request, timeout=_until(end), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if self._identity.refused(failures.words(error)) and not last:
                    continue
                if failures.may_move_on(error):
                    self._channels.failed(endpoint)
                raise failures.of_write(error, endpoint) from error
            self._channels.worked(endpoint)
            return answer
        raise AssertionError("unreachable: the second turn returns or raises")

    async def _try(self, method: Method, request: Any, end: float, tried: set[str]) -> Any:
        endpoint = await self._channels.connect(_until(end), tried)
        tried.add(endpoint)
        channel = self._channels.of(endpoint)
        try:
            metadata = await self._identity.metadata(channel, _until(end))
            answer = await method(channel)(request, timeout=_until(end), metadata=metadata)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            failure = failures.of_read(error, endpoint)
            failure.__cause__ = error
            if self._identity.refused(failures.words(error)):
                tried.discard(endpoint)
                raise _Again(failure) from error
            if failures.may_move_on(error):
                self._channels.failed(endpoint)
                raise _Again(failure) from error
            raise failure from error
        self._channels.worked(endpoint)
        return answer


def _until(end: float) -> float:
    """Seconds left, never quite none: gRPC turns a deadline in the past into a call without one."""
    return max(0.001, end - monotonic())
