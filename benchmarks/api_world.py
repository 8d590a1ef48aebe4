"""One replica as in production: server, agent, OPA and etcd in processes of their own, on a bare Git repository."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.api_client import Address, header, once, request, status

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fixtures.etcd import EtcdServer, eventually, free_port
from fixtures.git import Remote
from fixtures.opa import OpaServer
from fixtures.tokens import AUD, ISS, TENANT, jwks, token

from reconciler.agent.opa_config import opa_config

_LIFE = 6 * 3600


@dataclass(frozen=True)
class World:
    """Addresses; ``opa`` is the OPA that authorizes and that enforces."""

    folder: Path
    remote: Remote
    api: Address
    opa: str
    etcd: str
    server: subprocess.Popen[bytes]

    def token(self, sub: str = "root") -> str:
        """Of a platform admin, so that the platform's own policy is asked for each project's policy."""
        return token(roles=["platform_admin"], project=..., sub=sub, exp=int(time.time()) + _LIFE)

    def member(self, project: str) -> str:
        """Of one who reads this project, and has no role."""
        return token(roles=[], project=project, sub=f"of-{project}", exp=int(time.time()) + _LIFE)

    def get(self, project: str) -> bytes:
        answer = once(self.api, request("GET", f"/policies/{project}", self.token()))
        if status(answer) != 200:
            raise SystemExit(repr(answer[:600]))
        return answer

    def etag(self, project: str) -> str:
        """Of the branch's head, which is ahead of what is live."""
        return header(self.get(f"{project}?ref=head"), "ETag")

    def cpu(self) -> float:
        """Seconds of processor that the server has used."""
        fields = Path(f"/proc/{self.server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def open_world(folder: Path, files: dict[str, str], *, projects: str = "") -> AsyncIterator[World]:
    """Until the block ends; ready when the first commit is enforced. ``projects``: those that the OPA answers for."""
    remote = Remote(folder / "remote.git")
    head = remote.commit({name: text.encode() for name, text in files.items()})
    (folder / "jwks.json").write_bytes(jwks("rsa"))
    etcd = EtcdServer(folder / "etcd", flags=("--unsafe-no-fsync=false",))
    ports = free_port(), free_port()
    opa = OpaServer(folder / "opa", opa_config(f"http://127.0.0.1:{ports[1]}"))
    common = {**os.environ, "REGOPS_ETCD_ENDPOINTS": etcd.endpoint}
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(etcd.stop)
        await asyncio.to_thread(etcd.start)
        agent = {"REGOPS_AGENT_PORT": str(ports[1]), "REGOPS_AGENT_STATE": str(folder / "agent")}
        agent |= {"REGOPS_AGENT_PROJECTS": projects} if projects else {}
        stack.enter_context(running("agent", folder, common | agent))
        stack.push_async_callback(opa.stop)
        await opa.start()
        server = stack.enter_context(running("server", folder, common | _settings(folder, remote, opa, ports[0])))
        world = World(folder, remote, ("127.0.0.1", ports[0]), opa.url, etcd.endpoint, server)

        async def enforced() -> bool:
            return await opa.revision() == head

        await eventually(enforced, 300)
        yield world


def _settings(folder: Path, remote: Remote, opa: OpaServer, port: int) -> dict[str, str]:
    return {
        "REGOPS_GIT_REMOTE": remote.url,
        "REGOPS_SERVER_PORT": str(port),
        "REGOPS_SERVER_STATE": str(folder / "server"),
        "REGOPS_AUTH_ISSUER": ISS,
        "REGOPS_AUTH_AUDIENCE": AUD,
        "REGOPS_AUTH_TENANT": TENANT,
        "REGOPS_AUTH_JWKS": str(folder / "jwks.json"),
        "REGOPS_AUTH_OPA": opa.url,
        "REGOPS_AUDIT_FILE": str(folder / "audit.log"),
        # One writer of the benchmark stands for a busy caller.
        "REGOPS_API_WRITES_PER_SECOND": "100000",
        "REGOPS_API_BURST": "100000",
    }


@contextlib.contextmanager
def running(role: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "regops", role]
    with (folder / f"{role}.log").open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(15)
