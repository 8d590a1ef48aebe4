"""PUT beside the git commands of a script, and PUT until every OPA enforces beside the propagation floor."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks.api_client import Load, Next, header, request, run, status
from benchmarks.api_world import World, open_world
from benchmarks.floor import Floor
from benchmarks.policies import DATA, rego, tree
from regops import toolchain

WRITERS = (1, 8, 32)


@dataclass
class Writes:
    """Seconds of each PUT alone (``alone``), PUTs per second by number of writers, and the script's commits."""

    alone: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[int, list[float]] = field(default_factory=dict)
    latencies: dict[int, list[float]] = field(default_factory=dict)
    script: list[float] = field(default_factory=list)
    busy: float = 0.0

    @property
    def script_rate(self) -> float:
        return len(self.script) / sum(self.script)


async def measure(writes: int, rounds: int) -> Writes:
    """``writes`` PUTs of each writer in each of ``rounds``; the script's commits come between."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        async with open_world(Path(folder), tree(max(WRITERS) + 1)) as world:
            return await asyncio.to_thread(_measure, world, writes, rounds)


async def measure_active(size: int, writes: int) -> tuple[list[float], list[float]]:
    """Seconds of PUTs with ``wait=active`` in a tree of so many policies, and of the floor, alternating."""
    opa = toolchain.find("opa")
    if opa is None:
        raise SystemExit("no opa: run `make setup`")
    files = tree(size)
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        floor = Floor(opa)
        async with open_world(Path(folder), files) as world, aiohttp.ClientSession() as session:
            await floor.start()
            try:
                return await _alternate(world, floor, session, files, writes)
            finally:
                await floor.stop()


async def _alternate(
    world: World, floor: Floor, session: aiohttp.ClientSession, files: dict[str, str], writes: int
) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    bare: list[float] = []
    putter = _Putter(world, 0, "active")
    await floor.publish(files, session, "p0", 0)
    for mark in range(1, writes + 1):
        ours += (await asyncio.to_thread(run, world.api, [putter.times(1)])).seconds
        changed = {**files, "policies/projects/p0/rego.rego": rego("p0", mark)}
        bare.append(await floor.publish(changed, session, "p0", mark))
    return ours, bare


def _measure(world: World, writes: int, rounds: int) -> Writes:
    found = Writes()
    for wait in ("none", "live"):
        putter = _Putter(world, 0, wait)
        run(world.api, [putter.times(3)])
        found.alone[wait] = run(world.api, [putter.times(writes * rounds)]).seconds
    putters = [_Putter(world, number, "none") for number in range(max(WRITERS))]
    script = _Script(world)
    for _ in range(rounds):
        for writers in WRITERS:
            load = run(world.api, [putter.times(writes) for putter in putters[:writers]])
            _note(found, writers, load)
        found.script += script.commits(writes)
    return found


def _note(found: Writes, writers: int, load: Load) -> None:
    found.rates.setdefault(writers, []).append(load.per_second)
    found.latencies.setdefault(writers, []).extend(load.seconds)
    found.busy = max(found.busy, load.busy)


class _Putter:
    """A writer with a token and a policy of its own, that always knows its policy's ETag."""

    _marks = itertools.count(100)

    def __init__(self, world: World, number: int, wait: str) -> None:
        self._project = f"p{number}"
        self._token = world.token(f"writer-{number}")
        self._wait = wait
        self._etag = world.etag(self._project)

    def times(self, writes: int) -> Next:
        left = iter(range(writes))

        def following(former: bytes | None) -> bytes | None:
            if former is not None:
                self._take(former)
            return None if next(left, None) is None else self._put()

        return following

    def _put(self) -> bytes:
        body = {"rego": rego(self._project, next(self._marks)), "data": json.loads(DATA)}
        path = f"/policies/{self._project}?wait={self._wait}"
        return request("PUT", path, self._token, json.dumps(body).encode(), If_Match=self._etag)

    def _take(self, answer: bytes) -> None:
        reached = header(answer, "Policy-Sync") if status(answer) == 200 else None
        if reached != {"none": "pending"}.get(self._wait, self._wait):
            raise SystemExit(f"a PUT with wait={self._wait} was answered {answer[:900]!r}")
        self._etag = header(answer, "ETag")


class _Script:
    """What a script would do instead: one clone, then for each change write, commit, push, with the git command."""

    def __init__(self, world: World) -> None:
        self._url = world.remote.url
        self._clone = world.folder / "clone"
        self._numbers = itertools.count(1)
        self._git("clone", "-q", self._url, str(self._clone), folder=world.folder)

    def commits(self, count: int) -> list[float]:
        """Seconds of each change. Its clone is brought up to date before, and not timed."""
        self._git("pull", "-q", "--ff-only")
        return [self._commit(next(self._numbers)) for _ in range(count)]

    def _commit(self, mark: int) -> float:
        began = time.perf_counter()
        project = f"p{max(WRITERS)}"  # the one that no writer of the API has
        (self._clone / f"policies/projects/{project}/rego.rego").write_text(rego(project, mark))
        self._git("commit", "-qam", f"mark {mark}")
        self._git("push", "-q")
        return time.perf_counter() - began

    def _git(self, *words: str, folder: Path | None = None) -> None:
        identity = {"GIT_AUTHOR_NAME": "script", "GIT_AUTHOR_EMAIL": "script@localhost"}
        identity |= {"GIT_COMMITTER_NAME": "script", "GIT_COMMITTER_EMAIL": "script@localhost"}
        subprocess.run(["git", *words], cwd=folder or self._clone, check=True, env={**os.environ, **identity})
