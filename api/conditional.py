"""Documents that are asked for again and again: a strong ETag of their bytes, and 304 where nothing moved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from api.preconditions import not_modified


def conditional(request: web.Request, document: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> web.Response:
    """The document as JSON, or 304 when the caller has it. ``without``: members that do not count, as the time of the
    answer; a cache always asks again."""
    body = _bytes(document)
    counted = _bytes({name: value for name, value in document.items() if name not in without}) if without else body
    etag = f'"{hashlib.sha256(counted).hexdigest()[:40]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}
    if not_modified(request.headers, etag):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type="application/json", headers=headers)


def _bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
