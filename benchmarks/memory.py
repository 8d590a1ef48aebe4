"""Resident memory of the server and of an agent, as processes, with many policies."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from fixtures.dev import Dev

from benchmarks.policies import tree
from benchmarks.report import Table


async def memory(sizes: tuple[int, ...]) -> Table:
    """After the first sync of so many policies and one change."""
    rows = [await asyncio.to_thread(_measure, size) for size in sizes]
    columns = ("policies", "server MB", "server peak MB", "agent MB", "agent peak MB")
    return Table("memory", "Resident memory of `regops server` and `regops agent`", columns, rows)


def _measure(size: int) -> list[int | float]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        dev = Dev(Path(folder))
        dev.start()
        try:
            commit = dev.push({**tree(size)}, "first")
            deadline = time.monotonic() + 120
            while not all(a["enforced_revision"] == f"main@sha1:{commit}" for a in dev.get("/status")["agents"]):
                if time.monotonic() > deadline:
                    raise SystemExit(f"{size} policies are not enforced after two minutes")
                time.sleep(0.2)
            pids = dev.ready()["pids"]
            return [size, *_of(pids["server"]), *_of(pids["agent-0"])]
        finally:
            dev.stop()


def _of(pid: int) -> tuple[float, float]:
    """Resident and peak, MB."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return round(resident / 1e6, 1), round(peak / 1e6, 1)
