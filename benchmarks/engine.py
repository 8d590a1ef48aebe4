"""The engine in this process, on a real etcd, Git and OPA: a repository of any size, and passes to measure."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from fixtures.etcd import free_port
from fixtures.git import Remote

from benchmarks.policies import LINES, files, rego
from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.adapters.git import GitSource
from reconciler.adapters.opa import OpaCompiler
from reconciler.core.guards import Limits
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PolicyName, Verdict
from reconciler.core.ports import Candidate, Fence
from reconciler.reconcile import PassResult, Reconciler
from reconciler.validation import Judge
from regops import toolchain

KEYS = Keyspace()


class Watched:
    """Something whose methods are timed: ``seconds`` by method, of all calls since it was emptied."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def timed(*args: Any, **kwargs: Any) -> Any:
            began = perf_counter()
            try:
                return await method(*args, **kwargs)
            finally:
                self.seconds[name] += perf_counter() - began

        return timed


class Trusting:
    """OPA, or, while ``trusts``, nobody: everything is valid. For what is measured apart from OPA."""

    def __init__(self, inner: OpaCompiler) -> None:
        self._inner = inner
        self.trusts = False

    async def check(self) -> None:
        await self._inner.check()

    async def version(self) -> str:
        return await self._inner.version()

    async def validate(
        self, candidates: Sequence[Candidate], platform: Candidate | None
    ) -> Mapping[PolicyName, Verdict]:
        if self.trusts:
            return {candidate.policy: Verdict() for candidate in candidates}
        return await self._inner.validate(candidates, platform)

    async def together(self, candidates: Sequence[Candidate]) -> Mapping[PolicyName, Verdict]:
        return await self._inner.together(candidates)


@dataclass(frozen=True, slots=True)
class Engine:
    """What a leader has. `git`, `opa` and `etcd` tell how long their methods took."""

    remote: Remote
    store: EtcdStore
    reconciler: Reconciler
    fence: Fence
    endpoint: str
    folder: Path
    lines: int
    compiler: Trusting
    git: Watched
    opa: Watched
    etcd: Watched

    async def run(self, *, told: bool = True) -> PassResult:
        """One pass; without being ``told``, that of a poll."""
        for watched in (self.git, self.opa, self.etcd):
            watched.seconds.clear()
        return await self.reconciler.run(self.fence, told=told)

    def change(self, mark: int) -> None:
        """Commit a new version of one policy."""
        self.remote.commit({"policies/projects/p0/rego.rego": rego("p0", mark, LINES[self.lines]).encode()})


@contextlib.asynccontextmanager
async def engine(size: int, lines: int = 100) -> AsyncIterator[Engine]:
    """An empty etcd (with fsync, as in production) and a repository of ``size`` policies; nothing is applied yet."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as name:
        folder = Path(name)
        remote = Remote(folder / "remote.git")
        await asyncio.to_thread(fill, remote.path, files(size, lines))
        async with _etcd(folder) as endpoint, contextlib.AsyncExitStack() as stack:
            store = EtcdStore([endpoint])
            stack.push_async_callback(store.aclose)
            source = GitSource(remote=remote.url, mirror=folder / "mirror.git")
            stack.push_async_callback(source.aclose)
            compiler = Trusting(await stack.enter_async_context(OpaCompiler(_tool("opa"))))
            git, opa, etcd = Watched(source), Watched(compiler), Watched(store)
            reconciler = Reconciler(git, etcd, Judge(git, opa), keyspace=KEYS, limits=Limits())
            lead = await stack.enter_async_context(Election(store, KEYS.leader, "bench", 60).lead())
            yield Engine(
                remote, store, reconciler, lead.fence, endpoint, folder, lines, compiler, git=git, opa=opa, etcd=etcd
            )


def fill(repository: Path, tree: Iterable[tuple[str, bytes]]) -> None:
    """Commit these files as the first commit of ``main``: in one pack, since 100,000 loose objects take minutes."""
    command = ["git", f"--git-dir={repository}", "fast-import", "--quiet"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin as words:
        words.write(b"commit refs/heads/main\ncommitter Alice <alice@example.org> 1699999999 +0000\ndata 4\nseed\n")
        for path, content in tree:
            words.write(b"M 100644 inline %b\ndata %d\n%b\n" % (path.encode(), len(content), content))
    if process.wait(600) != 0:
        raise SystemExit("git fast-import failed")


@contextlib.asynccontextmanager
async def _etcd(folder: Path) -> AsyncIterator[str]:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    words = [str(_tool("etcd")), "--name", "bench", "--data-dir", str(folder / "etcd"), "--log-level", "error"]
    words += ["--listen-client-urls", client, "--advertise-client-urls", client, "--max-request-bytes", "2097152"]
    words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"bench={peer}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
    try:
        store = EtcdStore([client])
        async with asyncio.timeout(30):
            while True:
                try:
                    await store.health()
                    break
                except Exception:  # noqa: BLE001 whatever it is, it is not up yet
                    await asyncio.sleep(0.05)
        await store.aclose()
        yield client
    finally:
        process.terminate()
        process.wait(10)


def _tool(name: str) -> Path:
    found = toolchain.find(name)
    if found is None:
        raise SystemExit(f"no {name}: run `make setup`")
    return found
