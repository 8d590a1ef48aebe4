"""Resident memory of the server and of agents, as processes, with many policies."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.policies import rego
from benchmarks.processes import Running, Site, site
from benchmarks.report import Table

_SETTLED = 2.0
"""Seconds without which an agent's disk copy is still being written, and a server's first pass told."""


async def memory(sizes: tuple[int, ...]) -> Table:
    """After the first sync of so many policies, and changes."""
    rows = [await asyncio.to_thread(_measure, size) for size in sizes]
    columns = ("policies", "server MB", "peak", "agent of all MB", "peak", "agent of one project MB", "peak")
    return Table(
        "memory",
        "Resident memory of `regops server` and `regops agent`",
        columns,
        rows,
        "Goals: a server with 10,000 policies 200 MB, an agent of all of them 250 MB, of one project 70 MB.",
    )


def _measure(size: int) -> list[int | float]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder, site(Path(folder), size) as one:
        return _after_changes(one)


def _after_changes(one: Site) -> list[int | float]:
    with one.server() as server, one.agent("all") as whole, one.agent("one", "p0") as single:
        for mark in range(1, 4):
            head = one.remote.commit({"policies/projects/p0/rego.rego": rego("p0", mark).encode()})
            _looked(one)
            for agent in (whole, single):
                _serves(agent, head)
        time.sleep(_SETTLED)
        return [one.size, *server.memory(), *whole.memory(), *single.memory()]


def _looked(one: Site) -> None:
    """The server is told to look, as any person tells it."""
    one.etcd.post("kv/put", {"key": "L3JlZ29wcy9wdXNoZWQ=", "value": "aG9vaw=="})  # /regops/pushed: hook


def _serves(agent: Running, head: str) -> None:
    agent.until("/readyz", lambda _status, body: head.encode() in body)
    agent.until("/bundles/regops", lambda status, _body: status == 200)
