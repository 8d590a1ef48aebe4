"""The floor: a bare long-poll server that publishes the same bundle to an OPA of its own, with nothing else around."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from aiohttp import web

from reconciler.agent.opa_config import opa_config


class Floor:
    """One OPA behind one handler. `publish` returns the seconds until the OPA answered by the new bundle."""

    def __init__(self, opa: Path) -> None:
        self._opa = opa
        self._offer: tuple[str, bytes] | None = None
        self._changed = asyncio.Condition()
        self._folder = tempfile.TemporaryDirectory(prefix="regops-floor-")

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/bundles/regops", self._poll)
        app.router.add_post("/status", self._status)
        app.router.add_post("/status/{tail:.*}", self._status)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        config = Path(self._folder.name, "opa.yaml")
        config.write_text(opa_config(f"http://127.0.0.1:{self._runner.addresses[0][1]}"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        words = [str(self._opa), "run", "--server", "--addr", f"127.0.0.1:{port}", "--config-file", str(config)]
        words += ["--skip-version-check", "--log-level", "error", "--shutdown-grace-period", "1"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        await self._runner.cleanup()
        self._folder.cleanup()

    async def publish(self, files: Mapping[str, str], session: aiohttp.ClientSession, project: str, mark: int) -> float:
        bundle = _bundle(files, mark)
        began = time.perf_counter()
        async with self._changed:
            self._offer = (f'"{mark}"', bundle)
            self._changed.notify_all()
        await marked(session, self.url, project, mark)
        return time.perf_counter() - began

    async def _poll(self, request: web.Request) -> web.Response:
        known = request.headers.get("If-None-Match")
        async with self._changed:
            try:
                async with asyncio.timeout(30):
                    await self._changed.wait_for(lambda: self._offer is not None and self._offer[0] != known)
            except TimeoutError:
                return web.Response(status=304)
        etag, body = self._offer or ("", b"")
        return web.Response(
            body=body, headers={"ETag": etag, "Content-Type": "application/vnd.openpolicyagent.bundles"}
        )

    async def _status(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response()


async def marked(session: aiohttp.ClientSession, url: str, project: str, mark: int, seconds: float = 60) -> None:
    """Wait until the OPA decides by the version with this mark."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                async with session.get(f"{url}/v1/data/projects/{project}/authz/mark") as answer:
                    if (await answer.json()).get("result") == mark:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.002)


def _bundle(files: Mapping[str, str], mark: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        manifest = json.dumps({"revision": str(mark), "roots": ["platform", "projects"], "rego_version": 1})
        for name, text in {".manifest": manifest, **files}.items():
            entry = tarfile.TarInfo(name.removeprefix("policies/"))
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(buffer.getvalue(), 1)
