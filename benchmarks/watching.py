"""What it costs to look: the status of a large fleet, and streams of events while commits flow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import aiohttp

from benchmarks.api_client import Address
from benchmarks.api_reads import bare_server
from benchmarks.api_world import World, open_world
from benchmarks.policies import PLATFORM, rego, tree
from benchmarks.report import Cell, Table, ms, percentile

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures.etcd import eventually

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Put, Range, Transaction
from reconciler.core.records import Applied, Receipt

KEYS = Keyspace()
LOT = 50
"""Agents that are written in one transaction: two keys each, of the 128 operations that etcd takes."""


async def fleet(world: World, agents: int) -> None:
    """So many agents that are alive and enforce what is applied, but for one in fifty."""
    store = EtcdStore([world.etcd])
    try:
        applied = Applied.decode((await store.read(Range(KEYS.applied))).ranges[0][0].value).commit
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for start in range(0, agents, LOT):
            puts: list[Put] = []
            for number in range(start, min(start + LOT, agents)):
                datacentre, name = ("east", "west")[number % 2], f"gateway-{number:04}"
                commit = "1" * 40 if number % 50 == 0 else applied
                receipt = Receipt(name, datacentre, "all", commit, now, opa_version="1.22.2")
                puts += [
                    Put(KEYS.receipt(datacentre, name), receipt.encode()),
                    Put(KEYS.alive(datacentre, name), b"{}"),
                ]
            await store.commit(Transaction((), tuple(puts)))
    finally:
        await store.aclose()


# --- status ----------------------------------------------------------------------------------------------------------


async def status(policies: int, agents: int, requests: int) -> Table:
    """One request after the other, and 304s beside whole answers."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        async with open_world(Path(folder), tree(policies - 1), projects="p0") as world:
            await fleet(world, agents)
            rows = await asyncio.to_thread(_rows, world, requests)
    return Table(
        "status",
        f"The state of {policies:,} policies and {agents:,} agents, ms",
        ("request", "bytes", "p50", "p95", "bare p50", "bare p95"),
        rows,
        "Bare: an aiohttp handler in a process of its own that answers with the same bytes.",
    )


def _rows(world: World, requests: int) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for path in ("/status", "/fleet", "/status/policies?limit=1000", "/status/policies/p0", "/history"):
        for conditional in (False, True):
            ours, raw = _times(world.api, path, world.token(), requests, conditional=conditional)
            with bare_server(world.folder, raw) as bare:
                theirs, _ = _times(bare, path, world.token(), requests, conditional=False)
            name = f"GET {path}{', 304' if conditional else ''}"
            rows.append([name, len(raw), *(ms(f(t)) for t in (ours, theirs) for f in (statistics.median, _p95))])
    return rows


def _p95(times: list[float]) -> float:
    return percentile(times, 95)


def _times(address: Address, path: str, token: str, requests: int, *, conditional: bool) -> tuple[list[float], bytes]:
    """Seconds of each request, and an answer as it came over the wire."""
    connection = HTTPConnection(*address, timeout=30)
    headers = {"Authorization": f"Bearer {token}"}
    with contextlib.closing(connection):
        etag = ""
        times: list[float] = []
        raw = b""
        for number in range(requests + 1):
            sent = {**headers, **({"If-None-Match": etag} if conditional and etag else {})}
            began = time.perf_counter()
            connection.request("GET", path, headers=sent)
            answer = connection.getresponse()
            body = answer.read()
            if number:
                times.append(time.perf_counter() - began)
            etag = answer.headers.get("ETag", "")
            head = f"HTTP/1.1 {answer.status} {answer.reason}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in answer.getheaders())
            raw = f"{head}\r\n".encode() + body
    return times, raw


# --- events ----------------------------------------------------------------------------------------------------------


async def events(listeners: int, commits: int, agents: int) -> Table:
    """The same commits without listeners, with admins, and with members of as many projects amid a large fleet."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        listening = {"policies/platform/rego.rego": f'{PLATFORM}\nallow if input.path == ["events"]\n'}
        async with open_world(Path(folder), tree(100) | listening) as world:
            admins, members = [world.token()] * listeners, [world.member(f"p{number}") for number in range(listeners)]
            rows = [_row("nobody", await _flow(world, [], commits))]
            rows.append(_row(f"{listeners} admins", await _flow(world, admins, commits)))
            await fleet(world, agents)
            for name, tokens in ((f"{listeners} admins", admins), (f"{listeners} members", members)):
                rows.append(_row(f"{name}, {agents:,} agents", await _flow(world, tokens, commits)))
    return Table(
        "events",
        f"{commits} commits, from the push until etcd has each and until the last listener has heard of it, ms",
        ("streams", "applied p50", "applied p95", "heard by all p50", "heard by all p95", "server CPU s", "server MB"),
        rows,
        "A listener hears of a commit by the event `status`; all of them are in the process of the benchmark. Members "
        "are each of another project, so that no two see the same.",
    )


def _row(name: str, found: _Flow) -> list[Cell]:
    heard = [ms(statistics.median(found.heard)), ms(_p95(found.heard))] if found.heard else ["-", "-"]
    applied = [ms(statistics.median(found.applied)), ms(_p95(found.applied))]
    return [name, *applied, *heard, f"{found.cpu:.1f}", f"{found.memory:.0f}"]


class _Flow:
    """What commits took."""

    def __init__(self) -> None:
        self.applied: list[float] = []
        self.heard: list[float] = []
        self.cpu = 0.0
        self.memory = 0.0


class _Listener:
    """One stream: the last commit that it has heard of, and when."""

    def __init__(self) -> None:
        self.commit = ""
        self.at = 0.0

    async def run(self, session: aiohttp.ClientSession, url: str, token: str) -> None:
        async with session.get(url, headers={"Authorization": f"Bearer {token}"}) as answer:
            name = b""
            async for line in answer.content:
                if line.startswith(b"event: "):
                    name = line[7:].strip()
                elif line.startswith(b"data: ") and name == b"status":
                    revision = json.loads(line[6:])["last_applied_revision"] or ""
                    self.commit, self.at = revision.rpartition(":")[2], time.perf_counter()


async def _flow(world: World, tokens: list[str], commits: int) -> _Flow:
    """With a listener for each token."""
    found, store = _Flow(), EtcdStore([world.etcd])
    own = [_Listener() for _ in tokens]
    url = f"http://{world.api[0]}:{world.api[1]}/events"
    connector = aiohttp.TCPConnector(limit=0)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.aclose)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20)
        )
        tasks = [asyncio.ensure_future(each.run(session, url, token)) for each, token in zip(own, tokens, strict=True)]
        stack.callback(lambda: [task.cancel() for task in tasks])
        await eventually(lambda: all(each.commit for each in own), 60)
        began = world.cpu()
        for number in range(commits):
            files = {"policies/projects/p1/rego.rego": rego("p1", time.time_ns() + number).encode()}
            commit = await asyncio.to_thread(world.remote.commit, files)
            pushed = time.perf_counter()

            async def applied(wanted: str = commit) -> bool:
                return Applied.decode((await store.read(Range(KEYS.applied))).ranges[0][0].value).commit == wanted

            await eventually(applied, 30)
            found.applied.append(time.perf_counter() - pushed)
            if own:
                await eventually(lambda wanted=commit: all(each.commit == wanted for each in own), 30)
                found.heard.append(max(each.at for each in own) - pushed)
        found.cpu, found.memory = world.cpu() - began, _memory(world.server.pid)
    return found


def _memory(pid: int) -> float:
    """Megabytes."""
    return next(_kilobytes(pid)) / 1024


def _kilobytes(pid: int) -> Iterator[int]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            yield int(line.split()[1])
