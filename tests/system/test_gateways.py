"""A real HAProxy and a real Envoy, as `regops shards` configures them, in front of real OPAs that have a shard each."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent.leader import Leader, keyspace_of, rego
from fixtures.etcd import eventually, free_port
from fixtures.opa import OpaServer
from fixtures.questions import ANSWERED, PROJECTS, REFUSED, UNDEFINED, Question, ask

from reconciler.adapters.etcd import EtcdStore
from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.opa_config import opa_config
from reconciler.agent.scope import Scope
from reconciler.core.shards import Shard, shard_of
from regops.gateways import envoy, haproxy
from regops.gateways.backends import Backends

pytestmark = pytest.mark.system

COUNT = 3
ROOT = Path(__file__).parent.parent.parent
HAPROXY = shutil.which("haproxy")
ENVOY = shutil.which("envoy") or next(map(str, ROOT.glob(".tools/envoy-*/envoy/_bin/envoy")), None)
GATEWAYS = [
    pytest.param(
        "haproxy",
        marks=pytest.mark.skipif(HAPROXY is None, reason="no haproxy: `make system-packages` installs it"),
    ),
    pytest.param(
        "envoy", marks=pytest.mark.skipif(ENVOY is None, reason="no envoy: `make system-packages` installs it")
    ),
]


class Site:
    """Shards with two OPAs each, and a gateway in front of them. ``opas[shard - 1]``: the first and its replica."""

    def __init__(self, opas: list[list[OpaServer]], leader: Leader, port: int) -> None:
        self.opas = opas
        self.leader = leader
        self.port = port

    async def ask(self, question: Question, **headers: str) -> tuple[int, object]:
        return await asyncio.to_thread(ask, self.port, question, headers)

    async def value(self, project: str) -> object:
        """``None`` too for what is no decision."""
        with contextlib.suppress(OSError, ValueError):
            _, found = await self.ask(Question(f"/v1/data/projects/{project}/value", project))
            return found.get("result") if isinstance(found, dict) else None
        return None


@pytest.fixture(params=GATEWAYS)
async def site(request: pytest.FixtureRequest, tmp_path: Path, store: EtcdStore, prefix: str) -> AsyncIterator[Site]:
    leader = Leader(store, keyspace_of(prefix))
    contents: dict[str, Any] = {f"projects__{project}": rego(f"projects/{project}", project) for project in PROJECTS}
    await leader.apply(platform=rego("platform", "all"), **contents)
    async with contextlib.AsyncExitStack() as stack:
        opas = [
            [await _opa(stack, leader, store, tmp_path / f"{index}-{side}", Shard(index, COUNT)) for side in "ab"]
            for index in range(1, COUNT + 1)
        ]
        backends = Backends.of({i: [f"127.0.0.1:{opa.port}" for opa in shard] for i, shard in enumerate(opas, start=1)})
        port = free_port()
        start: Callable[[Path, str], list[str]] = {"haproxy": _haproxy, "envoy": _envoy}[request.param]
        make = {"haproxy": haproxy, "envoy": envoy}[request.param].configuration
        words = start(tmp_path / "gateway", make(backends, f"127.0.0.1:{port}"))
        process = stack.enter_context(_running(words, tmp_path / "log"))
        site = Site(opas, leader, port)
        for opa in (opa for shard in opas for opa in shard):
            await eventually(opa.healthy, 20)

        async def answers() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            return [await site.value(project) for project in PROJECTS] == list(PROJECTS)

        await eventually(answers, 20)
        yield site


async def _opa(
    stack: contextlib.AsyncExitStack, leader: Leader, store: EtcdStore, folder: Path, shard: Shard
) -> OpaServer:
    config = AgentConfig(datacentre="east", id=folder.name, state_dir=folder / "state", scope=Scope.of_shard(shard))
    agent = await stack.enter_async_context(Agent(store, config, keyspace=leader.keys).running())
    opa = OpaServer(folder, opa_config(agent.url))
    await opa.start()
    stack.push_async_callback(opa.stop)
    return opa


@contextlib.contextmanager
def _running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def _haproxy(folder: Path, text: str) -> list[str]:
    file = folder.with_suffix(".cfg")
    file.write_text(text)
    checked = subprocess.run([str(HAPROXY), "-c", "-f", file], capture_output=True, text=True, check=False)
    assert (checked.returncode, "warning" in checked.stderr.lower()) == (0, False), checked.stderr
    return [str(HAPROXY), "-db", "-f", str(file)]


def _envoy(folder: Path, text: str) -> list[str]:
    file = folder.with_suffix(".yaml")
    file.write_text(text)
    words = [str(ENVOY), "--config-path", str(file), "--log-level", "warn", "--concurrency", "1"]
    words += ["--use-dynamic-base-id"]
    checked = subprocess.run([*words, "--mode", "validate"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return words


async def test_every_question_reaches_its_own_shard_and_no_other(site: Site) -> None:
    """Also one in percent-encoding, and a project that has come since: the gateway is told nothing of it."""
    for question in ANSWERED:
        assert await site.ask(question) == (200, {"result": question.project or "all"}), question
    for question in UNDEFINED:
        assert await site.ask(question) == (200, {}), question
    for question in REFUSED:
        status, body = await site.ask(question)
        assert (status, "result" in str(body)) == (question.status, False), question
    for shard in range(1, COUNT + 1):
        forged = {"x-regops-shard": f"shard_{shard}"}
        assert await site.ask(ANSWERED[0], **forged) == (200, {"result": "a"}), "a caller names no shard"
    await site.leader.apply(projects__unknown=rego("projects/unknown", "known"))

    async def known() -> bool:
        return await site.value("unknown") == "known"

    await eventually(known, 20)
    owner = shard_of("unknown", COUNT)
    for index, (first, _) in enumerate(site.opas, start=1):
        assert await first.query("projects/unknown/value") == ("known" if index == owner else None)


async def test_a_stopped_opa_is_stood_in_for_and_no_question_goes_without_an_answer(site: Site) -> None:
    """From the moment it dies: the gateway tries its replica at once, before it has looked at anybody's health."""
    project = "a"
    first, replica = site.opas[shard_of(project, COUNT) - 1]
    for _ in range(3):
        await first.kill()
        assert [await site.value(project) for _ in range(50)] == [project] * 50
        assert await site.value("p0") == "p0", "the others go on"
        await first.start()
        await eventually(first.healthy, 20)
    await replica.kill()

    async def back() -> bool:
        return await site.value(project) == project

    await eventually(back, 20)
    await first.kill()
    assert await site.value(project) is None, "with nobody left there is no answer, and none of another shard"
    assert await site.value("p0") == "p0"
