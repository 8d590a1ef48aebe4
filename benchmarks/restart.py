"""How long a server and an agent take to be there again: their state is on disk and in etcd."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.processes import Running, site
from benchmarks.report import Cell, Table, ms, percentile


async def restart(sizes: tuple[int, ...], times: int) -> Table:
    """Started as many times, after one start that has left everything on disk."""
    rows = [row for size in sizes for row in await asyncio.to_thread(_measure, size, times)]
    return Table(
        "restart",
        "Process started → it answers, ms",
        ("policies", "what", "starts", "p50", "p95"),
        rows,
        "Goals at 10,000 policies: a server's `/readyz` within 2 s, an agent's first bundle within 1 s.",
    )


def _measure(size: int, times: int) -> list[list[Cell]]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder, site(Path(folder), size) as one:
        with one.server() as server, one.agent("all") as agent:
            agent.until("/bundles/regops", lambda status, body: status == 200 and len(body) > 100 * size)
            server.until_ready()
        served = [_timed(lambda: one.agent("all"), _first_bundle) for _ in range(times)]
        ready = [_timed(one.server, Running.until_ready) for _ in range(times)]
        one.etcd.stop()
        away = [_timed(lambda: one.agent("all"), _first_bundle) for _ in range(times)]
        one.etcd.start()
    found = {
        "agent → its first bundle": served,
        "agent → its first bundle, etcd away": away,
        "server → `/readyz` says 200": ready,
    }
    return [[size, what, times, ms(percentile(took, 50)), ms(percentile(took, 95))] for what, took in found.items()]


def _timed(start: Callable[[], AbstractContextManager[Running]], until: Callable[[Running], object]) -> float:
    began = time.perf_counter()
    with start() as running:
        until(running)
        return time.perf_counter() - began


def _first_bundle(agent: Running) -> bytes:
    return agent.until("/bundles/regops", lambda status, _body: status == 200)
