"""How long a server and an agent take to be there again: their state is on disk and in etcd."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
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
        ("policies", "what", "starts", "p50", "p95", "its own processor time until then, p50"),
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
    return [[size, what, times, *_figures(took)] for what, took in found.items()]


def _figures(took: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    wall, processor = zip(*took, strict=True)
    return ms(percentile(wall, 50)), ms(percentile(wall, 95)), ms(percentile(processor, 50))


def _timed(
    start: Callable[[], AbstractContextManager[Running]], until: Callable[[Running], object]
) -> tuple[float, float]:
    """Seconds by the clock, and of processor."""
    began = time.perf_counter()
    with start() as running:
        until(running)
        return time.perf_counter() - began, running.processor()


def _first_bundle(agent: Running) -> bytes:
    return agent.until("/bundles/regops", lambda status, _body: status == 200)
