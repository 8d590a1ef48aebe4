"""Servers and agents as processes of their own, on a real etcd and Git, with no OPA beside them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from benchmarks.api_world import running
from benchmarks.policies import tree

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures.etcd import EtcdServer, free_port
from fixtures.git import Remote
from fixtures.tokens import AUD, ISS, jwks

_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Site:
    """An etcd and a repository of ``size`` policies beside the platform's; what processes are told about them."""

    folder: Path
    etcd: EtcdServer
    remote: Remote
    size: int

    @contextlib.contextmanager
    def server(self) -> Iterator[Running]:
        """A server, in the same state folder each time, up to its first line."""
        port = free_port()
        (self.folder / "jwks.json").write_bytes(jwks("rsa"))
        environment = {
            "REGOPS_GIT_REMOTE": self.remote.url,
            "REGOPS_SERVER_PORT": str(port),
            "REGOPS_SERVER_STATE": str(self.folder / "server"),
            "REGOPS_AUTH_ISSUER": ISS,
            "REGOPS_AUTH_AUDIENCE": AUD,
            "REGOPS_AUTH_JWKS": str(self.folder / "jwks.json"),
            "REGOPS_AUDIT_FILE": str(self.folder / "audit.log"),
        }
        with self._running("server", environment) as process:
            yield Running(process, port)

    @contextlib.contextmanager
    def agent(self, name: str, projects: str = "") -> Iterator[Running]:
        """An agent, in the same state folder each time that ``name`` is the same."""
        port = free_port()
        environment = {
            "REGOPS_AGENT_ID": name,
            "REGOPS_AGENT_PORT": str(port),
            "REGOPS_AGENT_STATE": str(self.folder / name),
            "REGOPS_AGENT_PROJECTS": projects,
        }
        with self._running("agent", environment) as process:
            yield Running(process, port)

    @contextlib.contextmanager
    def _running(self, role: str, environment: dict[str, str]) -> Iterator[Popen[bytes]]:
        told = {"REGOPS_ETCD_ENDPOINTS": self.etcd.endpoint, **{key: said for key, said in environment.items() if said}}
        with running(role, self.folder, {**os.environ, **told}) as process:
            yield process


@dataclass(frozen=True, slots=True)
class Running:
    """One of them."""

    process: Popen[bytes]
    port: int

    def until_ready(self) -> dict[str, object]:
        """What ``/readyz`` says once it says 200."""
        return dict(json.loads(self.until("/readyz", lambda status, _body: status == 200)))

    def until(self, path: str, holds: Callable[[int, bytes], bool]) -> bytes:
        """The body as soon as the answer is the one that is waited for."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                    status, body = int(answer.status), bytes(answer.read())
            except urllib.error.HTTPError as error:
                status, body = error.code, error.read()
            except OSError:
                status, body = 0, b""
            if holds(status, body):
                return body
            if self.process.poll() is not None:
                raise SystemExit(f"it ended with {self.process.returncode}")
            time.sleep(0.005)
        raise SystemExit(f"{path} was not as it should be after {_PATIENCE:.0f} s")

    def processor(self) -> float:
        """Seconds of processor that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[float, float]:
        """Resident and peak, MB."""
        pid = self.process.pid
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        return round(resident / 1e6, 1), round(peak / 1e6, 1)


@contextlib.contextmanager
def site(folder: Path, size: int) -> Iterator[Site]:
    """Until the block ends; nothing is applied yet."""
    remote = Remote(folder / "remote.git")
    remote.commit({name: text.encode() for name, text in tree(size).items()})
    etcd = EtcdServer(folder / "etcd", flags=("--unsafe-no-fsync=false",))
    etcd.start()
    try:
        yield Site(folder, etcd, remote, size)
    finally:
        etcd.stop()
