"""The issuer of `regops dev`: a key pair in its state folder, the JWK set on loopback, tokens for trying things out.

Never part of an installation: there, tokens come from the identity provider that ``auth.jwks`` names.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from reconciler.core.errors import StalledError

FOLDER: Final = "issuer"
"""Its place in the state folder."""
ISS: Final = "https://regops.dev.localhost"
AUD: Final = "regops"
TENANT: Final = "dev"
ALGORITHM: Final = "RS256"
JWKS_PATH: Final = "/.well-known/jwks.json"
READY_TTL: Final = 30 * 86400
"""Seconds that the tokens of the ready file live."""
_KEY_FILE: Final = "key.pem"
_BITS: Final = 2048


class Issuer:
    """Signs with one RSA key."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key
        public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self._jwk = {"kty": "RSA", "n": public["n"], "e": public["e"]}
        self.kid = _thumbprint(self._jwk)

    @classmethod
    def open(cls, state: Path, *, create: bool) -> Issuer:
        """The issuer of this state folder; ``create`` makes its key the first time, which takes a moment of CPU.

        Raises `StalledError` when there is no key, or none that can be read.
        """
        file = state / FOLDER / _KEY_FILE
        if create and not file.exists():
            _write_key(file, rsa.generate_private_key(public_exponent=65537, key_size=_BITS))
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), password=None)
        except FileNotFoundError as error:
            raise StalledError(
                f"{state} has no key to sign tokens with",
                reason="NotRunning",
                remedy="Start `regops dev`, or name its folder with --state.",
            ) from error
        except (OSError, ValueError) as error:
            raise StalledError(f"{file} cannot be read", remedy="Delete it and start `regops dev` anew.") from error
        if not isinstance(key, rsa.RSAPrivateKey):
            raise StalledError(f"{file} is no RSA key", remedy="Delete it and start `regops dev` anew.")
        return cls(key)

    def jwks(self) -> dict[str, Any]:
        """The JWK set (RFC 7517): the public key only."""
        return {"keys": [{**self._jwk, "kid": self.kid, "alg": ALGORITHM, "use": "sig"}]}

    def mint(
        self,
        *,
        sub: str = "dev",
        roles: Sequence[str] = (),
        projects: Sequence[str] = (),
        tenant: str = TENANT,
        ttl: int = 3600,
        aud: str = AUD,
        iss: str = ISS,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """One token. ``ttl`` in seconds; below zero for one that has expired."""
        now = int(time.time())
        claims: dict[str, Any] = {"iss": iss, "aud": aud, "sub": sub, "tenant": tenant, "roles": list(roles)}
        claims |= {"iat": now, "exp": now + ttl, "jti": uuid.uuid4().hex}
        if projects:
            claims["project"] = projects[0] if len(projects) == 1 else list(projects)
        return jwt.encode(claims | (extra or {}), self._key, ALGORITHM, headers={"kid": self.kid})


def claims_of(token: str) -> dict[str, Any]:
    """What a token says, believed or not."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


@contextlib.asynccontextmanager
async def serve(issuer: Issuer, port: int = 0) -> AsyncIterator[str]:
    """Serve the JWK set on loopback as long as the block runs; yields its URL. Port 0 takes a free one."""
    body = json.dumps(issuer.jwks()).encode()

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/jwk-set+json")

    app = web.Application()
    app.router.add_get(JWKS_PATH, answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{JWKS_PATH}"
    finally:
        await runner.cleanup()


def ready_entries(issuer: Issuer, jwks_url: str, project: str) -> dict[str, Any]:
    """What the ready file tells: where the keys are, and a token for an admin and for a reader of ``project``."""
    return {
        "issuer": {"jwks_url": jwks_url, "iss": ISS, "aud": AUD},
        "tokens": {
            "admin": issuer.mint(sub="admin", roles=["platform_admin"], ttl=READY_TTL),
            "reader": issuer.mint(sub="reader", roles=["reader"], projects=[project], ttl=READY_TTL),
        },
    }


def server_environment(jwks_url: str, opa_url: str) -> dict[str, str]:
    """The settings with which a server believes this issuer and asks this OPA."""
    return {
        "REGOPS_AUTH_ISSUER": ISS,
        "REGOPS_AUTH_AUDIENCE": AUD,
        "REGOPS_AUTH_TENANT": TENANT,
        "REGOPS_AUTH_JWKS": jwks_url,
        "REGOPS_AUTH_OPA": opa_url,
    }


def _thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638: the same name wherever the same key is."""
    canonical = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).rstrip(b"=").decode()


def _write_key(file: Path, key: rsa.RSAPrivateKey) -> None:
    """Whole or not at all, and never readable for others, not even for a moment."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = file.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(pem)
    scratch.replace(file)
