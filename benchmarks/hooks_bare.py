"""``python -m benchmarks.hooks_bare``: one bare aiohttp handler that takes a body and answers 202 with what stdin had.

No signature, no JSON, no log, no metrics. It prints its port.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web


async def main(answer: bytes) -> None:
    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=202, body=answer, content_type="application/json")

    app = web.Application()
    app.router.add_post("/hooks/{provider}", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.stdin.buffer.read()))
