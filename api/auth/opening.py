"""Settings → what verifies and authorizes, with the connections that both need."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp

from api.auth.authorizer import Authorizer
from api.auth.decisions import open_decisions
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
async def open_access(
    settings: AuthSettings, version: Callable[[], str | None] = lambda: None
) -> AsyncIterator[Access]:
    """For as long as the block runs. Nothing is asked before the first request or `Keys.run`.

    ``version`` names the platform's policy that is live; without it no decision is remembered.

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
        narrowing = Narrowing(opa, settings.opa, settings.opa_timeout)
        async with open_decisions(narrowing, settings.opa_max_age, version) as decisions:
            yield Access(verifier, Authorizer(narrowing, decisions), keys)
