"""The engine in this process, on a real etcd, Git and OPA: a repository of any size, and passes to measure."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fixtures.etcd import free_port
from fixtures.git import Remote

from benchmarks.policies import rego, tree
from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.adapters.git import GitSource
from reconciler.adapters.opa import OpaCompiler
from reconciler.core.guards import Limits
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Fence
from reconciler.reconcile import PassResult, Reconciler
from reconciler.validation import Judge
from regops import toolchain

KEYS = Keyspace()


@dataclass(frozen=True, slots=True)
class Engine:
    """What a leader has."""

    remote: Remote
    store: EtcdStore
    reconciler: Reconciler
    fence: Fence
    endpoint: str
    folder: Path

    async def run(self) -> PassResult:
        """One pass."""
        return await self.reconciler.run(self.fence)

    def change(self, mark: int) -> None:
        """Commit a new version of one policy."""
        self.remote.commit({"policies/projects/p0/rego.rego": rego("p0", mark).encode()})


def files(size: int) -> Mapping[str, bytes]:
    """The repository's files: ``size`` policies in all, the platform's among them."""
    return {name: text.encode() for name, text in tree(size - 1).items()}


@contextlib.asynccontextmanager
async def engine(size: int) -> AsyncIterator[Engine]:
    """An empty etcd (with fsync, as in production) and a repository of ``size`` policies; nothing is applied yet."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as name:
        folder = Path(name)
        remote = Remote(folder / "remote.git")
        remote.commit(files(size))
        async with _etcd(folder) as endpoint, contextlib.AsyncExitStack() as stack:
            store = EtcdStore([endpoint])
            stack.push_async_callback(store.aclose)
            source = GitSource(remote=remote.url, mirror=folder / "mirror.git")
            stack.push_async_callback(source.aclose)
            compiler = await stack.enter_async_context(OpaCompiler(_tool("opa")))
            reconciler = Reconciler(source, store, Judge(source, compiler), keyspace=KEYS, limits=Limits())
            lead = await stack.enter_async_context(Election(store, KEYS.leader, "bench", 60).lead())
            yield Engine(remote, store, reconciler, lead.fence, endpoint, folder)


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
