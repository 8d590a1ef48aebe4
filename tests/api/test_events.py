"""Streams of events that are never still, that nobody reads, and whose listener may not listen any more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from fixtures.agents import Agent, ago
from fixtures.bundles import Enforcing, open_enforcing
from fixtures.etcd import eventually
from fixtures.replicas import Replica, World
from fixtures.tokens import jwks, token

from api import events
from api.auth import Caller
from api.event_views import Snapshot
from api.statusview import Observed, narrowed, status_document
from reconciler.adapters.etcd import EtcdStore
from reconciler.core.model import PLATFORM
from reconciler.core.passes import PassChange, PassRecord
from reconciler.core.records import Applied, Held, Receipt

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON = 0.3
MEMBER = token(sub="ann", project="mine")


def root(key: str) -> str:
    """An admin's token, signed with this key."""
    return token(key, roles=["platform_admin"], sub="root")


@pytest_asyncio.fixture(loop_scope="module")
async def store(world: World) -> AsyncIterator[EtcdStore]:
    opened = world.store()
    yield opened
    await opened.aclose()


@contextlib.asynccontextmanager
async def news(world: World, store: EtcdStore, *, repeated: bool = False) -> AsyncIterator[None]:
    """One agent proves the same again and again, each time since another moment, or in the very same words."""
    agent, first = Agent(world, store, "busy"), ago(9)
    await agent.live()

    async def telling() -> None:
        while True:
            await agent.tell("1" * 40, first if repeated else ago(0))
            await asyncio.sleep(0.02)

    task = asyncio.ensure_future(telling())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await agent.forget()


@contextlib.asynccontextmanager
async def lines(replica: Replica, bearer: str) -> AsyncIterator[AsyncIterator[str]]:
    """The stream, line by line, comments too."""
    timeout = aiohttp.ClientTimeout(total=20)
    headers = {"Authorization": f"Bearer {bearer}"}
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session,
        session.get(f"{replica.url}/events", headers=headers) as answer,
    ):
        assert answer.status == 200
        yield (line.decode().rstrip("\n") async for line in answer.content)


async def end_of(replica: Replica, bearer: str, reason: str) -> int:
    """How many events of agents came before the stream ended for that reason."""
    heard, name = 0, ""
    async with lines(replica, bearer) as stream:
        async for line in stream:
            name = line.removeprefix("event: ") if line.startswith("event: ") else name
            heard += line == "event: agents"
            if line.startswith("data: ") and name == "end":
                assert json.loads(line.removeprefix("data: ")) == {"reason": reason}
                return heard
    raise AssertionError("the stream ended without a word")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens every 15 seconds happens soon."""
    monkeypatch.setattr(events, "HEARTBEAT", SOON)


@pytest.mark.usefixtures("often")
async def test_a_stream_ends_amid_news_when_its_caller_may_not_listen_any_more(
    world: World, store: EtcdStore, tmp_path: Path
) -> None:
    """It was asked again after 15 seconds of silence only: on a busy system, never."""
    async with open_enforcing(tmp_path / "opa") as enforcing:
        await enforcing.enforce("package platform\n")
        settings = world.settings("asks").auth.model_copy(update={"opa": enforcing.opa.url})
        async with world.replica(reconciler=False, auth=settings) as replica, news(world, store):
            await _ended_by(enforcing, replica)


async def _ended_by(enforcing: Enforcing, replica: Replica) -> None:
    listening = asyncio.ensure_future(end_of(replica, MEMBER, "forbidden"))
    await asyncio.sleep(3 * SOON)
    assert not listening.done()
    refused = 'package platform.authz\n\nimport rego.v1\n\nallow := input.path != ["events"]\n'
    await enforcing.enforce(refused)
    assert await asyncio.wait_for(listening, 20) > 3, "news came all the time"


@pytest.mark.usefixtures("often")
async def test_a_stream_ends_when_the_issuer_has_withdrawn_the_tokens_key(
    world: World, store: EtcdStore, tmp_path: Path
) -> None:
    """The token was verified once, and the stream went on until it expired."""
    keys = tmp_path / "jwks.json"
    keys.write_bytes(jwks("rsa", "rsa-2"))
    settings = world.settings("keys").auth.model_copy(update={"jwks": str(keys), "jwks_cooldown": 0.05})
    async with world.replica(reconciler=False, auth=settings) as replica, news(world, store):
        withdrawn = asyncio.ensure_future(end_of(replica, root("rsa-2"), "unauthorized"))
        async with lines(replica, root("rsa")) as kept:
            await asyncio.sleep(3 * SOON)
            assert not withdrawn.done()
            await asyncio.to_thread(keys.write_bytes, jwks("rsa"))
            await asyncio.wait_for(withdrawn, 20)
            for _ in range(20):
                assert await anext(kept) != "event: end"


@pytest.mark.usefixtures("often")
async def test_a_listener_for_whom_nothing_becomes_different_hears_that_the_stream_lives(
    replica: Replica, world: World, store: EtcdStore
) -> None:
    """Each look began the silence anew: where agents repeated their receipts nothing at all was heard, and who listened
    gave up."""
    async with news(world, store, repeated=True), lines(replica, MEMBER) as stream:
        alive = 0
        async with asyncio.timeout(15):
            async for line in stream:
                alive += line == ": alive"
                if alive == 3:
                    break


async def test_a_listener_that_takes_nothing_is_cut_off(
    world: World, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was let go and no longer counted, and the server waited without end for it to take what had been written."""
    monkeypatch.setattr(events, "_PATIENCE", 0.5)
    room = await asyncio.to_thread(_room)
    agents = [Agent(world, store, f"wordy-{number}") for number in range(room // 2**20 + 4)]
    for each in agents:
        await each.tell("1" * 40, ago(9), error="x" * 2**20)
    async with world.replica(reconciler=False) as replica:
        with socket.create_connection(("127.0.0.1", replica.settings.server.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
            request = f"GET /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {replica.admin}\r\n\r\n"
            sock.sendall(request.encode())
            await eventually(lambda: _listeners(replica, 1))
            await eventually(lambda: _listeners(replica, 0))
            taken = await asyncio.wait_for(asyncio.to_thread(_rest, sock), 15)
        assert len(taken) < len(agents) * 2**20, "what was left in the kernel, and no more"
        assert not taken.endswith(b"\r\n0\r\n\r\n")
    for each in agents:
        await each.forget()


def _room() -> int:
    """Bytes that the kernel takes at most for who does not read them."""
    return int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])


async def _listeners(replica: Replica, count: int) -> bool:
    text = (await replica.get("/metrics", bearer="")).body
    return f"regops_event_listeners {float(count)}" in text


def _rest(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    found = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(2**20):
            found += chunk
    return found


# --- views -----------------------------------------------------------------------------------------------------------


def snapshot() -> tuple[Snapshot, Observed, PassRecord]:
    """Agents of every scope, with and without words of their OPA; something of two projects in every list."""
    at = "2026-01-01T00:00:00.000Z"
    receipts = [
        Receipt(f"{number}-{scope.partition(':')[2] or 'all'}", "east", scope, "a" * 40, at, error=error)
        for number, error in enumerate((None, "projects/b/rego.rego:1: no"))
        for scope in ("all", "projects:a", "projects:b", "projects:a,b", "shard:1/2")
    ]
    seen = Observed(
        applied=Applied(id="1", commit="a" * 40, height=1, rewrites=0, digest="d", at=at),
        held={"projects/a": Held("a" * 40, "No", ()), "projects/b": Held("a" * 40, "No", ())},
        receipts=tuple(receipts),
        alive=frozenset(f"east/{each.id}" for each in receipts),
        led=True,
        since=at,
    )
    changes = tuple(PassChange(f"projects/{name}", "create", "a" * 40, "Ann <a@b>") for name in "ab")
    entry = replace(PassRecord("1", "applied", "push", at, at, "me"), changes=changes)
    return Snapshot(seen, [entry], datetime(2026, 1, 1, tzinfo=UTC), PLACE), seen, entry


PLACE = {"remote": "r", "branch": "main", "path": "policies"}


def member(*projects: str) -> Caller:
    return Caller("ann", None, None, "t", frozenset(), frozenset(projects), {})


@pytest.mark.parametrize("projects", [(), ("a",), ("b",), ("a", "b"), ("c",)])
async def test_a_view_is_what_the_status_shows_this_caller(projects: tuple[str, ...]) -> None:
    """The parts are made once for all, so nobody may see what was made for somebody else."""
    looked, seen, _ = snapshot()
    admin = Caller("root", None, None, "t", frozenset({"platform_admin"}), frozenset(), {})
    for who in (admin, member("b"), member("a"), member(*projects)):
        view = looked.view(who)
        own = {PLATFORM, "projects/a", "projects/b"} if who is admin else {f"projects/{p}" for p in who.projects}
        whole = status_document(seen, PLACE, datetime(2026, 1, 1, tzinfo=UTC))
        document = json.loads(json.dumps(narrowed(whole, own.__contains__)))
        agents: list[dict[str, Any]] = document.pop("agents")
        assert json.loads(view.status) == document
        assert [json.loads(text) for text in view.agents.values()] == agents
        assert list(view.agents) == [f"east/{each['id']}" for each in agents]
        changed = [each["policy"] for each in json.loads(view.passes["1"])["changes"]]
        assert set(changed) == own & {"projects/a", "projects/b"}


async def test_members_of_many_projects_share_what_all_of_them_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole document was made for each set of projects that somebody listened for."""
    made: list[Observed] = []

    def counted(*given: Any) -> dict[str, Any]:
        made.append(given[0])
        return status_document(*given)

    monkeypatch.setattr("api.event_views.status_document", counted)
    looked, _, _ = snapshot()
    views = [looked.view(member(f"p{number}")) for number in range(50)]
    assert len(made) == 1
    for name in ("east/0-all", "east/1-all"):
        assert len({id(view.agents[name]) for view in views}) == 1
