"""Health, readiness, metrics and status over HTTP."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from api import keys
from api.auth import Action, may_read
from api.requests import authorized
from api.statusview import Observed, narrowed, status_document
from reconciler.core.conditions import StatusRecord
from reconciler.core.errors import RegopsError
from reconciler.core.ports import KeyValue, Range
from reconciler.core.records import Applied, Held, Receipt, Suspended


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
    """Always 200: status is data. What cannot be read is Unknown, never Synced. A caller sees what it may read."""
    caller = await authorized(request, None, Action.READ)
    last = request.app[keys.LAST_SEEN]
    try:
        last[0] = await _observe(request.app)
    except RegopsError:
        last[0] = replace(last[0], reachable=False)
    document = status_document(last[0], request.app[keys.PLACE], datetime.now(UTC))
    document = narrowed(document, lambda name: may_read(caller, name))
    return web.json_response(document, headers={"Cache-Control": "no-store"})


async def _observe(app: web.Application) -> Observed:
    space = app[keys.KEYSPACE]
    read = await app[keys.STORE].read(
        Range(space.status),
        Range(space.applied),
        Range(space.suspended),
        Range(space.helds, prefix=True),
        Range(space.metas, prefix=True, keys_only=True),
        Range(space.receipts, prefix=True),
        Range(space.alives, prefix=True, keys_only=True),
        Range(space.leader),
    )
    record, applied, suspended, helds, metas, receipts, alives, leader = read.ranges
    held = {kv.key.removeprefix(space.helds): decoded(Held, kv) for kv in helds}
    found = [decoded(Receipt, kv) for kv in receipts]
    return Observed(
        record=decoded(StatusRecord, record[0]) if record else None,
        applied=decoded(Applied, applied[0]) if applied else None,
        suspended=(decoded(Suspended, suspended[0]) or Suspended("", "", "")) if suspended else None,
        held={name: value for name, value in held.items() if value is not None},
        live=len(metas),
        receipts=tuple(receipt for receipt in found if receipt is not None),
        alive=frozenset(kv.key.removeprefix(space.alives) for kv in alives),
        led=bool(leader),
    )


def decoded(kind: type[keys.RecordT], kv: KeyValue) -> keys.RecordT | None:
    """The record under a key; ``None`` for what cannot be read."""
    try:
        return kind.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        return None
