"""Several members, of which some are dead or hang, and links that lose or delay."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from fixtures.etcd import EtcdServer, free_port
from fixtures.proxy import Mode, Proxy, proxy_to
from fixtures.scripted import Script, scripted_etcd

from reconciler.adapters.etcd import EtcdStore, failures
from reconciler.core.errors import StalledError, StoreError, UnknownOutcomeError
from reconciler.core.ports import Put, Range, Transaction


@pytest.fixture
async def proxies(etcd_server: EtcdServer) -> AsyncIterator[list[Proxy]]:
    """Three ways to one etcd: members that can be made to fail one by one."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(proxy_to(etcd_server.port)) for _ in range(3)]


@contextlib.asynccontextmanager
async def connected(
    *endpoints: str, read_timeout: float = 2.0, commit_timeout: float = 2.0
) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, read_timeout=read_timeout, commit_timeout=commit_timeout)
    try:
        yield store
    finally:
        await store.aclose()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


async def test_one_dead_one_hanging_one_alive_is_enough(proxies: list[Proxy], prefix: str) -> None:
    hanging, alive, _ = proxies
    hanging.mode = Mode.HANG
    dead = f"http://127.0.0.1:{free_port()}"
    async with connected(dead, hanging.endpoint, alive.endpoint) as store:
        with within(2):
            await store.read(Range(prefix))
        with within(2):
            assert (await store.commit(Transaction((), (Put(prefix, b"1"),)))).succeeded
        lease = await store.grant(5)
        assert await store.keep_alive(lease) > 0


async def test_a_member_that_hangs_after_it_was_connected_costs_a_part_of_the_deadline(
    proxies: list[Proxy], prefix: str
) -> None:
    """A stopped member keeps its connections. The second member was once asked only when the first one's whole
    deadline was over, and a third one never; a renewal of the lead waited for its next turn."""
    async with connected(*(proxy.endpoint for proxy in proxies)) as store:
        lease = await store.grant(5)
        for hanging in proxies[:2]:
            hanging.mode = Mode.HANG
            with within(1.5):
                await store.read(Range(prefix))
        proxies[0].mode, proxies[0].connections = Mode.PASS, 0
        proxies[2].mode = Mode.HANG
        with within(1.9):
            assert await store.keep_alive(lease) > 0


async def test_the_member_that_answered_stays_in_use_and_the_first_one_serves_again(
    proxies: list[Proxy], prefix: str
) -> None:
    first, second, _ = proxies
    async with connected(first.endpoint, second.endpoint) as store:
        for _ in range(5):
            await store.read(Range(prefix))
        assert (first.connections, second.connections) == (1, 0)
        first.mode = Mode.REFUSE
        first.cut()
        for _ in range(5):
            await store.read(Range(prefix))
        assert second.connections == 1
        first.mode, second.mode = Mode.PASS, Mode.REFUSE
        second.cut()
        with within(2):
            await store.read(Range(prefix))
            assert (await store.commit(Transaction((), (Put(prefix, b"1"),)))).succeeded


async def test_a_write_on_a_member_that_hangs_is_unknown_and_the_next_one_goes_elsewhere(
    proxies: list[Proxy], prefix: str
) -> None:
    async with connected(proxies[0].endpoint, proxies[1].endpoint, commit_timeout=1) as store:
        await store.read(Range(prefix))
        proxies[0].mode = Mode.HANG
        with within(1.5), pytest.raises(UnknownOutcomeError):
            await store.commit(Transaction((), (Put(prefix, b"1"),)))
        assert (await store.commit(Transaction((), (Put(prefix, b"2"),)))).succeeded
        kv = (await store.read(Range(prefix))).ranges[0][0]
        assert (kv.value, kv.create_revision) == (b"2", kv.mod_revision)  # the first one never arrived, and only once


async def test_when_nobody_answers_a_call_ends_by_its_deadline_and_says_why(proxies: list[Proxy], prefix: str) -> None:
    proxies[0].mode = Mode.HANG
    dead = f"http://127.0.0.1:{free_port()}"
    async with connected(dead, proxies[0].endpoint, read_timeout=0.7, commit_timeout=0.7) as store:
        for call in (store.read(Range(prefix)), store.commit(Transaction((), ())), store.grant(5), store.keep_alive(1)):
            with within(1.2), pytest.raises(StoreError) as failed:
                await call
            assert f"{dead} (Connection refused" in str(failed.value)
            assert f"{proxies[0].endpoint} (no answer)" in str(failed.value)


async def test_a_link_that_is_slow_to_connect_is_waited_for(proxies: list[Proxy], prefix: str) -> None:
    """A setting of gRPC that sounds like a pause between attempts is the time that each may take: it was 100 ms, so a
    member in another datacentre was given up again and again."""
    proxies[0].delay = 0.15
    async with connected(proxies[0].endpoint, read_timeout=5) as store:
        await store.read(Range(prefix))
    assert proxies[0].connections == 1


async def test_what_a_server_refuses_before_it_looks_is_not_sent_again_behind_our_back() -> None:
    """gRPC calls it a transparent retry, and does it unless retries are off altogether: here for a stream that a server
    on its way out (HTTP/2: GOAWAY) says not to have seen."""
    streams = 0
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal streams
        await reader.readexactly(24)
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == 4 and not head[4]:
                    writer.write(b"\0\0\0\4\1\0\0\0\0")  # SETTINGS acknowledged
                if head[3] == 1:
                    streams += 1
                    writer.write(b"\0\0\x08\7" + bytes(5 + 8))  # GOAWAY, no stream was seen
        writer.close()
        gone.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with connected(endpoint, commit_timeout=1) as store:
        with pytest.raises(UnknownOutcomeError):
            await store.commit(Transaction((), (Put("/k", b"1"),)))
    await asyncio.wait_for(gone.wait(), 5)
    server.close()
    await server.wait_closed()
    assert streams == 1


async def test_what_is_no_etcd_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with connected(f"http://127.0.0.1:{silent.getsockname()[1]}", read_timeout=0.5) as store:
            with pytest.raises(StoreError, match="no answer"):
                await store.read(Range("/k"))


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1", "is no client URL"),
        ("unix:///run/etcd.sock", "is no client URL"),
        ("http://host:2379/path", "is no client URL"),
        ("http://host:port", "is no client URL"),
    ],
)
def test_an_endpoint_that_cannot_be_one_is_refused_with_the_name_of_the_setting(endpoint: str, words: str) -> None:
    with pytest.raises(StalledError, match=words) as refused:
        EtcdStore([endpoint])
    assert "etcd.endpoints" in str(refused.value)
    assert refused.value.reason == "InvalidSettings"


def test_no_endpoints_at_all_are_refused() -> None:
    with pytest.raises(StalledError, match="REGOPS_ETCD_ENDPOINTS"):
        EtcdStore([])


async def test_a_renewal_that_ends_without_an_answer_does_not_say_that_the_lease_is_gone() -> None:
    """A leader would stop leading for it."""
    async with scripted_etcd(Script()) as etcd, connected(etcd.endpoint) as store:
        with pytest.raises(StoreError):
            await store.keep_alive(1)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused", StoreError),
        ("errors resolving etcd-0:2379: Domain name not found", StoreError),
        ("recvmsg:Connection reset by peer", UnknownOutcomeError),
        ("Socket closed", UnknownOutcomeError),
    ],
)
def test_a_write_whose_connection_is_lost_is_unknown_unless_it_surely_never_left(words: str, kind: type) -> None:
    nothing = grpc.aio.Metadata()
    lost = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, words)
    assert type(failures.of_write(lost, "http://127.0.0.1:1")) is kind
