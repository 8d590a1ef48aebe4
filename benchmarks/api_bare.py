"""``python -m benchmarks.api_bare FILE``: one bare aiohttp handler that answers with the bytes of another server.

FILE has one whole answer of it. The handler sends the same headers and body, 304 for its ETag, and does nothing else:
no token, no log, no metrics. It prints its port.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

_BY_AIOHTTP = {"content-length", "date", "server"}


async def main(file: Path) -> None:
    head, _, body = file.read_bytes().partition(b"\r\n\r\n")
    pairs = (line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    headers = {name: value for name, value in pairs if name.lower() not in _BY_AIOHTTP}
    unchanged = {name: value for name, value in headers.items() if name.lower() != "content-type"}

    async def get(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return web.Response(status=304, headers=unchanged)
        return web.Response(body=body, headers=headers)

    app = web.Application()
    app.router.add_get("/policies/{project}", get)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
