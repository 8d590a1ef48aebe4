"""OPAL (permitio/opal) as its documentation sets it up for one repository and one OPA, told of pushes by the webhook.

Its packages come from PyPI into an environment of their own below ``.tools/peers``; nothing of regops needs them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.peers import world

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))

from fixtures.etcd import free_port

VERSION = "0.9.9"
_ENVIRONMENT = Path(__file__).parent.parent.parent / ".tools" / "peers" / f"opal-{VERSION}"


class NotInstallableError(Exception):
    """There is no way to its packages from here."""


@dataclass(frozen=True, slots=True)
class Opal:
    """One server and one client."""

    opa: str
    port: int
    body: bytes

    async def hook(self, session: aiohttp.ClientSession) -> None:
        headers = {"X-GitHub-Event": "push", "Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}/webhook"
        async with session.post(url, data=self.body, headers=headers) as answer:
            answer.raise_for_status()


def install() -> Path:
    """The folder of its commands. Raises `NotInstallableError`."""
    done = _ENVIRONMENT / ".installed"
    if not done.exists():
        wanted = [f"opal-server=={VERSION}", f"opal-client=={VERSION}"]
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(_ENVIRONMENT)], check=True, timeout=120)
            pip = [str(_ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted]
            subprocess.run(pip, check=True, timeout=600)
        except (subprocess.SubprocessError, OSError) as error:
            raise NotInstallableError(str(error)) from error
        done.touch()
    return _ENVIRONMENT / "bin"


@contextlib.asynccontextmanager
async def opal(folder: Path, repository: world.Repository) -> AsyncIterator[Opal]:
    """One worker, no broadcaster, no data updates, an OPA of our own: the least that it can do."""
    commands = install()
    server, client, opa = free_port(), free_port(), free_port()
    common = {"OPAL_LOG_LEVEL": "INFO", "OPAL_STATISTICS_ENABLED": "false", "OPAL_ENABLE_DATADOG_APM": "false"}
    common |= {"DD_TRACE_ENABLED": "false", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
    serving = common | {
        "OPAL_SERVER_BIND_PORT": str(server),
        "OPAL_SERVER_WORKER_COUNT": "1",
        "OPAL_POLICY_REPO_URL": repository.url,
        "OPAL_POLICY_REPO_MAIN_BRANCH": "main",
        "OPAL_POLICY_REPO_CLONE_PATH": str(folder / "clones"),
        "OPAL_LEADER_LOCK_FILE_PATH": str(folder / "leader.lock"),
        "OPAL_DATA_CONFIG_SOURCES": '{"config": {"entries": []}}',
    }
    following = common | {
        "OPAL_SERVER_URL": f"http://127.0.0.1:{server}",
        "OPAL_CLIENT_API_SERVER_PORT": str(client),
        "OPAL_CLIENT_API_SERVER_WORKER_COUNT": "1",
        "OPAL_POLICY_STORE_URL": f"http://127.0.0.1:{opa}",
        "OPAL_INLINE_OPA_ENABLED": "false",
        "OPAL_DATA_UPDATER_ENABLED": "false",
    }
    async with world.opa(folder, opa) as url:
        with world.process([str(commands / "opal-server"), "run"], folder / "opal-server.log", serving):
            await world.answering(f"http://127.0.0.1:{server}/healthcheck")
            with world.process([str(commands / "opal-client"), "run"], folder / "opal-client.log", following):
                yield Opal(url, server, repository.hook())
