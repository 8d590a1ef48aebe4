"""The record of versions: a long history recorded from nothing, and how far a record is behind its pass."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fixtures.mongo import MongoServer
from prometheus_client import CollectorRegistry

from benchmarks.engine import engine
from benchmarks.policies import DATA, rego
from benchmarks.report import Table, ms, percentile
from reconciler.adapters.git import GitSource
from reconciler.adapters.mongo import MongoDatabase, MongoVersions
from reconciler.core.versions import Retention, Seen
from reconciler.metrics import RecorderMetrics
from reconciler.recorder import Recorder
from reconciler.settings import LoopSettings

KEEP = Retention(5, 5)
_BATCH = 256
_SMALL = 2
"""Rules of a policy where texts are to weigh little."""


async def recording(commits: int) -> Table:
    """Every version is kept in the first row, 1 of 20 in the second, and the third has no texts to speak of."""
    rows = []
    for versions, rules in ((5, 14), (100, 14), (5, _SMALL)):
        rows.append(await recorded(commits, versions, rules))
    columns = (
        "commits",
        "versions of each policy",
        "KiB of a text",
        "seconds",
        "commits/s",
        "documents",
        "bare inserts, s",
        "of the bare rate, %",
        "peak MB",
    )
    goal = "Goal: where every version is kept, at least half as fast as the bare inserts; at most 200 MB."
    return Table("recording", "A history recorded from nothing, beside bare inserts of the same", columns, rows, goal)


async def recorded(commits: int, versions: int, rules: int) -> list[int | float | str]:
    """One row of `recording`; the fourth cell is the seconds that it took to record."""
    return await asyncio.to_thread(_recorded, commits, versions, rules)


def _recorded(commits: int, versions: int, rules: int) -> list[int | float | str]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as name, _mongo(Path(name)) as uri:
        remote = Path(name, "remote.git")
        _history(remote, commits, versions, rules)
        words = [sys.executable, "-m", "benchmarks.recording", remote.as_uri(), str(Path(name, "mirror.git")), uri]
        said = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
        if said.returncode:
            raise SystemExit(said.stderr)
        found = json.loads(said.stdout)
        seconds, bare = asyncio.run(_inserted(uri)), found["seconds"]
        size = len(rego("p0", 0, rules)) / 1024
        return [
            commits,
            versions,
            round(size, 1),
            round(bare, 2),
            round(commits / bare),
            found["documents"],
            round(seconds, 2),
            round(100 * seconds / bare),
            found["peak"],
        ]


def _history(path: Path, commits: int, versions: int, rules: int) -> None:
    """A bare repository of so many commits, each with a new version of one policy."""
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True, timeout=30)
    projects = max(1, commits // versions)
    command = ["git", "--git-dir", str(path), "fast-import", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for number in range(commits):
            project = f"p{number % projects}"
            message = f"Merge pull request #{number + 1} from ann/{project}"
            process.stdin.write(
                f"commit refs/heads/main\ncommitter Ann <ann@example.org> {1_700_000_000 + number} +0000\n"
                f"data {len(message)}\n{message}\n".encode()
            )
            for file, text in (("rego.rego", rego(project, number, rules)), ("data.json", DATA)):
                process.stdin.write(
                    f"M 100644 inline policies/projects/{project}/{file}\ndata {len(text)}\n{text}\n".encode()
                )
    if process.returncode:
        raise SystemExit("git fast-import failed")


@contextlib.contextmanager
def _mongo(folder: Path) -> Iterator[str]:
    server = MongoServer(folder / "mongo")
    server.start()
    try:
        yield server.uri
    finally:
        server.stop()


async def _inserted(uri: str) -> float:
    """Seconds for the same documents into empty collections with the same indexes."""
    database = MongoDatabase(uri, "bare")
    await MongoVersions(database).bookmark()  # makes the indexes
    recorded = MongoDatabase(uri)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("policy_commits", "policy_versions"):
        found[name] = [document async for document in recorded.collection(name).find()]
    began = time.perf_counter()
    for name, documents in found.items():
        for start in range(0, len(documents), _BATCH):
            await database.collection(name).insert_many(documents[start : start + _BATCH], ordered=False)
    seconds = time.perf_counter() - began
    await database.aclose()
    await recorded.aclose()
    return seconds


async def record_lag(size: int, commits: int) -> Table:
    """From the end of a pass that applied one change to its version being in MongoDB."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as name, _mongo(Path(name)) as uri:
        async with engine(size) as own, _recorder(own.remote.url, Path(name, "mirror.git"), uri) as (source, recorder):
            lags = []
            for number in range(commits + 1):
                result = await own.run()
                await source.fetch()
                began = time.perf_counter()
                recorder.saw(result)
                await recorder.catch_up()
                lags.append(time.perf_counter() - began)
                own.change(number + 1)
    lags = lags[1:]  # the first one records everything
    row = [size, commits, ms(percentile(lags, 50)), ms(percentile(lags, 95)), ms(max(lags))]
    columns = ("policies", "commits", "p50 ms", "p95 ms", "max ms")
    return Table("record-lag", "A version's record behind the pass that applied it", columns, [row])


@contextlib.asynccontextmanager
async def _recorder(remote: str, mirror: Path, uri: str) -> AsyncIterator[tuple[GitSource, Recorder]]:
    source, database = GitSource(remote=remote, mirror=mirror), MongoDatabase(uri)
    try:
        metrics = RecorderMetrics(CollectorRegistry())
        yield source, Recorder(source, MongoVersions(database), keep=KEEP, metrics=metrics, settings=LoopSettings())
    finally:
        await source.aclose()
        await database.aclose()


async def _record(remote: str, mirror: Path, uri: str) -> dict[str, float]:
    """In a process of its own, for its memory: what `recording` times."""
    async with _recorder(remote, mirror, uri) as (source, recorder):
        head = await source.fetch()
        recorder.note(Seen(head, None, "2026-01-01T00:00:00.000Z"))
        began = time.perf_counter()
        await recorder.catch_up()
        seconds = time.perf_counter() - began
    client = MongoDatabase(uri)
    documents = await client.collection("policy_versions").count_documents({})
    await client.aclose()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return {"seconds": seconds, "documents": documents, "peak": round(peak / 1000, 1)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_record(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))))
