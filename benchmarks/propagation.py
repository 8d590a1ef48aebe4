"""From ``git push`` having returned to the OPA deciding by the new rule, beside the floor, alternating in one run."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import aiohttp
from fixtures.dev import Dev

from benchmarks.floor import Floor, marked
from benchmarks.policies import rego, tree
from benchmarks.report import Table, ms, percentile
from regops import toolchain

SIZES = (10, 100, 400)
COMMITS = 30


async def propagation(sizes: tuple[int, ...], commits: int) -> Table:
    """Both alternate in one run, on an OPA each."""
    rows: list[list[str | int | float]] = []
    for size in sizes:
        ours, bare = await measure(size, commits)
        times = [ms(percentile(values, p)) for values, p in ((ours, 50), (ours, 95), (bare, 50), (bare, 95))]
        rows.append(
            [size, commits, times[0], times[1], ms(max(ours)), times[2], times[3], round(times[1] - times[3], 1)]
        )
    return Table(
        "propagation",
        "`git push` returned → OPA decides by the new rule, ms",
        ("policies", "commits", "p50", "p95", "max", "floor p50", "floor p95", "p95 above the floor"),
        rows,
        "The floor is the same bundle from a bare long-poll server with nothing else. Goal: at most 60 ms above it.",
    )


async def measure(size: int, commits: int) -> tuple[list[float], list[float]]:
    """Seconds of each commit: (regops, floor)."""
    opa = toolchain.find("opa")
    if opa is None:
        raise SystemExit("no opa: run `make setup`")
    files = tree(size)
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        dev = Dev(Path(folder))
        floor = Floor(opa)
        await asyncio.to_thread(dev.start)
        await floor.start()
        try:
            async with aiohttp.ClientSession() as session:
                return await _alternate(dev, floor, session, files, commits)
        finally:
            await floor.stop()
            await asyncio.to_thread(dev.stop)


async def _alternate(
    dev: Dev, floor: Floor, session: aiohttp.ClientSession, files: dict[str, str], commits: int
) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    bare: list[float] = []
    opa = dev.ready()["opa"][0]
    await asyncio.to_thread(dev.push, dict(files), "first")
    await marked(session, opa, "p0", 0, 120)
    await floor.publish(files, session, "p0", 0)
    for mark in range(1, commits + 1):
        changed = {"policies/projects/p0/rego.rego": rego("p0", mark)}
        await asyncio.to_thread(dev.push, dict(changed), f"mark {mark}")
        began = time.perf_counter()
        await marked(session, opa, "p0", mark)
        ours.append(time.perf_counter() - began)
        bare.append(await floor.publish({**files, **changed}, session, "p0", mark))
    return ours, bare
