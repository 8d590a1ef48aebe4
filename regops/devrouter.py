"""The router of ``regops dev --shards``: one address for the OPAs of all shards, to try them out.

It is for that only: HAProxy or Envoy do this in an installation (`regops shards`), with health checks, replicas and
connections kept in hand. The rules are the same (`regops.gateways.paths`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from regops.gateways.paths import Refusal, destination

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60)
_PASSED_ON: Final = frozenset({"content-type", "content-encoding", "accept", "accept-encoding", "authorization"})
_PASSED_BACK: Final = frozenset({"content-type", "content-encoding"})
_LARGEST: Final = 64 * 1024 * 1024


@contextlib.asynccontextmanager
async def route(opas: Sequence[str], port: int) -> AsyncIterator[str]:
    """Serve on loopback as long as the block runs; yields the address. ``opas[i - 1]`` is the URL of shard i's OPA."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session:
        router = _Router(opas, session)
        # A middleware sees every path as it came; routes would judge it first.
        app = web.Application(client_max_size=_LARGEST, middlewares=[router.answer])
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


class _Router:
    def __init__(self, opas: Sequence[str], session: aiohttp.ClientSession) -> None:
        self._opas = opas
        self._session = session
        self._turns = itertools.cycle(range(len(opas)))

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Pass the question on, its path as it came."""
        del handler
        found = destination(request.method, request.raw_path.partition("?")[0], len(self._opas))
        if isinstance(found, Refusal):
            return web.Response(status=found.status, text=found.body(), content_type="application/json")
        opa = self._opas[next(self._turns) if found is None else found - 1]
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() in _PASSED_ON}
        try:
            async with self._session.request(
                request.method,
                URL(f"{opa}{request.raw_path}", encoded=True),
                data=body or None,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                said = {name: value for name, value in answer.headers.items() if name.lower() in _PASSED_BACK}
                return web.Response(status=answer.status, body=await answer.read(), headers=said)
        except (aiohttp.ClientError, TimeoutError) as error:
            told = {"code": "bad_gateway", "message": f"{opa} does not answer: {type(error).__name__}"}
            return web.Response(status=502, text=json.dumps(told), content_type="application/json")
