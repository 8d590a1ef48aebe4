"""One trace from a write over the API, or from a webhook, to the OPA that enforces it; across real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.collector import Collector, Spanned
from fixtures.dev import Dev, git, until
from fixtures.etcd import EtcdServer, eventually, free_port
from fixtures.host import Host
from fixtures.opa import OpaServer
from fixtures.replicas import World, open_world, rego
from fixtures.servers import ServerProcess, environment, inherited, server

from reconciler.agent.opa_config import opa_config
from reconciler.settings import AgentSettings, GitSettings, HooksSettings, Settings, TracingSettings

PASS = {"regops.pass", "regops.fetch", "regops.validate", "regops.apply", "etcd.txn"}
AGENT = {"regops.agent.read", "regops.agent.serve", "opa.activate"}
PUT = "PUT /policies/{project}"
SECONDS = 40.0
SECRET = "s" * 32


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Dev]:
    environment = {"REGOPS_TRACING_ENDPOINT": collector.url, "REGOPS_TRACING_TIMEOUT": "30"}
    with Dev(tmp_path_factory.mktemp("traced"), environment=environment) as running:
        until(lambda: running.get("/status")["health"]["status"] == "Healthy", SECONDS)
        yield running


def send(dev: Dev, method: str, path: str, body: Any, **headers: str) -> Any:
    """One write; again under the same key while the server cannot say what became of it, as a client should."""
    request = urllib.request.Request(f"{dev.ready()['api']}{path}", json.dumps(body).encode(), method=method)
    request.add_header("Content-Type", "application/json")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.headers
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > deadline:
                raise


def arrived(collector: Collector, trace: str, names: set[str]) -> dict[str, list[Spanned]]:
    """The spans of a trace, as soon as these are there: each process sends its own every half a second."""

    def there() -> dict[str, list[Spanned]] | None:
        found = collector.of(trace)
        return found if found.keys() >= names else None

    found: dict[str, list[Spanned]] = until(there, SECONDS, lambda: f"{names - collector.of(trace).keys()} is missing")
    return found


def test_a_write_is_one_trace_from_the_request_to_opas_proof(dev: Dev, collector: Collector) -> None:
    """The request's own span is the last to end, and another tick sends it: a test that did not wait for it failed now
    and then."""
    trace = "a" * 31 + "1"
    token = dev.ready()["tokens"]["admin"]
    headers = send(
        dev,
        "PUT",
        "/policies/traced?wait=active",
        {"rego": "package projects.traced\n\nallow := true\n"},
        traceparent=f"00-{trace}-{'b' * 16}-01",
        tracestate="vendor=a-b",
        Authorization=f"Bearer {token}",
        Idempotency_Key="one-trace",
    )
    spans = arrived(collector, trace, PASS | AGENT | {PUT})
    (activation,) = spans["opa.activate"]
    apply, own_pass, put = collector.above(activation)
    assert [apply.name, own_pass.name, put.name] == ["regops.apply", "regops.pass", PUT]
    assert put.parent == "b" * 16
    assert (put.state, activation.state) == ("vendor=a-b", ""), "a commit has none"
    assert 201 in {each.attributes["http.response.status_code"] for each in spans[PUT]}
    for name in ("regops.fetch", "regops.validate", "etcd.txn"):
        assert own_pass in [above for each in spans[name] for above in collector.above(each)], name
    assert (own_pass.service, put.service, activation.service) == ("regops-server", "regops-server", "regops-agent")
    assert activation.attributes["vcs.ref.head.revision"] == headers["Policy-Commit"]
    message = git("log", "-1", "--format=%B", headers["Policy-Commit"], folder=dev.folder / "state/git/policies.git")
    assert f"Trace-Parent: 00-{trace}-{put.id}-01" in message


# --- a webhook -------------------------------------------------------------------------------------------------------


def launched(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "regops", "agent"],
            env={**inherited(), **environment(settings)},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


@contextlib.asynccontextmanager
async def agent(settings: Settings, folder: Path) -> AsyncIterator[None]:
    """`python -m regops agent` with a real OPA beside it, which has its bundle."""
    url = f"http://127.0.0.1:{settings.agent.port}"
    opa = OpaServer(folder / "enforcing", opa_config(url))
    process = launched(settings, folder / "agent.log")
    try:
        await opa.start()
        await eventually(opa.healthy, SECONDS)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        await opa.stop()
        assert await asyncio.to_thread(process.wait, 15) == 0, (folder / "agent.log").read_text()


async def hook(world: World, url: str, trace: str) -> None:
    """A Git host that traces tells of a push."""
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    headers |= {"traceparent": f"00-{trace}-{'b' * 16}-01", "tracestate": "vendor=a-b"}
    request = urllib.request.Request(f"{url}/hooks/generic", b"{}", headers, method="POST")

    def post() -> int:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            status: int = answer.status
            return status

    assert await asyncio.to_thread(post) == 202, world.remote.head


@contextlib.asynccontextmanager
async def hooked(folder: Path, etcd: EtcdServer, collector: Collector) -> AsyncIterator[tuple[World, ServerProcess]]:
    """A server that nothing but webhooks makes look (the remote is no folder of this machine, and the poll is hours
    away), and an agent; both are ended by SIGTERM."""
    secrets = folder / "secrets"
    secrets.write_text(f"{SECRET}\n")
    async with open_world(folder, etcd) as world:
        host = Host(world.remote)
        await host.start()
        changed = {
            "git": GitSettings(remote=host.url, poll_interval=7200.0, protocols=("http",)),
            "hooks": HooksSettings(secrets_file=secrets),
            "tracing": TracingSettings(endpoint=collector.url, timeout=30.0),
        }
        beside = AgentSettings(id="one", port=free_port(), state=folder / "agent")
        try:
            async with (
                server(world, "hooked", **changed) as process,
                agent(world.settings("hooked", **changed, agent=beside), folder),
            ):
                yield world, process
        finally:
            await host.stop()


async def test_a_webhook_is_one_trace_from_the_hosts_request_to_opas_proof(
    tmp_path: Path, etcd_server: EtcdServer, collector: Collector
) -> None:
    trace = "c" * 31 + "1"
    async with hooked(tmp_path, etcd_server, collector) as (world, process):
        head = world.remote.commit({"policies/projects/alpha/rego.rego": rego("alpha", "hooked").encode()})
        await hook(world, process.url, trace)
        spans = await asyncio.to_thread(arrived, collector, trace, PASS | AGENT | {"POST /hooks/generic"})
    (activation,) = spans["opa.activate"]
    assert [each.name for each in collector.above(activation)] == ["regops.apply", "regops.pass", "POST /hooks/generic"]
    assert activation.attributes["vcs.ref.head.revision"] == head
    assert {each.state for each in (activation, *collector.above(activation))} == {"vendor=a-b"}


async def test_a_server_and_an_agent_that_are_told_to_end_send_what_they_have_yet(
    tmp_path: Path, etcd_server: EtcdServer, collector: Collector
) -> None:
    trace = "d" * 31 + "1"
    async with hooked(tmp_path, etcd_server, collector) as (world, process):
        head = world.remote.commit({"policies/projects/alpha/rego.rego": rego("alpha", "last").encode()})
        await hook(world, process.url, trace)

        async def proven() -> bool:
            (agent,) = (await process.get("/fleet")).body["agents"]
            return str(agent["enforced_revision"]).endswith(head)

        await eventually(proven, SECONDS)
        await process.get("/fleet", traceparent=f"00-{trace}-{'b' * 16}-01")
    assert collector.of(trace).keys() >= PASS | AGENT | {"POST /hooks/generic", "GET /fleet"}
