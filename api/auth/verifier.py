"""From an ``Authorization`` header to the caller (RFC 6750, RFC 7515, RFC 7519; hardened by RFC 8725)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from multidict import CIMultiDictProxy

from api.auth import tokens
from api.auth.caller import Caller
from api.auth.claims import caller_of
from api.auth.keys import Keys
from api.auth.refusals import invalid_token
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

    async def verify(self, authorization: str | None) -> Caller:
        """The caller whom the header's token names.

        Raises `ProblemError`: 401 with a challenge that names what is wrong, 403 for a tenant that is not served; and
        `TransientError` (503) while the issuer's keys cannot be had.
        """
        token = tokens.read(tokens.bearer(authorization), self._settings.algorithms)
        key = await self._keys.find(token.kid, token.algorithm)
        return caller_of(tokens.payload(token, key), self._settings, self._clock())


def authorization_of(headers: CIMultiDictProxy[str]) -> str | None:
    """The one ``Authorization`` header of a request. Raises the 401 when there are several: readers would differ."""
    values = headers.getall("Authorization", [])
    if len(values) > 1:
        raise invalid_token("the request has more than one Authorization header")
    return values[0] if values else None
