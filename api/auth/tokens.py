"""The form of a token: one JWS in compact serialization (RFC 7515 section 7.1), nothing else. Pure.

What the header says is believed in two points only, and each is compared with what the operator configured: the
algorithm and the name of the key. Keys that a token brings along or points to (``jwk``, ``jku``, ``x5u``, ``x5c``)
are never looked at.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jwt.algorithms import get_default_algorithms

from api.auth.jwks import ALGORITHMS, Key
from api.auth.refusals import invalid_token, no_token
from api.auth.strict_json import parse_object

MAX_TOKEN_BYTES: Final = 16384
_MAX_KID: Final = 256
_PARTS: Final = 3
_PARTS_OF_JWE: Final = 5
_SCHEME = re.compile(r"bearer(?: +|$)", re.IGNORECASE | re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+", re.ASCII)
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_SCHEMES: Final = {name: get_default_algorithms()[name] for name in ALGORITHMS}
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
"""RFC 7519 section 5.1, RFC 9068 section 2.1. Tokens typed for another use (logout, proof of possession) are none."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token whose form is right and whose header names an algorithm that counts; nothing of it is proven."""

    algorithm: str
    kid: str | None
    signed: bytes
    claims: bytes
    signature: bytes


def bearer(authorization: str | None) -> str:
    """The token of an ``Authorization`` header (RFC 6750 section 2.1). Raises the 401 when there is none."""
    scheme = _SCHEME.match(authorization or "")
    if authorization is None or scheme is None:
        raise no_token()
    token = authorization[scheme.end() :]
    if len(token) > MAX_TOKEN_BYTES:
        raise invalid_token(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
    if not _TOKEN.fullmatch(token):
        raise invalid_token("the Authorization header must be the word Bearer, a space and one token")
    return token


def read(token: str, algorithms: Collection[str]) -> Unverified:
    """Take the token apart as far as choosing its key needs. Raises the 401 that names what is wrong."""
    parts = token.split(".")
    if len(parts) == _PARTS_OF_JWE:
        raise invalid_token("the token is encrypted (JWE); a signed one (JWS) is needed")
    if len(parts) != _PARTS:
        raise invalid_token("the token is no JWT: it must have three parts with dots between")
    raw_header, raw_claims, signature = map(_decoded, parts, ("header", "payload", "signature"))
    try:
        header = parse_object(raw_header)
    except ValueError as error:
        raise invalid_token(f"the token's header {error}") from error
    _refuse_extensions(header)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise invalid_token(f"the token's algorithm (alg) must be {_either(sorted(algorithms))}")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID):
        raise invalid_token(f"the token's key name (kid) must be a text of 1 to {_MAX_KID} characters")
    return Unverified(algorithm, kid, token.rpartition(".")[0].encode(), raw_claims, signature)


def payload(token: Unverified, key: Key) -> dict[str, Any]:
    """The claims, once the signature is proven. Raises the 401 when it is not, or when they are no clean JSON."""
    if key.algorithm != token.algorithm:
        raise invalid_token("the token's algorithm (alg) is not that of its key")
    if not _SCHEMES[key.algorithm].verify(token.signed, key.public, token.signature):
        raise invalid_token("the token's signature is wrong")
    try:
        return parse_object(token.claims)
    except ValueError as error:
        raise invalid_token(f"the token's payload {error}") from error


def _refuse_extensions(header: Mapping[str, Any]) -> None:
    if "crit" in header or "b64" in header:
        raise invalid_token("the token's header demands extensions (crit, b64) that regops does not have")
    if "cty" in header:
        raise invalid_token("the token's header has a content type (cty): nested tokens are not read")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise invalid_token("the token's type (typ) must be JWT or at+jwt")


def _decoded(part: str, what: str) -> bytes:
    """Base64url without padding, in its one canonical spelling (RFC 4648 section 3.5)."""
    if not part:
        raise invalid_token(f"the token has no {what}")
    try:
        decoded = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) if _BASE64URL.fullmatch(part) else b""
    except binascii.Error:
        decoded = b""
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise invalid_token(f"the token's {what} is no canonical base64url text")
    return decoded


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
