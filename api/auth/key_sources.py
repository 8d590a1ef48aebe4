"""Where the issuer's key set comes from: an address or a file. Bounded in size and time; no redirects."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from pathlib import Path
from typing import Final, Protocol

import aiohttp
from yarl import URL

from api.auth.jwks import MAX_JWKS_BYTES
from reconciler.core.errors import StalledError, TransientError
from reconciler.settings import AuthSettings

FILE_INTERVAL: Final = 1.0
"""Seconds between two looks at a file."""


class KeySource(Protocol):
    """The bytes of a JWK set."""

    interval: float
    """Seconds between two reads while all is well."""

    async def read(self) -> bytes:
        """All of it. Raises `TransientError` when it cannot be read, is too long or takes too long."""
        ...


class FileKeys:
    """A file, read again and again, so that a replaced one (also by way of a symbolic link) is seen."""

    interval = FILE_INTERVAL

    def __init__(self, file: Path) -> None:
        self._file = file

    async def read(self) -> bytes:
        """See `KeySource`."""
        try:
            return _bounded(await asyncio.to_thread(self._read))
        except OSError as error:
            raise _unavailable(f"the file of auth.jwks cannot be read: {error.strerror}") from error

    def _read(self) -> bytes:
        with self._file.open("rb") as file:
            return file.read(MAX_JWKS_BYTES + 1)


class UrlKeys:
    """An address. Who answers there decides who is believed, so what it says comes by TLS or over loopback."""

    def __init__(self, session: aiohttp.ClientSession, url: URL, settings: AuthSettings) -> None:
        if url.scheme != "https" and not settings.jwks_allow_http and not _loopback(url.host or ""):
            raise _misconfigured("auth.jwks is a plain http:// address of another host", "Use https://.")
        self.interval = settings.jwks_refresh
        self._session = session
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=settings.jwks_timeout)
        self._tls: ssl.SSLContext | bool = True
        if settings.jwks_ca_file is not None:
            try:
                self._tls = ssl.create_default_context(cafile=settings.jwks_ca_file)
            except OSError as error:
                why = error.strerror or "no certificate in it"
                raise _misconfigured(f"auth.jwks_ca_file cannot be read: {why}", "") from error

    async def read(self) -> bytes:
        """See `KeySource`."""
        try:
            async with self._session.get(
                self._url,
                headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
                allow_redirects=False,
                timeout=self._timeout,
                ssl=self._tls,
            ) as answer:
                if answer.status != 200:  # noqa: PLR2004 OK
                    hint = ": name its final address in auth.jwks" if 300 <= answer.status < 400 else ""  # noqa: PLR2004
                    raise _unavailable(f"the address of auth.jwks answers {answer.status}{hint}")
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MAX_JWKS_BYTES:
                        break
                return _bounded(bytes(body))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unavailable(f"the address of auth.jwks does not answer ({type(error).__name__})") from error


def key_source(session: aiohttp.ClientSession, settings: AuthSettings) -> KeySource:
    """The source that ``auth.jwks`` names. Raises `StalledError` for one that cannot be."""
    where = settings.jwks
    if not where:
        raise _misconfigured("no keys to verify tokens with are configured", "Set auth.jwks to the issuer's JWKS URL.")
    scheme, separator, rest = where.partition("://")
    if not separator or scheme.lower() == "file":
        return FileKeys(Path(rest if separator else where))
    try:
        url = URL(where)
    except ValueError as error:
        raise _misconfigured("auth.jwks is no URL", "") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise _misconfigured("auth.jwks is neither an https:// address nor a file", "")
    return UrlKeys(session, url, settings)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bounded(raw: bytes) -> bytes:
    if len(raw) > MAX_JWKS_BYTES:
        raise _unavailable(f"what auth.jwks names is longer than {MAX_JWKS_BYTES} bytes")
    return raw


def _unavailable(message: str) -> TransientError:
    return TransientError(message, reason="KeysUnavailable")


def _misconfigured(message: str, remedy: str) -> StalledError:
    return StalledError(message, reason="InvalidSettings", remedy=remedy or "See docs/settings.md.")
