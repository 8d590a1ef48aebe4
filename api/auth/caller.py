"""The caller, in the API's own words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from reconciler.core.ports import Identity

ADMIN_ROLE: Final = "platform_admin"
"""The role that reads and writes everything."""

_NO_PART_OF_A_NAME = re.compile(r"[\x00-\x20\x7f-\x9f<>\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a verified token speaks for. Roles and projects are compared letter by letter, never folded."""

    sub: str
    name: str | None
    email: str | None
    tenant: str | None
    roles: frozenset[str]
    projects: frozenset[str]
    claims: Mapping[str, Any] = field(repr=False, compare=False)
    """Every claim of the token, as signed: what the platform's policy gets to see."""
    token: bytes = field(default=b"", repr=False, compare=False)
    """Digest of the token, so that what is known about one can be found again; empty: nothing is to be remembered."""

    @property
    def is_admin(self) -> bool:
        """Whether the built-in rule lets the caller read and write everything."""
        return ADMIN_ROLE in self.roles

    @property
    def id(self) -> str:
        """Whose idempotency keys and rate these are; two issuers or tenants may have the same ``sub``."""
        return f"{self.claims.get('iss')}\n{self.tenant}\n{self.sub}"

    def identity(self) -> Identity:
        """The author of the caller's commits: the claims ``name`` and ``email``, else ``sub``; safe in a Git header."""
        sub = _plain(self.sub) or "unknown"
        return Identity(name=_plain(self.name) or sub, email=_plain(self.email) or sub)


def _plain(text: str | None) -> str:
    """Without what ends a name or a line in a commit's header, and what Git cuts off at a name's ends."""
    return _NO_PART_OF_A_NAME.sub(" ", text or "").strip(" .,:;\"'\\")
