"""A fleet on one etcd: all start at once, commits, receipts, a new leader, an etcd that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.policies import DATA, PLATFORM, rego
from benchmarks.report import Cell, Table, ms, percentile

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import Content, PolicyName, policy_name
from reconciler.core.ports import Put, Range, Transaction
from reconciler.core.records import Applied, Meta, Receipt

KEYS = Keyspace()
AT = "2026-01-01T00:00:00.000Z"
PROCESSES = 2
_LOT = 40
_PATIENCE = 120.0


@dataclass
class Leader:
    """Writes as a leader's pass does, without Git and OPA."""

    store: EtcdStore
    applied: Applied = field(default_factory=lambda: Applied("id-0", "0" * 40, 0, 0, "d", AT, changed=None))

    async def fill(self, policies: int) -> None:
        names = [policy_name("platform"), *(policy_name(f"projects/p{number}") for number in range(policies))]
        for start in range(0, len(names), _LOT):
            puts = [put for name in names[start : start + _LOT] for put in _puts(name, 0)]
            await self.store.commit(Transaction((), tuple(puts)))
        await self._write(self.applied)

    async def change(self, *names: str) -> float:
        """One commit; when it was in etcd."""
        height = self.applied.height + 1
        applied = replace(
            self.applied,
            id=f"id-{height}",
            previous=self.applied.id,
            commit=f"{height:040x}",
            height=height,
            digest=str(height),
            changed=names,
        )
        return await self._write(applied, *(put for name in names for put in _puts(policy_name(name), height)))

    async def renew(self) -> float:
        """A new leader's first word."""
        anew = replace(self.applied, id=f"{self.applied.id}-anew", previous=self.applied.id, changed=None)
        return await self._write(anew)

    async def _write(self, applied: Applied, *puts: Put) -> float:
        await self.store.commit(Transaction((), (*puts, Put(KEYS.applied, applied.encode()))))
        self.applied = applied
        return time.monotonic()


def _puts(name: PolicyName, mark: int) -> tuple[Put, ...]:
    text = PLATFORM + f"mark := {mark}\n" if name == "platform" else rego(name.removeprefix("projects/"), mark)
    content = Content(text.encode(), DATA.encode())
    ids = content.blob_ids()
    meta = Meta(ids.etag, f"{mark:040x}", "Bench <bench@example.org>", AT, 1, ids.rego, ids.data)
    data = Put(KEYS.data(name), DATA.encode())
    return Put(KEYS.rego(name), content.rego), data, Put(KEYS.meta(name), meta.encode())


class Fleet:
    """Agents in `PROCESSES` processes."""

    def __init__(self, workers: Sequence[asyncio.subprocess.Process], size: int, store: EtcdStore) -> None:
        self._workers, self._size, self._store = workers, size, store

    async def start(self) -> float:
        """All at once; when that was."""
        began = time.monotonic()
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")
        return began

    async def hold(self, apply: str) -> list[float]:
        """When each of them held that apply."""
        async with asyncio.timeout(_PATIENCE):
            parts = await asyncio.gather(*(_times(worker, apply) for worker in self._workers))
        return [at for part in parts for at in part]

    async def prove(self, commit: str) -> float:
        """When the receipts of all of them named that commit."""
        async with asyncio.timeout(_PATIENCE):
            while True:
                read = await self._store.read(Range(KEYS.receipts, prefix=True))
                receipts = [Receipt.decode(kv.value) for kv in read.ranges[0]]
                if sum(receipt.enforced_revision == commit for receipt in receipts) == self._size:
                    return time.monotonic()
                await asyncio.sleep(0.05)


async def _times(worker: asyncio.subprocess.Process, apply: str) -> list[float]:
    assert worker.stdout is not None
    while line := await worker.stdout.readline():
        said = json.loads(line)
        if said.get("apply") == apply:
            return list(said["times"])
    raise SystemExit("a process of agents has ended")


@contextlib.asynccontextmanager
async def fleet(
    etcd: EtcdServer, store: EtcdStore, agents: int, policies: int, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Fleet]:
    """Of agents that each answer for one of ``policies`` projects, or for everything (0)."""
    workers = []
    share = agents // PROCESSES
    try:
        for number in range(PROCESSES):
            words = [etcd.endpoint, str(number * share), str(share), str(policies)]
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.fleet_worker", *words),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=16 << 20,
                env={**os.environ, **(environment or {})},
            )
            workers.append(worker)
            assert worker.stdout is not None
            await worker.stdout.readline()
        yield Fleet(workers, share * PROCESSES, store)
    finally:
        for worker in workers:
            worker.kill()
            await worker.wait()


class Load:
    """What etcd did since the last look: seconds of processor, MB sent to clients, MB of database."""

    def __init__(self, etcd: EtcdServer) -> None:
        self._etcd = etcd
        self._cpu, self._sent = self._now()

    def since(self) -> tuple[float, float]:
        (cpu, sent), before = self._now(), (self._cpu, self._sent)
        self._cpu, self._sent = cpu, sent
        return round(cpu - before[0], 2), round((sent - before[1]) / 1e6, 1)

    def database(self) -> float:
        return round(self._metric("etcd_mvcc_db_total_size_in_bytes") / 1e6, 1)

    def _now(self) -> tuple[float, float]:
        assert self._etcd.process is not None
        fields = Path(f"/proc/{self._etcd.process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return cpu, self._metric("etcd_network_client_grpc_sent_bytes_total")

    def _metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self._etcd.endpoint}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


def _row(what: str, agents: int, times: Iterable[float], load: Load) -> list[Cell]:
    """The median and the last of the times, ms, and etcd's part in it."""
    sorted_times = sorted(max(0.0, each) for each in times)
    cells = [ms(sorted_times[len(sorted_times) // 2]), ms(sorted_times[-1])]
    return [what, agents, *cells, *load.since()]


async def reach(sizes: tuple[int, ...], policies: int, commits: int) -> Table:
    """`applied` written → the last of so many agents' mirrors."""
    rows: list[Sequence[Cell]] = []
    for agents in sizes:
        for scope, changed in ((policies, "projects/p0"), (policies, "platform"), (0, "projects/p0")):
            rows.append(await _reached(agents, policies, scope, changed, commits))
    columns = (
        "agents",
        "each answers for",
        "changed",
        "half of them p50",
        "the last p50",
        "p95",
        "etcd CPU, ms a commit",
    )
    says = f"`applied` written → held by the mirrors of so many agents, ms ({policies} policies)"
    return Table("fleet-reach", says, columns, rows, "Goal: the last of 500 agents within 250 ms, p95.")


async def _reached(agents: int, policies: int, scope: int, changed: str, commits: int) -> list[Cell]:
    halves, lasts = list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        async with _world(Path(folder), policies) as (etcd, leader), fleet(etcd, leader.store, agents, scope) as crowd:
            await crowd.start()
            await crowd.hold(leader.applied.id)
            await crowd.prove(leader.applied.commit)
            load = Load(etcd)
            for _ in range(commits):
                written = await leader.change(changed)
                times = sorted(at - written for at in await crowd.hold(leader.applied.id))
                halves.append(times[len(times) // 2])
                lasts.append(times[-1])
                await crowd.prove(leader.applied.commit)
            cpu, _ = load.since()
    what = "everything" if scope == 0 else "one project"
    cells = [ms(percentile(halves, 50)), ms(percentile(lasts, 50)), ms(percentile(lasts, 95)), ms(cpu / commits)]
    return [agents, what, changed, *cells]


async def storms(agents: int, policies: int) -> Table:
    """What all do at the same moment."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        async with (
            _world(Path(folder), policies) as (etcd, leader),
            fleet(etcd, leader.store, agents, policies) as crowd,
        ):
            rows = [row async for row in _stormy(etcd, leader, crowd, agents)]
    columns = ("what", "agents", "half of them, ms", "the last, ms", "etcd CPU s", "etcd sent MB")
    return Table(
        "fleet", f"A fleet on one etcd: {policies} policies, each agent answers for one project", columns, rows
    )


async def _stormy(etcd: EtcdServer, leader: Leader, crowd: Fleet, agents: int) -> AsyncIterator[list[Cell]]:
    load = Load(etcd)
    began = await crowd.start()
    yield _row("all start at once: whole", agents, [at - began for at in await crowd.hold(leader.applied.id)], load)
    yield _row("… and every receipt is there", agents, [await crowd.prove(leader.applied.commit) - began], load)
    written = await leader.change("platform")
    yield _row(
        "a change of the platform: held", agents, [at - written for at in await crowd.hold(leader.applied.id)], load
    )
    yield _row("… every receipt names it", agents, [await crowd.prove(leader.applied.commit) - written], load)
    written = await leader.change("projects/p0")
    yield _row(
        "a change of one project: held", agents, [at - written for at in await crowd.hold(leader.applied.id)], load
    )
    yield _row("… every receipt names it", agents, [await crowd.prove(leader.applied.commit) - written], load)
    written = await leader.renew()
    yield _row(
        "a new leader's first word: held", agents, [at - written for at in await crowd.hold(leader.applied.id)], load
    )
    await asyncio.to_thread(etcd.stop)
    await asyncio.to_thread(etcd.start)
    back = time.monotonic()
    load = Load(etcd)
    await leader.change("platform")
    yield _row(
        "etcd killed and started again: a commit is held",
        agents,
        [at - back for at in await crowd.hold(leader.applied.id)],
        load,
    )
    yield _row("… every receipt names it", agents, [await crowd.prove(leader.applied.commit) - back], load)


async def grown(agents: int, policies: int, commits: int) -> Table:
    """Etcd's database over many commits, five a second, none of which changes what most of the agents have."""
    rows = [
        await _grown(agents, policies, commits, "written at once", within=0.0),
        await _grown(agents, policies, commits, "as it is: within a second", within=1.0),
        await _grown(agents, policies, commits, "… and compacted every 50 commits", within=1.0, compacted=50),
    ]
    columns = ("receipts that only move on", "agents", "commits", "receipts written", "database MB before", "after")
    says = "etcd's database while commits flow, five a second, that change one project"
    return Table("fleet-growth", says, columns, rows)


async def _grown(
    agents: int, policies: int, commits: int, what: str, *, within: float, compacted: int = 0
) -> list[Cell]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        world, pace = _world(Path(folder), policies), {"REGOPS_BENCH_WITHIN": str(within)}
        async with world as (etcd, leader), fleet(etcd, leader.store, agents, policies, pace) as crowd:
            await crowd.start()
            await crowd.prove(leader.applied.commit)
            load, before = Load(etcd), (await leader.store.read()).revision
            size = load.database()
            for number in range(1, commits + 1):
                await leader.change("projects/p0")
                await asyncio.sleep(0.2)
                if compacted and number % compacted == 0:
                    revision = (await leader.store.read()).revision
                    await asyncio.to_thread(etcd.post, "kv/compaction", {"revision": str(revision)})
            await crowd.prove(leader.applied.commit)
            written = (await leader.store.read()).revision - before - commits
            return [what, agents, commits, written, size, load.database()]


@contextlib.asynccontextmanager
async def _world(folder: Path, policies: int, *flags: str) -> AsyncIterator[tuple[EtcdServer, Leader]]:
    etcd = EtcdServer(folder / "etcd", flags=("--unsafe-no-fsync=false", *flags))
    await asyncio.to_thread(etcd.start)
    store = EtcdStore([etcd.endpoint])
    try:
        leader = Leader(store)
        await leader.fill(policies)
        yield etcd, leader
    finally:
        await store.aclose()
        etcd.stop()
