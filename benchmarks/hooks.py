"""How long a Git host waits for the answer to its webhook, from an idle server and from one amid large passes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.api_client import Address, header, once, request, status
from benchmarks.api_world import running
from benchmarks.hooks_sender import EVERY
from benchmarks.policies import rego, tree
from benchmarks.report import Cell, Table, ms, percentile

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures.etcd import EtcdServer, eventually, free_port
from fixtures.git import Remote
from fixtures.tokens import AUD, ISS, TENANT, jwks

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Range
from reconciler.core.records import Applied

PLATFORM = "policies/platform/rego.rego"
_SECRET = "a-secret-of-the-benchmark"
_KEYS = Keyspace()
_PATIENCE = 300.0
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class _World:
    """A server that leads, the repository that it follows, and the hook that the repository's host sends."""

    remote: Remote
    store: EtcdStore
    api: Address
    hook: Path

    async def applied(self, commit: str) -> None:
        """Returns once that commit is applied."""

        async def now() -> bool:
            found = (await self.store.read(Range(_KEYS.applied))).ranges[0]
            return bool(found) and Applied.decode(found[0].value).commit == commit

        await eventually(now, _PATIENCE)

    async def follows(self, files: Mapping[str, bytes]) -> None:
        """Commits them, and returns once that is applied."""
        await self.applied(await asyncio.to_thread(self.remote.commit, files))


async def hooks(policies: int, seconds: float) -> Table:
    """``seconds`` of each state that does not end by itself."""
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as folder:
        async with _world(Path(folder)) as world:
            rows = await _rows(world, policies, seconds)
    return Table(
        "hooks",
        f"A webhook sent and answered, ms; {1 / EVERY:.0f} in a second",
        ("server", "hooks", "p50", "p95", "max", "bare p50", "bare p95", "bare max"),
        rows,
        "Every hook is a signed push to the followed branch. Goal: p95 below 10 ms whatever the server does. "
        "Bare: an aiohttp handler in a process of its own, asked at the same times on the same machine.",
    )


async def _rows(world: _World, policies: int, seconds: float) -> list[list[Cell]]:
    answer = await asyncio.to_thread(once, world.api, world.hook.read_bytes())
    if status(answer) != 202 or b"looking" not in answer:
        raise SystemExit(repr(answer[:600]))
    files = {name: text.encode() for name, text in tree(policies - 1).items()}
    marks = itertools.count(1)

    async def waited() -> None:
        await asyncio.sleep(seconds)

    async def filled() -> None:
        await world.follows(files)

    async def repeated(change: Callable[[int], Mapping[str, bytes]]) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await world.follows(change(next(marks)))

    def one(mark: int) -> Mapping[str, bytes]:
        return {"policies/projects/p0/rego.rego": rego("p0", mark).encode()}

    def platform(mark: int) -> Mapping[str, bytes]:
        return {PLATFORM: files[PLATFORM] + f"\n# {mark}\n".encode()}

    with _bare(answer) as bare:
        return [
            await _row(name, (world.api, bare), world.hook, until)
            for name, until in (
                ("idle", waited),
                (f"a pass validates and applies {policies:,} policies", filled),
                (f"passes with one change among {policies:,} policies", lambda: repeated(one)),
                (f"passes that change the platform of {policies:,} policies", lambda: repeated(platform)),
            )
        ]


async def _row(
    name: str, addresses: tuple[Address, Address], hook: Path, until: Callable[[], Awaitable[None]]
) -> list[Cell]:
    senders = [await _sender(address, hook) for address in addresses]
    try:
        await until()
    finally:
        found = [json.loads((await sender.communicate(b""))[0]) for sender in senders]
    ours, bare = found
    return [name, len(ours), *_figures(ours), *_figures(bare)]


async def _sender(address: Address, hook: Path) -> asyncio.subprocess.Process:
    words = [sys.executable, "-m", "benchmarks.hooks_sender", str(address[1]), str(hook)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, cwd=_ROOT)


def _figures(seconds: list[float]) -> list[Cell]:
    return [*(ms(percentile(seconds, percent)) for percent in (50, 95)), ms(max(seconds))]


@contextlib.asynccontextmanager
async def _world(folder: Path) -> AsyncIterator[_World]:
    remote = Remote(folder / "remote.git")
    head = remote.commit({name: text.encode() for name, text in tree(9).items()})
    (folder / "jwks.json").write_bytes(jwks("rsa"))
    (folder / "secrets").write_text(_SECRET)
    etcd = EtcdServer(folder / "etcd", flags=("--unsafe-no-fsync=false",))
    port = free_port()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(etcd.stop)
        await asyncio.to_thread(etcd.start)
        environment = {
            **os.environ,
            "REGOPS_ETCD_ENDPOINTS": etcd.endpoint,
            "REGOPS_GIT_REMOTE": remote.url,
            "REGOPS_SERVER_PORT": str(port),
            "REGOPS_SERVER_STATE": str(folder / "server"),
            "REGOPS_AUTH_ISSUER": ISS,
            "REGOPS_AUTH_AUDIENCE": AUD,
            "REGOPS_AUTH_TENANT": TENANT,
            "REGOPS_AUTH_JWKS": str(folder / "jwks.json"),
            "REGOPS_HOOKS_SECRETS_FILE": str(folder / "secrets"),
        }
        stack.enter_context(running("server", folder, environment))
        store = EtcdStore([etcd.endpoint])
        stack.push_async_callback(store.aclose)
        world = _World(remote, store, ("127.0.0.1", port), folder / "hook")
        world.hook.write_bytes(_hook(remote))
        await world.applied(head)
        yield world


def _hook(remote: Remote) -> bytes:
    body = json.dumps({"ref": "refs/heads/main", "repository": {"clone_url": remote.url}}).encode()
    signature = hmac.new(_SECRET.encode(), body, hashlib.sha256).hexdigest()
    return request(
        "POST", "/hooks/github", "none", body, X_GitHub_Event="push", X_Hub_Signature_256=f"sha256={signature}"
    )


@contextlib.contextmanager
def _bare(answer: bytes) -> Iterator[Address]:
    """A handler that reads the body and answers with the same bytes, in a process of its own."""
    header(answer, "Content-Length")
    words = [sys.executable, "-m", "benchmarks.hooks_bare"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
    try:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("unreachable: it has pipes")
        process.stdin.write(answer.partition(b"\r\n\r\n")[2])
        process.stdin.close()
        yield "127.0.0.1", int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
