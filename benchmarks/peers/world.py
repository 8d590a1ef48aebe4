"""What both sides of a comparison need: a bare repository, a clone that pushes to it, an OPA, processes that end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from benchmarks.floor import marked
from regops import toolchain

RULES = 5
START_SECONDS = 600.0
"""OPAL loads its policies one by one, and OPA compiles all of them for each."""


class Peer(Protocol):
    """One side. `hook` tells it of a push, as a Git host does."""

    @property
    def opa(self) -> str:
        """The OPA that it keeps up to date."""
        ...

    async def hook(self, session: aiohttp.ClientSession) -> None: ...


def policy(project: str, mark: int) -> str:
    """Five rules; ``mark`` tells which version decided."""
    rules = "".join(
        f'\nallow if {{\n\tinput.role == "role{number}"\n\tstartswith(input.path, "/{number}")\n}}\n'
        for number in range(RULES - 2)
    )
    return f'package projects["{project}"].authz\n\nmark := {mark}\n\ndefault allow := false\n{rules}'


def tree(count: int) -> dict[str, str]:
    """Only Rego files, so that nothing lies at different places in the two systems."""
    return {f"policies/projects/p{number}/rego.rego": policy(f"p{number}", 0) for number in range(count)}


@dataclass(frozen=True, slots=True)
class Repository:
    """A bare repository and a clone of it."""

    bare: Path
    clone: Path

    @classmethod
    def make(cls, folder: Path, files: Mapping[str, str]) -> Repository:
        made = cls(folder / "policies.git", folder / "clone")
        _git(folder, "init", "-q", "--bare", "-b", "main", str(made.bare))
        _git(folder, "clone", "-q", made.url, str(made.clone))
        _git(made.clone, "checkout", "-q", "-B", "main")
        made.commit(files)
        made.push()
        return made

    @property
    def url(self) -> str:
        return f"file://{self.bare}"

    def commit(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            file = self.clone / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        _git(self.clone, "add", "-A")
        _git(self.clone, "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-q", "-m", "change")

    def push(self) -> None:
        _git(self.clone, "push", "-q", "origin", "main")

    def hook(self) -> bytes:
        """A push as GitHub posts it."""
        told = {"clone_url": self.url, "full_name": "b/policies"}
        return json.dumps({"ref": "refs/heads/main", "repository": told}).encode()


def _git(folder: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


async def timed(peer: Peer, repository: Repository, session: aiohttp.ClientSession, mark: int) -> float:
    """Seconds from the end of ``git push`` to a decision by the new rule."""
    await asyncio.to_thread(repository.commit, {"policies/projects/p0/rego.rego": policy("p0", mark)})
    await asyncio.to_thread(repository.push)
    began = time.perf_counter()
    told = asyncio.ensure_future(peer.hook(session))
    await marked(session, peer.opa, "p0", mark)
    took = time.perf_counter() - began
    await told
    return took


@contextlib.contextmanager
def process(words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Runs while the block does."""
    with log.open("ab") as out:
        started = subprocess.Popen(
            words, stdout=out, stderr=out, env={**os.environ, **(environment or {})}, cwd=log.parent
        )
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.asynccontextmanager
async def opa(folder: Path, port: int, *more: str) -> AsyncIterator[str]:
    """An OPA, the same one for both; its URL."""
    found = toolchain.find("opa")
    if found is None:
        raise SystemExit("no opa: run `make setup`")
    words = [str(found), "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level", "error", *more]
    url = f"http://127.0.0.1:{port}"
    with process([*words, "--skip-version-check"], folder / "opa.log"):
        await answering(f"{url}/health")
        yield url


async def answering(url: str) -> None:
    """Returns once it says 200."""

    def asked() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return int(answer.status) == 200
        except OSError:
            return False

    async with asyncio.timeout(60):
        while not await asyncio.to_thread(asked):
            await asyncio.sleep(0.05)
