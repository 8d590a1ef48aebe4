"""What a gateway in front of shards adds to a question: HAProxy and Envoy as `regops shards` configures them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fixtures.etcd import free_port

from benchmarks.policies import DATA, rego
from benchmarks.report import Cell, Table, percentile
from regops import toolchain
from regops.gateways import envoy, haproxy
from regops.gateways.backends import Backends

ROOT = Path(__file__).parent.parent
PROJECTS = 100


async def gateways(counts: tuple[int, ...], requests: int) -> Table:
    """One question after the other on one connection, to OPA itself and through each gateway. One OPA answers for all
    shards, so that only the gateway differs."""
    rows = await asyncio.to_thread(_measured, counts, requests)
    return Table(
        "gateways",
        "A question to OPA, and through a gateway in front of shards, ms",
        ("asked", "shards", "questions", "p50", "p95", "p50 above OPA"),
        rows,
        "HAProxy computes a hash for each shard and question, Envoy's script once for each project and worker.",
    )


def _measured(counts: tuple[int, ...], requests: int) -> list[list[Cell]]:
    with tempfile.TemporaryDirectory(prefix="regops-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        opa = stack.enter_context(_opa(folder))
        direct = _times(opa, requests)
        rows = [_row("OPA itself", 0, direct, direct)]
        for count in counts:
            backends = Backends.of({index: [f"127.0.0.1:{opa}"] for index in range(1, count + 1)})
            for gateway in ("HAProxy", "Envoy"):
                port = free_port()
                with _gateway(gateway, folder, backends, port) as found:
                    if found:
                        rows.append(_row(gateway, count, _times(port, requests), direct))
        return rows


def _row(name: str, count: int, times: list[float], direct: list[float]) -> list[Cell]:
    above = percentile(times, 50) - percentile(direct, 50)
    figures = [round(each * 1000, 2) for each in (percentile(times, 50), percentile(times, 95), above)]
    return [name, count or "-", len(times), *(f"{each:.2f}" for each in figures)]


def _times(port: int, requests: int) -> list[float]:
    """The first questions warm everything up."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    times = []
    try:
        for number in range(requests + PROJECTS):
            began = time.perf_counter()
            connection.request("GET", f"/v1/data/projects/p{number % PROJECTS}/authz/mark")
            answer = connection.getresponse()
            if answer.read() != b'{"result":1}\n':
                raise SystemExit(f"port {port} answers {answer.status}")
            times.append(time.perf_counter() - began)
    finally:
        connection.close()
    return times[PROJECTS:]


@contextlib.contextmanager
def _opa(folder: Path) -> Iterator[int]:
    for project in (f"p{number}" for number in range(PROJECTS)):
        place = folder / "policies" / "projects" / project
        place.mkdir(parents=True)
        (place / "rego.rego").write_text(rego(project, 1))
        (place / "data.json").write_text(DATA)
    binary, port = toolchain.find("opa"), free_port()
    if binary is None:
        raise SystemExit("no opa: run `make setup`")
    words = [str(binary), "run", "--server", "--addr", f"127.0.0.1:{port}", "--skip-version-check"]
    with _process([*words, "--log-level", "error", "-b", str(folder / "policies")], port):
        yield port


@contextlib.contextmanager
def _gateway(name: str, folder: Path, backends: Backends, port: int) -> Iterator[bool]:
    """Whether it is installed, and runs as long as the block does."""
    listen = f"127.0.0.1:{port}"
    if name == "HAProxy":
        binary, text, words = shutil.which("haproxy"), haproxy.configuration(backends, listen), ["-db", "-f"]
    else:
        own = next(map(str, ROOT.glob(".tools/envoy-*/envoy/_bin/envoy")), None)
        binary, text = shutil.which("envoy") or own, envoy.configuration(backends, listen)
        words = ["--use-dynamic-base-id", "--log-level", "error", "--config-path"]
    if binary is None:
        print(f"bench: no {name}: `make system-packages` installs it")
        yield False
        return
    file = folder / f"{name}-{backends.count}.yaml"
    file.write_text(text)
    with _process([binary, *words, str(file)], port):
        yield True


@contextlib.contextmanager
def _process(words: list[str], port: int) -> Iterator[None]:
    """Once it answers for the first project."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{words[0]} does not answer")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        for number in range(PROJECTS):
            connection.request("GET", f"/v1/data/projects/p{number}/authz/mark")
            if connection.getresponse().read() != b'{"result":1}\n':
                return False
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True
