"""The private OPA: a child process that polls its bundle from a listener of ours and posts what became of it.

What is judged is loaded in the form in which it will be served: the same tar, the same manifest. Its API is on a unix
socket in a folder of ours; the listener is on loopback, behind a random path and a random bearer token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from reconciler.core.errors import TransientError

log = logging.getLogger(__name__)

BUNDLE: Final = "regops"
_HOLD: Final = 30
_START_SECONDS: Final = 15.0
_BODY: Final = 64 * 1024 * 1024
_MEMORY: Final = "1GiB"
_TIED: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""
"""Becomes the command in its arguments, which then dies with the process that started it (prctl(2),
PR_SET_PDEATHSIG), also when that one is killed: nobody else would ever end it."""


_LONGEST_SOCKET: Final = 100
"""Bytes; the system takes 107."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What OPA said of one bundle: active, or refused with its errors (OPA's own JSON) and message."""

    active: bool
    message: str = ""
    errors: tuple[Mapping[str, Any], ...] = ()


class OpaProcess:
    """One OPA process and its listener. `load` one bundle after another; not for concurrent use."""

    def __init__(self, binary: Path) -> None:
        self._binary = binary
        self._folder = _own_folder()
        self._secret = secrets.token_urlsafe(24)
        self._process: asyncio.subprocess.Process | None = None
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._offer: tuple[str, bytes] | None = None
        self._offered = asyncio.Condition()
        self._statuses: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._last_request: object = None

    async def start(self) -> None:
        """Start listener and OPA. `TransientError` (``CompilerUnavailable``) when OPA does not come up."""
        app = web.Application(client_max_size=_BODY)
        app.router.add_get(f"/{self._secret}/bundle", self._poll)
        app.router.add_post(f"/{self._secret}/status", self._status)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port = self._runner.addresses[0][1]
        config = self._folder / "config.json"
        config.write_text(json.dumps(self._config(port)), encoding="utf-8")
        config.chmod(0o600)
        await self._spawn(config)

    async def load(self, revision: str, bundle: bytes, timeout: float) -> Loaded:  # noqa: ASYNC109 see below
        """Offer a bundle and wait for the verdict. `TimeoutError` after ``timeout`` seconds: then `stop`."""
        while not self._statuses.empty():
            self._statuses.get_nowait()
        async with self._offered:
            self._offer = (revision, bundle)
            self._offered.notify_all()
        async with asyncio.timeout(timeout):
            while True:
                status = await self._next_status()
                if status.get("active_revision") == revision:
                    self._last_request = status.get("last_request")
                    return Loaded(active=True)
                if status.get("code") and status.get("last_request") != self._last_request and self._offer is None:
                    self._last_request = status.get("last_request")
                    return Loaded(False, str(status.get("message") or ""), tuple(status.get("errors") or ()))

    async def module(self, path: str) -> bytes:
        """What OPA says of one file of the active bundle; `tree_of` reads it."""
        if self._session is None:
            raise TransientError("the compiler is not running", reason="CompilerUnavailable")
        try:
            async with self._session.get(f"http://opa/v1/policies/{BUNDLE}/{path}") as answer:
                return await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientError(f"the compiler did not answer: {error}", reason="CompilerUnavailable") from error

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> None:
        """End the process at once and take everything away; never raises for a process that is gone."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._session is not None:
            await self._session.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    # --- below -------------------------------------------------------------------------------------------------------

    def _config(self, port: int) -> dict[str, Any]:
        """Delays of 0: a refused bundle must not make the next one late."""
        return {
            "services": {
                "compiler": {
                    "url": f"http://127.0.0.1:{port}/{self._secret}",
                    "credentials": {"bearer": {"token": self._secret}},
                }
            },
            "bundles": {
                BUNDLE: {
                    "service": "compiler",
                    "resource": "bundle",
                    "polling": {
                        "min_delay_seconds": 0,
                        "max_delay_seconds": 0,
                        "long_polling_timeout_seconds": _HOLD,
                    },
                }
            },
            "status": {"service": "compiler"},
        }

    async def _spawn(self, config: Path) -> None:
        socket = self._folder / "api.sock"
        words = ["run", "--server", "--addr", f"unix://{socket}", "--config-file", str(config)]
        words += ["--log-level", "error", "--skip-version-check", "--shutdown-grace-period", "1"]
        with (self._folder / "log").open("ab") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), str(self._binary)),
                    *words,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**_loading(), "HOME": str(self._folder), "GOMEMLIMIT": _MEMORY},
                )
            except OSError as error:
                raise TransientError(
                    f"{self._binary} cannot be started: {error.strerror}", reason="CompilerUnavailable"
                ) from error
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)), timeout=aiohttp.ClientTimeout(total=10)
        )
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not await self._answers():
                    if not self.running:
                        raise TransientError(
                            f"{self._binary} ended at once: {self._log()}", reason="CompilerUnavailable"
                        )
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise TransientError("OPA did not come up in time", reason="CompilerUnavailable") from error

    async def _answers(self) -> bool:
        if self._session is None:
            return False
        try:
            async with self._session.get("http://opa/health") as answer:
                return answer.status == web.HTTPOk.status_code
        except aiohttp.ClientError:
            return False

    async def _next_status(self) -> Mapping[str, Any]:
        """The next status of our bundle; `TransientError` when the process ends meanwhile."""
        if self._process is None:
            raise TransientError("the compiler is not running", reason="CompilerUnavailable")
        ended = asyncio.ensure_future(self._process.wait())
        told = asyncio.ensure_future(self._statuses.get())
        try:
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                return told.result()
            raise TransientError(f"the compiler ended: {self._log()}", reason="CompilerUnavailable")
        finally:
            ended.cancel()
            told.cancel()

    async def _poll(self, request: web.Request) -> web.Response:
        """OPA's long poll: each bundle is handed out once."""
        if request.headers.get("Authorization") != f"Bearer {self._secret}":
            return web.Response(status=401)
        async with self._offered:
            try:
                async with asyncio.timeout(_HOLD):
                    await self._offered.wait_for(lambda: self._offer is not None)
            except TimeoutError:
                return web.Response(status=304)
            offer, self._offer = self._offer, None
        revision, bundle = offer or ("", b"")
        headers = {"ETag": f'"{revision}"', "Content-Type": "application/vnd.openpolicyagent.bundles"}
        return web.Response(body=bundle, headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self._secret}":
            return web.Response(status=401)
        document = await request.json()
        status = (document.get("bundles") or {}).get(BUNDLE)
        if status:
            self._statuses.put_nowait(status)
        return web.Response()

    def _log(self) -> str:
        try:
            return (self._folder / "log").read_text(encoding="utf-8", errors="replace")[-300:].strip()
        except OSError:
            return "no log"


def _loading() -> dict[str, str]:
    """What it takes to find programs and libraries; nothing else of our environment concerns OPA."""
    return {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}


def _own_folder() -> Path:
    """A new folder, where the path of a socket is not too long for the system (unix(7))."""
    found = Path(tempfile.mkdtemp(prefix="regops-opa-"))
    if len(os.fsencode(found / "api.sock")) <= _LONGEST_SOCKET:
        return found
    found.rmdir()
    return Path(tempfile.mkdtemp(prefix="regops-opa-", dir="/tmp"))
