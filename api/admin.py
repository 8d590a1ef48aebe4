"""What platform admins tell the leader: look now, stop, go on, these deletions are meant."""

from __future__ import annotations

from aiohttp import web

from api import bodies, keys
from api.audited import ATTEMPT
from api.auth import Action
from api.requests import authorized
from api.schemas import ConfirmBody, SuspendBody, SyncBody


async def sync(request: web.Request) -> web.Response:
    """Look at the repository now; 202, the token shows up in /status once it was taken."""
    by = await _admin(request)
    body = await bodies.read_object(request, SyncBody)
    token = await request.app[keys.OPERATIONS].sync(by, remove_foreign=body.remove_foreign)
    return web.json_response({"token": token}, status=202)


async def suspend(request: web.Request) -> web.Response:
    """Stop applying commits."""
    by = await _admin(request)
    body = await bodies.read_object(request, SuspendBody)
    changed = await request.app[keys.OPERATIONS].suspend(by, body.reason)
    return _said(request, suspended=True, changed=changed)


async def resume(request: web.Request) -> web.Response:
    """Go on."""
    await _admin(request)
    changed = await request.app[keys.OPERATIONS].resume()
    return _said(request, suspended=False, changed=changed)


async def confirm(request: web.Request) -> web.Response:
    """Carry out the deletions that are blocked for this commit; 409 for any other."""
    by = await _admin(request)
    body = await bodies.read_object(request, ConfirmBody)
    confirmed = await request.app[keys.OPERATIONS].confirm(by, body.commit)
    request[ATTEMPT].commit = confirmed.commit
    return web.json_response({"commit": confirmed.commit, "deletions": list(confirmed.deletions)})


async def _admin(request: web.Request) -> str:
    return (await authorized(request, None, Action.ADMINISTER)).sub


def _said(request: web.Request, *, suspended: bool, changed: bool) -> web.Response:
    request[ATTEMPT].result = "done" if changed else "unchanged"
    return web.json_response({"suspended": suspended, "changed": changed})
