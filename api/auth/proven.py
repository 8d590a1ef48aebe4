"""Tokens that were proven a moment ago need no second proof: callers by the digest of what they presented."""

from __future__ import annotations

import hashlib
from typing import Final

from api.auth.caller import Caller
from api.auth.jwks import KeySet

MOST: Final = 4096
"""Tokens that are remembered; the one proven first is forgotten first."""


class Proven:
    """Remembers a token as long as it would be accepted anew, never longer.

    What is remembered belongs to one `KeySet`: with any other one (a key was taken away, the keys at hand became too
    old) everything is forgotten. The tokens themselves are not kept, only their SHA-256.
    """

    def __init__(self) -> None:
        self._keys: KeySet | None = None
        self._callers: dict[bytes, tuple[float, Caller]] = {}

    def find(self, digest: bytes, keys: KeySet, now: float) -> Caller | None:
        """Whom a token named that was proven by one of ``keys`` and has not ended yet."""
        if keys is not self._keys:
            self._callers.clear()
            return None
        found = self._callers.get(digest)
        if found is None:
            return None
        until, caller = found
        if now >= until:
            del self._callers[digest]
            return None
        return caller

    def add(self, caller: Caller, keys: KeySet, until: float) -> None:
        """``keys`` are those it was proven with; ``until`` in seconds since the epoch is when it is refused."""
        if not keys.keys:  # they have just become too old, and without a key nothing counts
            return
        if keys is not self._keys:
            self._callers.clear()
            self._keys = keys
        if len(self._callers) >= MOST:
            del self._callers[next(iter(self._callers))]
        self._callers[caller.token] = (until, caller)


def digest_of(authorization: str) -> bytes:
    """Of the whole header, so that nothing about it needs to be looked at first."""
    return hashlib.sha256(authorization.encode("utf-8", "surrogateescape")).digest()
