"""The HTTP face towards one OPA: bundle by long poll, status posts, health and metrics.

A poll is held until there is something that this OPA does not have and has not refused, and is never answered with
304 before its time: OPA asks again without a delay.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from reconciler.agent.bundle import Bundle
from reconciler.agent.latest import Pulse
from reconciler.agent.opa_config import BUNDLE, RESOURCE
from reconciler.agent.opa_status import parse_status
from reconciler.agent.witness import Offer, Witness

BUNDLE_TYPE: Final = "application/vnd.openpolicyagent.bundles"
"""Without exactly this type OPA leaves the long poll."""
_STATUS_LIMIT: Final = 8 * 1024 * 1024
_CHUNK: Final = 256 * 1024
_JITTER: Final = 0.1
"""Polls end up to this fraction early, so that a fleet does not ask in step."""
_STOP_SECONDS: Final = 1.0
_WAIT = re.compile(r"(?:^|[;,\s])wait=(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Poll:
    """One request for the bundle. ``etag`` is what the asker has, ``wait`` the seconds that it is willing to wait;
    ``opa`` whether it is an OPA that asks (it names the bundle modes that it takes), and not a person."""

    etag: str | None
    wait: float
    opa: bool
    peer: str

    @classmethod
    def of(cls, request: web.Request) -> Self:
        """The poll in a request. An empty ``If-None-Match`` is none."""
        prefer = ",".join(request.headers.getall("Prefer", []))
        wait = _WAIT.search(prefer)
        peer = request.transport.get_extra_info("peername") if request.transport else None
        return cls(
            etag=request.headers.get("If-None-Match", "").strip() or None,
            wait=float(wait[1]) if wait else 0.0,
            opa="modes=" in prefer,
            peer=str(peer),
        )


class BundleServer:
    """Serves the newest `offer` on ``host``:``port`` (0: a free one). ``stale`` says whether etcd is out of reach."""

    def __init__(
        self,
        witness: Witness,
        registry: CollectorRegistry,
        *,
        hold: float,
        stale: Callable[[], bool],
    ) -> None:
        self._witness = witness
        self._registry = registry
        self._hold = hold
        self._stale = stale
        self._offer: Offer | None = None
        self._pulse = Pulse()
        self._closing = False
        self._runner = web.AppRunner(
            self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_SECONDS
        )

    @property
    def offer(self) -> Offer | None:
        """What is served, ``None`` while there is nothing."""
        return self._offer

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._runner.addresses[0][1])

    def set_offer(self, offer: Offer) -> None:
        """Serve this from now on; it is on disk already."""
        self._offer = offer
        self._witness.offered(offer)
        self._pulse.beat()

    async def start(self, host: str, port: int) -> None:
        """Listen. `OSError` when the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def stop(self) -> None:
        """End pending polls and listen no more, within about a second."""
        self._closing = True
        self._pulse.beat()
        await self._runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=_STATUS_LIMIT)
        app.router.add_get(f"/{RESOURCE}", self._bundle)
        app.router.add_post("/status", self._status)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        return app

    # --- bundle ------------------------------------------------------------------------------------------------------

    async def _bundle(self, request: web.Request) -> web.StreamResponse:
        poll = Poll.of(request)
        if not poll.opa:
            return await self._answer(request, poll, await self._wanted(poll))
        number, whole = self._witness.polled(poll.etag, poll.peer), False
        try:
            response = await self._answer(request, poll, await self._wanted(poll))
            whole = True
        finally:
            self._witness.answered(number, dropped=not whole)
        return response

    async def _wanted(self, poll: Poll) -> Bundle | None:
        """The bundle to send, as soon as there is one; ``None`` when the time is over or the agent stops."""
        hold = min(poll.wait, self._hold) * random.uniform(1 - _JITTER, 1)  # noqa: S311 no secret
        try:
            async with asyncio.timeout(hold):
                while (bundle := self._sendable(poll)) is None and hold > 0 and not self._closing:
                    await self._pulse.wait()
        except TimeoutError:
            return None
        return bundle

    def _sendable(self, poll: Poll) -> Bundle | None:
        if self._offer is None or self._offer.bundle.etag == poll.etag:
            return None
        bundle = self._offer.bundle
        return bundle if not poll.opa or self._witness.proof.may_send(bundle.etag) else None

    async def _answer(self, request: web.Request, poll: Poll, bundle: Bundle | None) -> web.StreamResponse:
        if bundle is not None:
            return await self._send(request, poll, bundle)
        if poll.etag is not None and (self._offer is not None or self._closing):
            # OPA takes the ETag of a 304 for that of its own bundle: it must be the one that it named.
            return web.Response(status=304, headers={"ETag": poll.etag})
        return web.Response(status=503, headers={"Retry-After": "1"}, text="there is no bundle to serve\n")

    async def _send(self, request: web.Request, poll: Poll, bundle: Bundle) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": BUNDLE_TYPE, "ETag": bundle.etag, "Cache-Control": "no-store", "Vary": "Prefer"}
        )
        response.content_length = len(bundle.body)
        if poll.opa:
            self._witness.sending(bundle.etag)
        await response.prepare(request)
        body = memoryview(bundle.body)
        for start in range(0, len(body), _CHUNK):
            await response.write(body[start : start + _CHUNK])
        await response.write_eof()
        if poll.opa:
            self._witness.delivered(poll.peer)
        return response

    # --- status, health, metrics -------------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        """OPA waits for this answer before it activates the next bundle, so it is short."""
        body = await request.read()
        try:
            status = parse_status(await asyncio.to_thread(json.loads, body), BUNDLE)
        except (ValueError, RecursionError):
            return web.Response(status=400, text="this is no status of an OPA\n")
        self._witness.told(status)
        self._pulse.beat()
        return web.Response()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        """Ready = there is something to serve. ``enforced_revision`` as in the receipt."""
        offer, receipt = self._offer, self._witness.receipt()
        document = {
            "ready": offer is not None,
            "revision": offer.commit if offer else None,
            "etag": offer.bundle.etag if offer else None,
            "enforced_revision": receipt.enforced_revision,
            "error": receipt.error,
            "stale": self._stale(),
        }
        return web.json_response(document, status=200 if offer else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
