"""Faults of the outside, through the real loop: each has a condition with a remedy and a metric, none ends the process
or keeps the event loop from turning, and a push is live within seconds of its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from fixtures.engine import MOST_LAG, SOON, Engine, Lag
from fixtures.etcd import EtcdServer, eventually
from fixtures.git import Remote
from fixtures.host import Host
from fixtures.opa import find_opa

from api.observing import Observer
from api.statusview import sync_of
from reconciler.adapters.opa import OpaCompiler
from reconciler.agent.mirror import Mirror
from reconciler.core.conditions import Condition
from reconciler.settings import LoopSettings

ALPHA = "policies/projects/alpha/rego.rego"


def says(word: str) -> dict[str, bytes]:
    return {ALPHA: f'package projects.alpha\n\nmark := "{word}"\n'.encode()}


@pytest.fixture
async def compiler() -> AsyncIterator[OpaCompiler]:
    async with OpaCompiler(find_opa()) as compiler:
        yield compiler


@pytest.fixture
async def lag() -> AsyncIterator[Lag]:
    """Measures over the whole test, and fails it when regops blocked the event loop."""
    async with Lag() as lag:
        yield lag
    assert lag.longest < MOST_LAG, f"the event loop was blocked for {lag.longest:.3f} s"


@pytest.fixture
async def host(remote: Remote) -> AsyncIterator[Host]:
    host = Host(remote)
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
def follow(
    tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler, lag: Lag
) -> Callable[..., Engine]:
    """An engine that follows a remote: polled often where only the poll can notice the end of a fault."""
    assert lag.longest == 0.0

    def make(remote: Host | Remote, endpoint: str = etcd_server.endpoint, **more: object) -> Engine:
        if isinstance(remote, Host):
            more = {"poll": 0.5, **more}
        return Engine(tmp_path / "server", endpoint, prefix, compiler, remote.url, **more)  # type: ignore[arg-type]

    (tmp_path / "server").mkdir()
    return make


def transient(conditions: dict[str, Condition], reason: str, *, fetch: bool) -> str:
    """Check the conditions of a fault that is tried again; the message for the person."""
    assert (conditions["Ready"].status, conditions["Ready"].reason) == ("False", reason)
    assert (conditions["Reconciling"].status, conditions["Reconciling"].reason) == ("True", "ProgressingWithRetry")
    assert "Stalled" not in conditions
    if fetch:
        assert (conditions["FetchFailed"].status, conditions["FetchFailed"].reason) == ("True", reason)
    return conditions["Ready"].message


def stalled(conditions: dict[str, Condition], reason: str) -> str:
    """Check the conditions of a fault that a person must end; the message for the person."""
    assert (conditions["Ready"].status, conditions["Ready"].reason) == ("False", reason)
    assert (conditions["Stalled"].status, conditions["Stalled"].reason) == ("True", reason)
    assert (conditions["FetchFailed"].status, conditions["FetchFailed"].reason) == ("True", reason)
    assert "Reconciling" not in conditions
    return conditions["Ready"].message


async def healed(engine: Engine, commit: str) -> None:
    """The push is live in time, and nothing of the fault is left in the status."""
    await engine.until_applied(commit, SOON)
    assert {kind for kind, condition in (await engine.until_ready("True")).items() if condition.status == "True"} == {
        "Ready"
    }
    # The status in etcd may be that of before the fault, until the pass that heals has told its own.
    await engine.until(lambda: engine.metric("ready") == 1, SOON)


# --- Git -------------------------------------------------------------------------------------------------------------


async def test_a_remote_that_hangs_is_cut_off_and_said_to_hang(host: Host, follow: Callable[..., Engine]) -> None:
    async with follow(host, fetch_timeout=1.0).running() as engine:
        await engine.until_applied(host.remote.head)
        host.mode = "hang"
        message = transient(await engine.until_ready("False"), "FetchTimeout", fetch=True)
        assert host.url in message
        assert "git.fetch_timeout" in message
        assert engine.metric("pass_failures_total", reason="FetchTimeout") >= 1
        assert engine.passes("transient") >= 1
        host.mode = "serve"
        host.drop()
        await healed(engine, host.remote.commit(says("after")))


async def test_a_remote_that_refuses_connections_is_tried_again(host: Host, follow: Callable[..., Engine]) -> None:
    async with follow(host).running() as engine:
        await engine.until_applied(host.remote.head)
        await host.stop()
        message = transient(await engine.until_ready("False"), "FetchFailed", fetch=True)
        assert host.url in message
        assert "connect" in message.lower()
        assert engine.metric("pass_failures_total", reason="FetchFailed") >= 1
        await host.start()
        await healed(engine, host.remote.commit(says("after")))


async def test_a_remote_that_is_away_at_the_start_is_waited_for(host: Host, follow: Callable[..., Engine]) -> None:
    await host.stop()
    async with follow(host).running() as engine:
        transient(await engine.until_ready("False"), "FetchFailed", fetch=True)
        assert engine.contender.waits_for().keys() >= {"git"}
        await host.start()
        await healed(engine, host.remote.head)
        assert "git" not in engine.contender.waits_for()


async def test_refused_credentials_wait_for_a_person(host: Host, follow: Callable[..., Engine]) -> None:
    async with follow(host).running() as engine:
        await engine.until_applied(host.remote.head)
        host.mode = "401 Unauthorized"
        message = stalled(await engine.until_ready("False"), "AuthenticationFailed")
        assert "Renew the key or token" in message
        assert engine.metric("pass_failures_total", reason="AuthenticationFailed") >= 1
        assert engine.passes("stalled") >= 1
        host.mode = "serve"
        await healed(engine, host.remote.commit(says("after")))


async def test_a_branch_that_vanished_names_those_that_are_there_and_deletes_nothing(
    remote: Remote, follow: Callable[..., Engine]
) -> None:
    async with follow(remote, poll=0.5).running() as engine:
        await engine.until_applied(remote.head)
        before, head = await engine.live(), remote.head
        remote.force_push(head, "trunk")
        remote.delete_branch()
        message = stalled(await engine.until_ready("False"), "BranchNotFound")
        assert "has no branch 'main'; its branches are: trunk" in message
        assert "git.branch" in message
        assert engine.metric("pass_failures_total", reason="BranchNotFound") >= 1
        assert await engine.live() == before
        await healed(engine, remote.commit(says("after"), on=head))


@contextlib.contextmanager
def _full_disk(limit: int = 20_000) -> Iterator[None]:
    """Files of at most so many bytes: the nearest thing to a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_says_where_to_make_room(remote: Remote, follow: Callable[..., Engine]) -> None:
    noise = b"".join(hex(n * 7919 % 1_000_003).encode() for n in range(60_000))
    big = remote.commit({"policies/README": noise, **says("after")}, branch="topic", on=remote.head)
    async with follow(remote, poll=0.3).running() as engine:
        await engine.until_applied(remote.head)
        with _full_disk():
            seen = engine.count()
            await engine.until(lambda: engine.count() > seen + 1)  # what began before had room
            remote.force_push(big)
            message = transient(await engine.until_ready("False"), "DiskFull", fetch=True)
        assert "git.mirror" in message
        assert engine.metric("pass_failures_total", reason="DiskFull") >= 1
        await healed(engine, big)


async def test_a_corrupt_mirror_is_cloned_again(remote: Remote, follow: Callable[..., Engine]) -> None:
    async with follow(remote).running() as engine:
        await engine.until_applied(remote.head)
        await engine.until(lambda: engine.passes("unchanged") >= 1)
        for file in (engine.mirror / "objects").rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                file.write_bytes(b"\0" * 64)
        await healed(engine, remote.commit(says("after")))
        assert not list(engine.mirror.parent.glob("mirror.git.*"))


async def test_a_mirror_that_vanished_is_cloned_again(remote: Remote, follow: Callable[..., Engine]) -> None:
    async with follow(remote).running() as engine:
        await engine.until_applied(remote.head)
        engine.mirror.rename(engine.mirror.with_name("elsewhere"))
        await healed(engine, remote.commit(says("after")))


# --- etcd ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.5, 4.5], ids=["shortly", "longer than the lease"])
async def test_an_etcd_that_hangs_costs_nothing_but_time(
    remote: Remote, etcd: EtcdServer, follow: Callable[..., Engine], seconds: float
) -> None:
    async with follow(remote, etcd.endpoint, lease_ttl=2).running() as engine:
        await engine.until_applied(remote.head)
        etcd.pause()
        head = remote.commit(says("meanwhile"))
        await asyncio.sleep(seconds)  # the fault itself, no synchronisation
        etcd.resume()
        await healed(engine, head)
        await healed(engine, remote.commit(says("after")))


async def test_a_pass_that_etcd_does_not_answer_says_so(
    remote: Remote, etcd: EtcdServer, follow: Callable[..., Engine]
) -> None:
    async with follow(remote, etcd.endpoint).running() as engine:
        await engine.until_applied(remote.head)
        etcd.pause()
        head = remote.commit(says("meanwhile"))
        await eventually(lambda: engine.metric("ready") == 0)
        message = engine.local()["Ready"].message
        assert engine.local()["Ready"].reason in {"StoreUnavailable", "UnknownOutcome"}
        assert etcd.endpoint in message
        assert engine.passes("transient") >= 1
        etcd.resume()
        await healed(engine, head)


async def test_an_etcd_that_was_killed_and_comes_back_is_taken_up_again(
    remote: Remote, etcd: EtcdServer, follow: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """A replica that had lost the lead meanwhile once waited a whole term for its own former lease, which an etcd that
    starts again lets begin anew; and a push seen while it could not lead was forgotten until the next poll."""
    async with follow(remote, etcd.endpoint).running() as engine:
        await engine.until_applied(remote.head)
        etcd.stop()
        head = remote.commit(says("meanwhile"))
        await eventually(lambda: "no lead" in caplog.text, 30)  # nor could it give its lease back
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: engine.metric("leader") == 1, 3.5)
        await healed(engine, head)
        await healed(engine, remote.commit(says("after")))


async def test_an_etcd_that_is_away_at_the_start_is_waited_for(
    remote: Remote, etcd: EtcdServer, follow: Callable[..., Engine]
) -> None:
    etcd.stop()
    async with follow(remote, etcd.endpoint).running() as engine:
        await asyncio.sleep(2)  # the fault itself, no synchronisation
        await asyncio.to_thread(etcd.start)
        await healed(engine, remote.head)


async def test_an_etcd_that_lost_everything_is_filled_again(
    remote: Remote, etcd: EtcdServer, follow: Callable[..., Engine]
) -> None:
    async with follow(remote, etcd.endpoint).running() as engine:
        await engine.until_applied(remote.head)
        wanted = await engine.live()
        etcd.stop()
        etcd.wipe()
        await asyncio.to_thread(etcd.start)
        await healed(engine, remote.head)
        assert await engine.live() == wanted


# --- OPA -------------------------------------------------------------------------------------------------------------


async def test_a_compiler_that_is_killed_mid_pass_is_started_again(
    remote: Remote, compiler: OpaCompiler, follow: Callable[..., Engine]
) -> None:
    loop = LoopSettings(backoff_min=0.1)
    async with follow(remote, loop=loop).running() as engine:
        await engine.until_applied(remote.head)
        for n in range(5):
            head = remote.commit(says(f"{n}"))
            await asyncio.sleep(0.01 * n)  # at another moment of the pass each time
            process = compiler._process
            if process is not None and process._process is not None and process.running:
                process._process.kill()
            await healed(engine, head)


async def test_a_compiler_that_cannot_be_started_is_named_and_nothing_is_lost(
    remote: Remote, compiler: OpaCompiler, follow: Callable[..., Engine], tmp_path: Path
) -> None:
    async with follow(remote, poll=0.5).running() as engine:
        await engine.until_applied(remote.head)
        before = await engine.live()
        found, compiler._binary = compiler._binary, tmp_path / "no-opa"
        await compiler._stop()
        head = remote.commit(says("meanwhile"))
        message = transient(await engine.until_ready("False"), "CompilerUnavailable", fetch=False)
        assert "no-opa" in message
        assert engine.metric("pass_failures_total", reason="CompilerUnavailable") >= 1
        assert await engine.live() == before
        seen = await Observer(engine.hand, engine.keys, Mirror(engine.hand, engine.keys)).read()
        assert sync_of(seen) == "Unknown", "the head was fetched and is not live: Synced was said of it"
        compiler._binary = found
        await healed(engine, head)
