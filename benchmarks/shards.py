"""One change among 10,000 policies in 64 shards, some of them for real; and one OPA by what it has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from fixtures.etcd import free_port

from benchmarks.engine import Engine, engine
from benchmarks.floor import Floor, marked
from benchmarks.policies import DATA, PLATFORM, rego
from benchmarks.propagation import measure
from benchmarks.report import Cell, Table, ms, percentile
from reconciler.agent.opa_config import opa_config
from reconciler.aside import share_the_process
from reconciler.core.shards import Shard, shard_of
from regops import toolchain

GOAL_MS = 500


async def sizing(sizes: tuple[int, ...], commits: int) -> Table:
    """From a push to the decision, by how many policies one OPA has; and which of them keep half a second."""
    rows: list[list[Cell]] = []
    for size in sizes:
        ours, bare = await measure(size, commits)
        times = [ms(percentile(values, p)) for values, p in ((ours, 50), (ours, 95), (bare, 50), (bare, 95))]
        rows.append([size, commits, *times, "yes" if times[1] <= GOAL_MS else "no"])
    columns = ("policies of one OPA", "commits", "p50", "p95", "floor p50", "floor p95", f"p95 within {GOAL_MS}")
    return Table("sizing", "`git push` returned → OPA decides by the new rule, ms", columns, rows)


async def shards(policies: int, count: int, real: int, commits: int) -> Table:
    """Changes in the largest shard and in one of the middle, while ``real`` shards run; the others would be idle."""
    projects: dict[int, list[str]] = {index: [] for index in range(1, count + 1)}
    for number in range(policies - 1):
        projects[shard_of(f"p{number}", count)].append(f"p{number}")
    order = sorted(projects, key=lambda index: len(projects[index]))
    largest, middle = order[-1], order[len(order) // 2]
    share_the_process()  # as a server does
    async with engine(policies) as one, contextlib.AsyncExitStack() as stack:
        await one.run()
        session = await stack.enter_async_context(aiohttp.ClientSession())
        places = {}
        for index in [largest, middle, *order[: real - 2]]:
            places[index] = await stack.enter_async_context(_place(one, Shard(index, count), session))
        rows = [
            await _row(word, one, places[index], projects[index], commits, session)
            for word, index in (("largest", largest), ("middle", middle))
        ]
        agent, opa = (statistics.mean(each[i] for each in map(_Place.memory, places.values())) for i in (0, 1))
    columns = ("changed shard", "its projects", "commits", "applied p50", "enforced p50", "p95", "max")
    return Table(
        "shards",
        f"One change among {policies:,} policies in {count} shards: pushed → applied → its OPA decides by it, ms",
        (*columns, "floor p50", "floor p95"),
        rows,
        f"{real} shards ran for real, each with {agent:.0f} MB of agent and {opa:.0f} MB of OPA: all {count} are "
        f"calculated to take {count * (agent + opa) / 1000:.1f} GB. The smallest shard has "
        f"{len(projects[order[0]])} projects. Goal: at most {GOAL_MS} ms.",
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """An agent and its OPA, as processes."""

    url: str
    agent: int
    opa: int

    def memory(self) -> tuple[float, float]:
        """Resident MB of both."""
        return _resident(self.agent), _resident(self.opa)


async def _row(
    word: str, one: Engine, place: _Place, projects: list[str], commits: int, session: aiohttp.ClientSession
) -> list[Cell]:
    """Both alternate: regops, and the same bundle from a bare long-poll server to an OPA of its own."""
    project = projects[0]
    files = {"policies/platform/rego.rego": PLATFORM}
    for each in projects:
        files |= {f"policies/projects/{each}/rego.rego": rego(each, 0), f"policies/projects/{each}/data.json": DATA}
    floor = Floor(_tool("opa"))
    await floor.start()
    applied, enforced, bare = list[float](), list[float](), list[float]()
    try:
        await floor.publish(files, session, project, 0)
        for mark in range(1, commits + 1):
            changed = {f"policies/projects/{project}/rego.rego": rego(project, mark)}
            one.remote.commit({name: text.encode() for name, text in changed.items()})
            began = time.perf_counter()
            await one.run()
            applied.append(time.perf_counter() - began)
            await marked(session, place.url, project, mark)
            enforced.append(time.perf_counter() - began)
            bare.append(await floor.publish({**files, **changed}, session, project, mark))
    finally:
        await floor.stop()
    times = [percentile(applied, 50), percentile(enforced, 50), percentile(enforced, 95), max(enforced)]
    times += [percentile(bare, 50), percentile(bare, 95)]
    return [word, len(projects), commits, *map(ms, times)]


@contextlib.asynccontextmanager
async def _place(one: Engine, shard: Shard, session: aiohttp.ClientSession) -> AsyncIterator[_Place]:
    """`regops agent --shard` and its OPA, once it has activated."""
    folder = one.folder / f"shard-{shard.index}"
    folder.mkdir()
    agent_port, opa_port = free_port(), free_port()
    settings = {
        "REGOPS_ETCD_ENDPOINTS": one.endpoint,
        "REGOPS_AGENT_PORT": str(agent_port),
        "REGOPS_AGENT_ID": folder.name,
        "REGOPS_AGENT_STATE": str(folder / "state"),
    }
    config = folder / "opa.yaml"
    config.write_text(opa_config(f"http://127.0.0.1:{agent_port}"))
    words = [str(_tool("opa")), "run", "--server", "--addr", f"127.0.0.1:{opa_port}", "--config-file", str(config)]
    words += ["--skip-version-check", "--log-level", "error"]
    with (
        _process([sys.executable, "-m", "regops", "agent", "--shard", str(shard)], settings) as agent,
        _process(words, {}) as opa,
    ):
        url = f"http://127.0.0.1:{opa_port}"
        async with asyncio.timeout(60):
            while not await _healthy(session, url):
                await asyncio.sleep(0.05)
        yield _Place(url, agent, opa)


async def _healthy(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health?bundles") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@contextlib.contextmanager
def _process(words: list[str], settings: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        words, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _tool(name: str) -> Path:
    found = toolchain.find(name)
    if found is None:
        raise SystemExit(f"no {name}: run `make setup`")
    return found
