"""The platform's own word on a request: ``data.platform.authz.allow``, asked of the OPA beside this replica."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from yarl import URL

from reconciler.agent.opa_config import BUNDLE
from reconciler.core.errors import StalledError, TransientError

log = logging.getLogger(__name__)

QUERY: Final = "/v1/data/platform/authz/allow"
_MAX_BYTES: Final = 65536
_HEADERS: Final = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class Narrowing:
    """Asks one OPA, within one deadline (seconds)."""

    def __init__(self, session: aiohttp.ClientSession, url: str, timeout: float) -> None:
        base = URL(url)
        if base.scheme not in {"http", "https"} or not base.host:
            raise StalledError(
                "auth.opa is no http address", reason="InvalidSettings", remedy="Write http://127.0.0.1:8181."
            )
        self._session = session
        self._url = base.with_path(QUERY).with_query(provenance="true")
        self._timeout = timeout
        self._failing = False

    async def allow(self, question: Mapping[str, Any]) -> bool | None:
        """The decision; ``None`` when the platform that is enforced decides nothing.

        Raises `TransientError` whenever nobody can say: no answer in time, an error, no active bundle (then an
        undefined decision would mean nothing), or a decision that is no boolean.
        """
        try:
            decision = await self._decide(json.dumps({"input": question}).encode())
        except TransientError as error:
            if not self._failing:
                log.warning("requests cannot be authorized", extra={"opa": self._url.host, "error": str(error)})
            self._failing = True
            raise
        if self._failing:
            log.info("requests are authorized again")
        self._failing = False
        return decision

    async def _decide(self, body: bytes) -> bool | None:
        try:
            async with asyncio.timeout(self._timeout):
                document = await self._ask(body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unknown("the OPA that authorizes requests does not answer") from error
        if BUNDLE not in ((document.get("provenance") or {}).get("bundles") or {}):
            raise _unknown("the OPA that authorizes requests has not loaded the policies yet")
        decision = document.get("result")
        if "result" in document and not isinstance(decision, bool):
            raise _unknown("data.platform.authz.allow is no boolean: correct the platform's policy")
        return decision

    async def _ask(self, body: bytes) -> dict[str, Any]:
        try:
            return await self._post(body)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # A connection kept from before that OPA has closed since. A question may be asked twice.
            return await self._post(body)

    async def _post(self, body: bytes) -> dict[str, Any]:
        async with self._session.post(self._url, data=body, headers=_HEADERS, allow_redirects=False) as answer:
            if answer.status != 200:  # noqa: PLR2004 OK
                raise _unknown(f"the OPA that authorizes requests answers {answer.status}")
            raw = bytearray()
            async for chunk in answer.content.iter_any():
                raw += chunk
                if len(raw) > _MAX_BYTES:
                    raise _unknown("the answer of the OPA that authorizes requests is too long")
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise _unknown("the answer of the OPA that authorizes requests is not JSON") from error
        if not isinstance(document, dict):
            raise _unknown("the answer of the OPA that authorizes requests is no JSON object")
        return document


def _unknown(message: str) -> TransientError:
    return TransientError(message, reason="AuthorizationUnavailable")
