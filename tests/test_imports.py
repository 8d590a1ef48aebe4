"""What a process carries: there is an agent beside every OPA, and a person waits for every command."""

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.etcd import EtcdServer

SERVERS_ONLY = (
    "api",
    "cryptography",
    "git",
    "jinja2",
    "jwt",
    "opentelemetry",
    "pygit2",
    "pymongo",
    "reconciler.loop",
    "reconciler.recorder",
    "reconciler.validation",
    "reconciler.writer",
    "regops.serving",
    "watchdog",
    "yaml",
)
SLOW = (*SERVERS_ONLY, "aiohttp", "asyncio", "grpc", "prometheus_client", "pydantic")


def loaded(script: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}\nprint(*sys.modules, sep='\\n', file=sys.stderr)"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(done.stderr.split())


def test_an_agent_carries_nothing_that_only_a_server_needs(etcd_server: EtcdServer, tmp_path: Path) -> None:
    """It had Git's, MongoDB's and the API's libraries in memory, 100 MB beside each OPA."""
    served = f"""
import asyncio
from reconciler.settings import Settings
from regops.agent_side import serve_agent
from regops.commands import run

own = {{"port": 0, "state": {str(tmp_path)!r}}}
agent = serve_agent(Settings.model_validate({{"agent": own, "etcd": {{"endpoints": [{etcd_server.endpoint!r}]}}}}))

async def a_while():
    task = asyncio.ensure_future(agent)
    await asyncio.wait([task], timeout=1)
    task.cancel()

asyncio.run(a_while())
"""
    found = loaded(served)
    assert found & set(SERVERS_ONLY) == set()
    assert {"grpc", "reconciler.agent.mirror"} <= found


@pytest.mark.parametrize("words", [["--help"], ["version"], ["--version"]])
def test_help_and_version_import_nothing_slow(words: list[str]) -> None:
    """`regops --help` took 1.3 s: it imported every adapter to list the commands."""
    asked = f"from regops.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
    assert loaded(asked) & set(SLOW) == set()


@pytest.mark.parametrize("command", ["status", "fleet", "history", "sync", "passes", "audit", "suspend"])
def test_a_command_that_asks_a_server_imports_no_client_before_it_asks(command: str) -> None:
    asked = f"from regops.cli import main\ntry:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass"
    assert loaded(asked) & {*SERVERS_ONLY, "grpc", "aiohttp"} - {"yaml"} == set()
