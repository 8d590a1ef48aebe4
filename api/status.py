"""Health, readiness, metrics and status over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from api import keys
from api.auth import Action, may_read
from api.conditional import conditional
from api.requests import authorized
from api.statusview import narrowed, status_document


async def healthz(_request: web.Request) -> web.Response:
    """The process lives and its event loop turns."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Whether this replica has what it needs: etcd was read, the compiler is up, and there is something to serve.

    A Git remote that is away matters only while nothing was ever applied: what is live can be read without it. As with
    Kubernetes' own servers, ``?exclude=git`` leaves a check out.
    """
    state = request.app[keys.MIRROR].state
    waits = dict(request.app[keys.WAITS_FOR]())
    if state is None:
        waits["etcd"] = "it was not read yet"
    elif state.applied is not None:
        waits.pop("git", None)
    for name in request.query.getall("exclude", []):
        waits.pop(name, None)
    if waits:
        reasons = [f"{name}: {why}" for name, why in sorted(waits.items())]
        return web.json_response({"status": "not ready", "reasons": reasons}, status=503)
    return web.json_response({"status": "ok"})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    body = generate_latest(request.app[keys.REGISTRY])
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def status(request: web.Request) -> web.Response:
    """Always 200, or 304: status is data. What cannot be read is Unknown; a caller sees what it may read."""
    caller = await authorized(request, None, Action.READ)
    seen = await request.app[keys.OBSERVER].look()
    document = status_document(seen, request.app[keys.PLACE], datetime.now(UTC))
    return conditional(request, narrowed(document, lambda name: may_read(caller, name)))
