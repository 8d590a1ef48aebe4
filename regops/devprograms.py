"""The processes of a `regops dev`: what each is started with, and how it is known to answer."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from reconciler.agent.opa_config import opa_config
from reconciler.core.shards import Shard
from regops.devstate import PAGE_TICKETS, WEBHOOK_SECRET
from regops.issuer import server_environment
from regops.supervise import Program


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    state: Path
    remote: str | None
    branch: str
    path: str
    opas: int
    shards: int | None
    auto_ports: bool
    reset: bool
    ready_file: Path | None
    once: bool


@dataclass(frozen=True, slots=True)
class Programs:
    """The command line, environment and sign of life of each process."""

    folder: Path
    ports: dict[str, int]
    urls: dict[str, str]
    session: aiohttp.ClientSession
    tools: dict[str, Path]
    remote: str
    jwks_url: str
    options: Options

    def etcd(self) -> Program:
        """A cluster of one, with quick elections."""
        peer = self.urls["etcd-peer"]
        words = [str(self.tools["etcd"]), "--name", "dev", "--data-dir", str(self.folder / "etcd")]
        words += ["--listen-client-urls", self.urls["etcd"], "--advertise-client-urls", self.urls["etcd"]]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"dev={peer}"]
        words += ["--max-request-bytes", "2097152", "--quota-backend-bytes", str(2 * 1024**3), "--log-level", "warn"]
        words += ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"]
        words += ["--heartbeat-interval", "50", "--election-timeout", "250"]
        return Program("etcd", words, self._log("etcd"), self._http(f"{self.urls['etcd']}/readyz"))

    def mongo(self) -> Program:
        """SecantusDB, for the record."""
        settings = self.folder / "mongo.toml"
        settings.touch()
        words = [sys.executable, "-m", "secantus", "--config", str(settings), "--host", "127.0.0.1"]
        words += ["--port", str(self.ports["mongo"]), "--storage-path", str(self.folder / "mongo")]
        words += ["--log-level", "WARNING", "--cache-size", "64M", "--sync-on-commit"]
        return Program("mongo", words, self._log("mongo"), self._tcp(self.ports["mongo"]))

    def server(self) -> Program:
        """API and reconciler, with the settings that `regops dev` is for."""
        environment = {
            "REGOPS_ETCD_ENDPOINTS": self.urls["etcd"],
            # Through the router, so that a decision can be tried on the page whose shard ever has it.
            **server_environment(self.jwks_url, self.urls.get("router", self.urls["opa-0"])),
            "REGOPS_GIT_REMOTE": self.remote,
            "REGOPS_GIT_BRANCH": self.options.branch,
            "REGOPS_GIT_PATH": self.options.path,
            "REGOPS_GIT_POLL_INTERVAL": "1",
            "REGOPS_GIT_HOOKED_POLL_INTERVAL": "1",
            "REGOPS_HOOKS_SECRETS_FILE": str(self.folder / WEBHOOK_SECRET),
            "REGOPS_PAGE_TICKETS_FILE": str(self.folder / PAGE_TICKETS),
            "REGOPS_SERVER_PORT": str(self.ports["api"]),
            "REGOPS_SERVER_STATE": str(self.folder / "server"),
            "REGOPS_SERVER_ID": "server",
            "REGOPS_OPA_BINARY": str(self.tools["opa"]),
            "REGOPS_MONGO_URI": f"mongodb://127.0.0.1:{self.ports['mongo']}",
        }
        words = [sys.executable, "-m", "regops", "server"]
        return Program("server", words, self._log("server"), self._http(f"{self.urls['api']}/readyz"), environment)

    def agent(self, index: int) -> Program:
        """The agent of OPA ``index``, counted from 0; with shards it has shard ``index`` + 1."""
        name = f"agent-{index}"
        environment = {
            "REGOPS_ETCD_ENDPOINTS": self.urls["etcd"],
            "REGOPS_AGENT_PORT": str(self.ports[name]),
            "REGOPS_AGENT_ID": name,
            "REGOPS_AGENT_STATE": str(self.folder / name),
            "REGOPS_AGENT_OPA": self.urls[f"opa-{index}"],
        }
        if self.options.shards is not None:
            environment["REGOPS_AGENT_SHARD"] = str(Shard(index + 1, self.options.shards))
        words = [sys.executable, "-m", "regops", "agent"]
        return Program(name, words, self._log(name), self._http(f"{self.urls[name]}/readyz"), environment)

    def opa(self, index: int) -> Program:
        """OPA ``index``; it answers once it has activated a bundle."""
        name = f"opa-{index}"
        config = self.folder / f"{name}.yaml"
        config.write_text(opa_config(self.urls[f"agent-{index}"]), encoding="utf-8")
        words = [str(self.tools["opa"]), "run", "--server", "--addr", f"127.0.0.1:{self.ports[name]}"]
        words += ["--config-file", str(config), "--skip-version-check", "--shutdown-grace-period", "1"]
        words += ["--log-level", "error"]
        return Program(name, words, self._log(name), self._http(f"{self.urls[name]}/health?bundles"))

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _http(self, url: str) -> Callable[[], Awaitable[bool]]:
        async def answers() -> bool:
            try:
                async with self.session.get(url) as answer:
                    return answer.status == 200  # noqa: PLR2004 OK
            except (aiohttp.ClientError, TimeoutError):
                return False

        return answers

    def _tcp(self, port: int) -> Callable[[], Awaitable[bool]]:
        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return True

        return answers
