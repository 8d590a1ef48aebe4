"""The issuer's public keys, read from a JWK set (RFC 7517, RFC 7518 section 6, RFC 8037). Pure.

A key serves exactly one algorithm, the one that its type is for, so no token can choose how a key is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from api.auth.strict_json import parse_object

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

MAX_JWKS_BYTES: Final = 262144
RSA_BITS: Final = range(2048, 8193)
"""RFC 7518 section 3.3 asks for 2048 and more; a key beyond 8192 costs each request milliseconds."""
_BY_TYPE: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
ALGORITHMS: Final = frozenset(_BY_TYPE.values())
_SAME: Final = {"Ed25519": "EdDSA"}
"""RFC 9864 names the curve in the algorithm."""
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True, slots=True)
class Key:
    """A key to verify with, by one algorithm only."""

    kid: str | None
    algorithm: str
    public: PublicKey


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys that serve, and for each that should not be there why it was left out (its material is not repeated)."""

    keys: tuple[Key, ...]
    ignored: tuple[str, ...] = ()

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key of that name for that algorithm. A token that names none is served by the only key there is."""
        found = [key for key in self.keys if key.algorithm == algorithm and kid in {None, key.kid}]
        return found[0] if len(found) == 1 else None


def parse_jwks(raw: bytes) -> KeySet:
    """The set that ``raw`` is. Raises `ValueError`, in a few words, when it is no JWK set at all."""
    entries = parse_object(raw).get("keys")
    if not isinstance(entries, list):
        raise ValueError('has no list "keys"')  # noqa: TRY004 one error for all that is wrong with the document
    keys: dict[tuple[str | None, str], Key] = {}
    ignored: list[str] = []
    for place, entry in enumerate(entries):
        try:
            key = _key(entry)
        except ValueError as error:
            ignored.append(f"{_called(entry, place)} {error}")
            continue
        if key is None:
            continue
        if key.kid is not None and (key.kid, key.algorithm) in keys:
            ignored.append(f"{_called(entry, place)} has the name (kid) of another")
            continue
        keys[key.kid if key.kid is not None else f"\x00{place}", key.algorithm] = key
    return KeySet(tuple(keys.values()), tuple(ignored))


def _key(entry: Any) -> Key | None:
    """The key; ``None`` for one that is published for another use. Raises `ValueError` with what is wrong."""
    if not isinstance(entry, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 the same as above
    if entry.get("kty") == "oct":
        raise ValueError("is symmetric: whoever can verify with it can also sign")
    if not _PRIVATE.isdisjoint(entry):
        raise ValueError("is a private key: whoever reads the set can sign; replace it at the issuer")
    if not _verifies(entry):
        return None
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise ValueError("has a name (kid) that is no text")
    curve = None if entry.get("kty") == "RSA" else entry.get("crv")
    algorithm = _BY_TYPE.get((str(entry.get("kty")), curve if isinstance(curve, str) else None))
    if algorithm is None:
        raise ValueError("is of a type or curve that serves none of RS256, ES256 and EdDSA")
    declared = entry.get("alg", algorithm)
    if _SAME.get(str(declared), declared) != algorithm:
        raise ValueError(f"is declared for another algorithm (alg) than {algorithm}")
    return Key(kid or None, algorithm, _public(entry, algorithm))


def _verifies(entry: Mapping[str, Any]) -> bool:
    """Whether the key is published to verify signatures: keys for encryption stand in the same set at many issuers."""
    operations = entry.get("key_ops", ["verify"])
    return entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _public(entry: Mapping[str, Any], algorithm: str) -> PublicKey:
    try:
        public = jwt.PyJWK(dict(entry), algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError("cannot be read") from error
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        raise ValueError(f"has {public.key_size} bits: RSA keys must have {RSA_BITS[0]} to {RSA_BITS[-1]}")
    if not isinstance(public, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise ValueError("cannot be read")  # noqa: TRY004 the same as above
    return public


def _called(entry: Any, place: int) -> str:
    kid = entry.get("kid") if isinstance(entry, dict) else None
    return f"key {kid[:64]!r}" if isinstance(kid, str) else f"key number {place + 1}"
