"""The keys at hand: kept fresh in time, and looked for again, at a bounded rate, when a token names an unknown one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NoReturn

from api.auth.jwks import Key, KeySet, parse_jwks
from api.auth.key_sources import KeySource
from api.auth.refusals import invalid_token
from reconciler.core.errors import TransientError

log = logging.getLogger(__name__)

_NONE: Final = KeySet(())


class Keys:
    """One issuer's key set.

    `run` keeps it fresh. A source that fails changes nothing for ``max_age`` seconds; a sound answer counts at once,
    also when it has fewer keys or none. However many tokens with unknown keys arrive, they cause one read in
    ``cooldown`` seconds, which all of them wait for.
    """

    def __init__(
        self, source: KeySource, *, cooldown: float, max_age: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._cooldown = cooldown
        self._max_age = max_age
        self._clock = clock
        self._lock = asyncio.Lock()
        self._reads = 0
        self._asked_at = -float("inf")
        self._raw = b""
        self._set: KeySet | None = None
        self._read_at = 0.0
        self._failure: TransientError | None = None

    async def run(self) -> NoReturn:
        """Read the keys now and from then on in time; after a failure, again after the cooldown."""
        while True:
            async with self._lock:
                await self._read()
            interval = self._source.interval
            await asyncio.sleep(interval if self._failure is None else min(interval, self._cooldown))

    async def find(self, kid: str | None, algorithm: str) -> Key:
        """The key of that name. Raises the 401 when the issuer has none, `TransientError` when that cannot be known."""
        found = self.current.find(kid, algorithm)
        if found is None:
            await self._look_again()
            found = self.current.find(kid, algorithm)
        if found is not None:
            return found
        if self._failure is not None:
            raise TransientError(str(self._failure), reason=self._failure.reason) from self._failure
        if not self.usable:
            raise TransientError("no key of the issuer is at hand", reason="KeysUnavailable")
        if kid is None:
            raise invalid_token("the token does not name its key (kid), and the issuer has not just one")
        raise invalid_token("the token is signed with a key that the issuer does not publish (kid)")

    @property
    def usable(self) -> bool:
        """Whether there is any key to verify with."""
        return bool(self.current.keys)

    @property
    def current(self) -> KeySet:
        """What may be used now: nothing, once the last sound answer is too old.

        The same object until the issuer's answer is another one.
        """
        if self._set is None or self._clock() - self._read_at > self._max_age:
            return _NONE
        return self._set

    async def _look_again(self) -> None:
        """Read once for all who wait, and not again within the cooldown."""
        before = self._reads
        async with self._lock:
            if self._reads != before or self._clock() - self._asked_at < self._cooldown:
                return
            # Noted before the read: a caller that is cancelled meanwhile has used up this turn.
            self._asked_at = self._clock()
            await self._read()

    async def _read(self) -> None:
        try:
            raw = await self._source.read()
            if self._set is None or raw != self._raw:
                self._take(raw)
        except TransientError as error:
            if self._failure is None:
                log.warning("keys not refreshed", extra={"error": str(error), "kept": len(self.current.keys)})
            self._failure = error
        else:
            if self._failure is not None:
                log.info("keys refreshed again")
            self._failure = None
            self._read_at = self._clock()
        self._reads += 1

    def _take(self, raw: bytes) -> None:
        try:
            found = parse_jwks(raw)
        except ValueError as error:
            raise TransientError(f"what auth.jwks names {error}", reason="KeysUnavailable") from error
        for why in found.ignored:
            log.warning("key ignored", extra={"why": why})
        log.info("keys read", extra={"keys": [key.kid for key in found.keys]})
        self._raw, self._set = raw, found
