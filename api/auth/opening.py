"""Settings → what verifies and authorizes, with the connections that both need."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp

from api.auth.authorizer import Authorizer
from api.auth.key_sources import key_source
from api.auth.keys import Keys
from api.auth.narrowing import Narrowing
from api.auth.verifier import Verifier
from reconciler.settings import AuthSettings


@dataclass(frozen=True, slots=True)
class Access:
    """Both halves, and the keys, whose `Keys.run` keeps them fresh and belongs into the process's task group."""

    verifier: Verifier
    authorizer: Authorizer
    keys: Keys


@contextlib.asynccontextmanager
async def open_access(settings: AuthSettings) -> AsyncIterator[Access]:
    """For as long as the block runs. Nothing is asked before the first request or `Keys.run`.

    Raises `StalledError` for settings with which no token could be verified.
    """
    # Each its own connections: an issuer that hangs must not use up those to OPA. What they answer is read as sent,
    # since a few compressed bytes can stand for gigabytes.
    async with (
        aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as issuer,
        aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as opa,
    ):
        keys = Keys(key_source(issuer, settings), cooldown=settings.jwks_cooldown, max_age=settings.jwks_max_age)
        verifier = Verifier(keys, settings)
        authorizer = Authorizer(Narrowing(opa, settings.opa, settings.opa_timeout))
        yield Access(verifier, authorizer, keys)
