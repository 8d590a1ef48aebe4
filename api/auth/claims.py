"""What the claims of a proven token must say (RFC 7519 section 4.1), and the caller that they name. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from api.auth.caller import Caller
from api.auth.refusals import forbidden, invalid_token
from reconciler.settings import AuthSettings

LEEWAY: Final = 30.0
"""Seconds by which the issuer's clock and ours may differ."""
_MAX_TIME: Final = 10**11
"""The year 5138: what is later was meant as milliseconds, and would never end."""
_MAX_SUB: Final = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def caller_of(claims: Mapping[str, Any], settings: AuthSettings, now: float) -> Caller:
    """The caller. ``now`` in seconds since the epoch.

    Raises the 401 when a claim is missing, of the wrong type, or out of its time; the 403 for a tenant not served.
    """
    _check_times(claims, now)
    _check_parties(claims, settings)
    tenant = _text(claims, settings.claim_tenant)
    caller = Caller(
        sub=_subject(claims),
        name=_text(claims, "name"),
        email=None if claims.get("email_verified") is False else _text(claims, "email"),
        tenant=tenant,
        roles=_roles(claims, settings.claim_roles),
        projects=_projects(claims, settings.claim_project),
        claims=claims,
    )
    if settings.tenant and tenant not in settings.tenant:
        has = "names no tenant" if tenant is None else "is of a tenant that is not served here"
        raise forbidden(f"the token {has} (claim {settings.claim_tenant}, setting auth.tenant)")
    return caller


def ends_at(claims: Mapping[str, Any]) -> float:
    """When a token that counts now is refused, in seconds since the epoch."""
    return float(claims["exp"]) + LEEWAY


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires, begins, issued = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if expires is None:
        raise invalid_token("the token has no end (exp)")
    if now >= expires + LEEWAY:
        raise invalid_token("the token has expired (exp): get a new one")
    if begins is not None and begins > now + LEEWAY:
        raise invalid_token("the token does not count yet (nbf)")
    if issued is not None and issued > now + LEEWAY:
        raise invalid_token("the token was issued in the future (iat): do the clocks agree?")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _MAX_TIME:
        raise invalid_token(f"the token's {name} must be seconds since 1970 (not milliseconds, no text)")
    return float(value)


def _check_parties(claims: Mapping[str, Any], settings: AuthSettings) -> None:
    if claims.get("iss") != settings.issuer:
        raise invalid_token(f"the token's issuer (iss) must be {settings.issuer}")
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if settings.audience not in named or not all(isinstance(name, str) for name in named):
        raise invalid_token(f"the token's audience (aud) must be or contain {settings.audience}")


def _subject(claims: Mapping[str, Any]) -> str:
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 0 < len(sub.strip()) <= len(sub) <= _MAX_SUB or _CONTROL.search(sub):
        raise invalid_token(f"the token's subject (sub) must be a text of 1 to {_MAX_SUB} characters, on one line")
    return sub


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise invalid_token(f"the token's {name} must be a text")
    return value


def _roles(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """A list, or one string with spaces between: U+0020 alone, no other character counts as one."""
    value = claims.get(name)
    return _names(value.split(" ") if isinstance(value, str) else value, name, "a list or a text with spaces between")


def _projects(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    value = claims.get(name)
    return _names([value] if isinstance(value, str) else value, name, "a text or a list of texts")


def _names(value: Any, name: str, shape: str) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid_token(f"the token's {name} must be {shape}")
    return frozenset(item for item in value if item)
