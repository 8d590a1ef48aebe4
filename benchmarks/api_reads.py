"""GET and 304 beside a bare aiohttp handler that returns the same bytes, alternating in one run."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.api_client import Address, Load, header, repeat, request
from benchmarks.api_world import World, open_world
from benchmarks.policies import tree

CONNECTIONS = 16
PROJECT = "p0"


@dataclass(frozen=True)
class Pair:
    """Requests per second of each slice, and the busiest client."""

    name: str
    ours: list[float]
    bare: list[float]
    client: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.ours) / statistics.median(self.bare)


async def measure(slices: int, seconds: float) -> list[Pair]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        async with open_world(Path(folder), tree(10)) as world:
            return await asyncio.to_thread(_measure, world, slices, seconds)


def _measure(world: World, slices: int, seconds: float) -> list[Pair]:
    answer = world.get(PROJECT)
    etag = header(answer, "ETag")
    path = f"/policies/{PROJECT}"
    requests = {
        "GET, 200": (request("GET", path, world.token()), 200),
        "GET with If-None-Match, 304": (request("GET", path, world.token(), If_None_Match=etag), 304),
    }
    with bare_server(world.folder, answer) as bare:
        return [_alternate(name, world.api, bare, *sent, slices, seconds) for name, sent in requests.items()]


def _alternate(
    name: str, ours: Address, bare: Address, sent: bytes, expected: int, slices: int, seconds: float
) -> Pair:
    for address in (ours, bare):
        repeat(address, sent, expected, CONNECTIONS, 0.5)
    loads: list[tuple[Load, Load]] = []
    for _ in range(slices):
        pair = [repeat(address, sent, expected, CONNECTIONS, seconds) for address in (ours, bare)]
        loads.append((pair[0], pair[1]))
    rates = [[load.per_second for load in side] for side in zip(*loads, strict=True)]
    return Pair(name, rates[0], rates[1], max(load.busy for pair in loads for load in pair))


@contextlib.contextmanager
def bare_server(folder: Path, answer: bytes) -> Iterator[Address]:
    file = folder / "answer"
    file.write_bytes(answer)
    words = [sys.executable, "-m", "benchmarks.api_bare", str(file)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    try:
        if process.stdout is None:
            raise AssertionError("unreachable: it has a pipe")
        yield "127.0.0.1", int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
