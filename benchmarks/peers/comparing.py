"""``git push`` returned → the OPA decides by the new rule: regops and OPAL, alternating, on the same machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from benchmarks.floor import marked
from benchmarks.peers import world
from benchmarks.peers.opal import VERSION, install, opal
from benchmarks.peers.regops import regops
from benchmarks.report import Cell, Table, ms, percentile


async def peers(sizes: tuple[int, ...], commits: int) -> Table:
    """Raises `NotInstallableError` where PyPI is out of reach."""
    install()
    rows: list[Sequence[Cell]] = []
    for size in sizes:
        ours, theirs = await _compared(size, commits)
        rows.append([size, commits, *_figures(ours), *_figures(theirs), round(_p50(theirs) / _p50(ours), 2)])
    columns = ("policies", "commits", "regops p50", "p95", "max", "OPAL p50", "p95", "max", "OPAL / regops, p50")
    return Table(
        "peers",
        f"`git push` returned → OPA decides by the new rule, beside OPAL {VERSION}, ms",
        columns,
        rows,
        f"Policies of {world.RULES} rules; webhook posted at once, repository on the same disk, the same OPA binary, "
        "alternating commits. OPAL: 1 worker, no broadcaster, no data updates. regops: its file watch is off, etcd "
        "syncs to disk, and every change is compiled by a private OPA before it goes live.",
    )


async def _compared(size: int, commits: int) -> tuple[list[float], list[float]]:
    ours, theirs = list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as name:
        folders = [Path(name, side) for side in ("regops", "opal")]
        for folder in folders:
            folder.mkdir()
        repositories = [world.Repository.make(folder, world.tree(size)) for folder in folders]
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            one = await stack.enter_async_context(regops(folders[0], repositories[0]))
            other = await stack.enter_async_context(opal(folders[1], repositories[1]))
            for peer in (one, other):
                for number in range(size):
                    await marked(session, peer.opa, f"p{number}", 0, world.START_SECONDS)
            for mark in range(1, commits + 1):
                ours.append(await world.timed(one, repositories[0], session, mark))
                theirs.append(await world.timed(other, repositories[1], session, mark))
    return ours, theirs


def _p50(times: Sequence[float]) -> float:
    return percentile(times, 50)


def _figures(times: Sequence[float]) -> tuple[float, float, float]:
    return ms(_p50(times)), ms(percentile(times, 95)), ms(max(times))
