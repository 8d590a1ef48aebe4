"""From an ``Authorization`` header to the caller (RFC 6750, RFC 7515, RFC 7519; hardened by RFC 8725)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from multidict import CIMultiDictProxy

from api.auth import tokens
from api.auth.caller import Caller
from api.auth.claims import caller_of, ends_at
from api.auth.keys import Keys
from api.auth.proven import Proven, digest_of
from api.auth.refusals import invalid_token, no_token
from reconciler.core.errors import StalledError
from reconciler.settings import AuthSettings

log = logging.getLogger(__name__)


class Verifier:
    """Believes the tokens of one issuer for one audience."""

    def __init__(self, keys: Keys, settings: AuthSettings, *, clock: Callable[[], float] = time.time) -> None:
        for name, value in (("auth.issuer", settings.issuer), ("auth.audience", settings.audience)):
            if not value:
                remedy = "Set it to what the issuer writes into its tokens."
                raise StalledError(f"{name} is empty", reason="InvalidSettings", remedy=remedy)
        if not settings.tenant:
            log.warning("tokens of every tenant are served", extra={"remedy": "set auth.tenant"})
        self._keys = keys
        self._settings = settings
        self._clock = clock
        self._proven = Proven()

    async def verify(self, authorization: str | None) -> Caller:
        """The caller whom the header's token names. A token that was proven before, by keys that still count, is not
        proven again.

        Raises `ProblemError`: 401 with a challenge that names what is wrong, 403 for a tenant that is not served; and
        `TransientError` (503) while the issuer's keys cannot be had.
        """
        if authorization is None:
            raise no_token()
        digest = digest_of(authorization)
        return self._proven.find(digest, self._keys.current, self._clock()) or await self._prove(authorization, digest)

    async def _prove(self, authorization: str, digest: bytes) -> Caller:
        token = tokens.read(tokens.bearer(authorization), self._settings.algorithms)
        key = await self._keys.find(token.kid, token.algorithm)
        # Nothing is waited for from here on, so the key is one of the current ones.
        claims = tokens.payload(token, key)
        caller = replace(caller_of(claims, self._settings, self._clock()), token=digest)
        self._proven.add(caller, self._keys.current, ends_at(claims))
        return caller


def authorization_of(headers: CIMultiDictProxy[str]) -> str | None:
    """The one ``Authorization`` header of a request. Raises the 401 when there are several: readers would differ."""
    values = headers.getall("Authorization", [])
    if len(values) > 1:
        raise invalid_token("the request has more than one Authorization header")
    return values[0] if values else None
