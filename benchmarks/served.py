"""From ``applied`` written in etcd to the last byte of the bundle at whoever polls the agent."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from fixtures.etcd import free_port

from benchmarks.engine import Engine, engine
from benchmarks.report import Table, ms, percentile
from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.scope import ALL


async def served(sizes: tuple[int, ...], count: int) -> Table:
    """One change each; the poll hangs before it, as OPA's does."""
    rows = []
    for size in sizes:
        async with engine(size) as one:
            await one.run()
            times, bundle = await _measure(one, count)
            rows.append([size, round(bundle / 1024, 1), ms(percentile(times, 50)), ms(percentile(times, 95))])
    return Table("served", "`applied` written → bundle received, ms", ("policies", "bundle KiB", "p50", "p95"), rows)


async def _measure(one: Engine, count: int) -> tuple[list[float], int]:
    port = free_port()
    config = AgentConfig(
        datacentre="bench", id="bench", state_dir=one.folder / "agent", host="127.0.0.1", port=port, scope=ALL
    )
    agent = asyncio.ensure_future(Agent(one.store, config).run())
    times: list[float] = []
    try:
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/bundles/regops"
            etag, size = await _first(session, url)
            for mark in range(1, count + 1):
                poll = asyncio.ensure_future(_poll(session, url, etag))
                await asyncio.sleep(0.05)
                one.change(mark)
                await one.run()
                applied = time.perf_counter()
                etag, size, received = await poll
                times.append(max(0.0, received - applied))
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)
    return times, size


async def _first(session: aiohttp.ClientSession, url: str) -> tuple[str, int]:
    while True:
        try:
            etag, size, _ = await _poll(session, url, "")
            if size > 1024:
                return etag, size
        except aiohttp.ClientError:
            await asyncio.sleep(0.05)


async def _poll(session: aiohttp.ClientSession, url: str, etag: str) -> tuple[str, int, float]:
    headers = {"If-None-Match": etag} if etag else {}
    async with session.get(url, headers=headers | {"Prefer": "modes=snapshot,delta;wait=30"}) as answer:
        body = await answer.read()
        return answer.headers.get("ETag", ""), len(body), time.perf_counter()
