"""The API's own description, as a document for programs and as a page for people."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from aiohttp import web

from api.docs_page import POLICY, render
from api.openapi import document


async def openapi(_request: web.Request) -> web.Response:
    """OpenAPI 3.1."""
    return web.json_response(_document())


async def page(_request: web.Request) -> web.Response:
    """The same for people; nothing comes from outside."""
    headers = {"Content-Security-Policy": POLICY}
    return web.Response(text=_page(), content_type="text/html", headers=headers)


@cache
def _document() -> dict[str, object]:
    return document(version("regops"))


@cache
def _page() -> str:
    return render(_document())
