"""A server, an agent and an OPA, told of pushes by the webhook."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.peers import world

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))

from fixtures.etcd import EtcdServer, free_port
from fixtures.tokens import AUD, ISS, jwks

from reconciler.agent.opa_config import opa_config

_ROOT = Path(__file__).parent.parent.parent
_SECRET = "a-secret-of-the-benchmark"


@dataclass(frozen=True, slots=True)
class Regops:
    """One of them."""

    opa: str
    port: int
    body: bytes

    async def hook(self, session: aiohttp.ClientSession) -> None:
        signature = hmac.new(_SECRET.encode(), self.body, hashlib.sha256).hexdigest()
        headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"}
        headers["Content-Type"] = "application/json"
        url = f"http://127.0.0.1:{self.port}/hooks/github"
        async with session.post(url, data=self.body, headers=headers) as answer:
            answer.raise_for_status()


@contextlib.asynccontextmanager
async def regops(folder: Path, repository: world.Repository) -> AsyncIterator[Regops]:
    """Until the block ends; nothing needs to be enforced yet."""
    (folder / "jwks.json").write_bytes(jwks("rsa"))
    (folder / "secrets").write_text(_SECRET)
    server, agent, opa = free_port(), free_port(), free_port()
    etcd = EtcdServer(folder / "etcd", flags=("--unsafe-no-fsync=false",))
    environment = {
        "PYTHONPATH": str(_ROOT),
        "REGOPS_ETCD_ENDPOINTS": etcd.endpoint,
        "REGOPS_GIT_REMOTE": repository.url,
        "REGOPS_SERVER_PORT": str(server),
        "REGOPS_SERVER_STATE": str(folder / "server"),
        "REGOPS_AUTH_ISSUER": ISS,
        "REGOPS_AUTH_AUDIENCE": AUD,
        "REGOPS_AUTH_JWKS": str(folder / "jwks.json"),
        "REGOPS_AUTH_OPA": f"http://127.0.0.1:{opa}",
        "REGOPS_HOOKS_SECRETS_FILE": str(folder / "secrets"),
    }
    own = {"REGOPS_AGENT_PORT": str(agent), "REGOPS_AGENT_STATE": str(folder / "agent")}
    config = folder / "opa.yaml"
    config.write_text(opa_config(f"http://127.0.0.1:{agent}"))
    words = [sys.executable, "-m", "benchmarks.peers.hook_only"]
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(etcd.stop)
        etcd.start()
        told = {"REGOPS_ETCD_ENDPOINTS": etcd.endpoint, "PYTHONPATH": str(_ROOT), **own}
        stack.enter_context(world.process([*words, "agent"], folder / "agent.log", told))
        url = await stack.enter_async_context(world.opa(folder, opa, "--config-file", str(config)))
        stack.enter_context(world.process([*words, "server"], folder / "server.log", environment))
        await world.answering(f"http://127.0.0.1:{server}/healthz")
        yield Regops(url, server, repository.hook())
