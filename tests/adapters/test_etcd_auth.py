"""An etcd with users: passwords, tokens that end, and roles that do not reach everywhere."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.core.errors import RegopsError, StalledError
from reconciler.core.ports import Put, Range, Transaction, WatchBatch

TOKEN_SECONDS = 1


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """root, and regops, whose role reaches below /policies/ only."""
    flags = ["--auth-token-ttl", str(TOKEN_SECONDS), "--bcrypt-cost", "4"]
    server = EtcdServer(tmp_path_factory.mktemp("auth"), flags=flags)
    try:
        server.start()
        for user in ("root", "regops"):
            server.post("auth/user/add", {"name": user, "password": "secret"})
        server.post("auth/role/add", {"name": "root"})
        server.post("auth/user/grant", {"user": "root", "role": "root"})
        server.post("auth/role/add", {"name": "policies"})
        reach = {"permType": "READWRITE", "key": coded("/policies/"), "range_end": coded("/policies0")}
        server.post("auth/role/grant", {"name": "policies", "perm": reach})
        server.post("auth/user/grant", {"user": "regops", "role": "policies"})
        server.post("auth/enable", {})
        yield server
    finally:
        server.stop()


@contextlib.asynccontextmanager
async def connected(server: EtcdServer, user: str = "regops", password: str = "secret") -> AsyncIterator[EtcdStore]:
    store = EtcdStore([server.endpoint], user=user, password=password)
    try:
        yield store
    finally:
        await store.aclose()


def put(value: bytes, key: str = "/policies/k") -> Transaction:
    return Transaction((), (Put(key, value),))


async def first(store: EtcdStore, key: str, revision: int = 1) -> WatchBatch:
    async with store.watch(Range(key), from_revision=revision) as batches:
        return await asyncio.wait_for(anext(batches), 8)


async def end_tokens(server: EtcdServer) -> None:
    """Set the password anew: etcd forgets every token that the user has."""
    answer = await asyncio.to_thread(server.post, "auth/authenticate", {"name": "root", "password": "secret"})
    change = {"name": "regops", "password": "secret"}
    await asyncio.to_thread(server.post, "auth/user/changepw", change, str(answer["token"]))


async def test_a_user_reads_writes_watches_and_leads_within_its_role(users: EtcdServer) -> None:
    async with connected(users) as store:
        written = await store.commit(put(b"1"))
        assert (await store.read(Range("/policies/k"))).ranges[0][0].value == b"1"
        assert (await first(store, "/policies/k", written.revision)).events[0].kv.value == b"1"
        async with Election(store, "/policies/leader", "one").lead() as leadership:
            assert leadership.valid()


async def test_beyond_the_role_everything_is_refused_with_a_remedy(users: EtcdServer) -> None:
    async with connected(users) as store:
        for call in (store.read(Range("/other")), store.commit(put(b"1", "/other")), first(store, "/other")):
            with pytest.raises(StalledError) as refused:
                await call
            assert refused.value.reason == "PermissionDenied"
            assert "etcd.policies_prefix" in refused.value.remedy


async def test_a_role_that_does_not_reach_everywhere_is_no_reason_to_be_unhealthy(users: EtcdServer) -> None:
    """The test of the request limit once wrote below / and failed for every user but root."""
    async with connected(users) as store:
        health = await store.health()
    assert health.version.startswith("3.")
    assert health.warnings == ()


@pytest.mark.parametrize("user", ["regops", "nobody"])
async def test_a_wrong_password_is_said_in_the_settings_words(users: EtcdServer, user: str) -> None:
    """A write let gRPC's own error through, and a watch tried again for ever without a word."""
    async with connected(users, user, "wrong") as store:
        calls = (store.read(Range("/policies/k")), store.commit(put(b"1")), store.grant(5), store.keep_alive(1))
        for call in (*calls, store.health(), first(store, "/policies/k")):
            with pytest.raises(StalledError) as refused:
                await call
            assert refused.value.reason == "AuthenticationFailed"
            assert "etcd.password_file" in refused.value.remedy


async def test_an_etcd_that_wants_a_user_says_which_settings_name_one(users: EtcdServer) -> None:
    async with connected(users, "", "") as store:
        for call in (store.read(Range("/policies/k")), store.commit(put(b"1")), first(store, "/policies/k")):
            with pytest.raises(StalledError) as refused:
                await call
            assert "etcd.user" in refused.value.remedy


async def test_a_user_for_an_etcd_without_users_is_not_needed(etcd_server: EtcdServer, prefix: str) -> None:
    """So that users can be switched on in etcd without a moment in which nobody gets in."""
    async with connected(etcd_server) as store:
        assert (await store.commit(put(b"1", prefix))).succeeded
        assert (await store.read(Range(prefix))).ranges[0][0].value == b"1"


async def test_a_token_that_etcd_has_forgotten_is_replaced(users: EtcdServer) -> None:
    """A write that is refused for its token surely did not happen: it is sent with a new one."""
    async with connected(users) as store:
        await store.commit(put(b"0"))
        await end_tokens(users)
        before = (await store.commit(put(b"1"))).revision
        await end_tokens(users)
        assert (await store.commit(put(b"2"))).revision == before + 1
        await end_tokens(users)
        assert (await store.read(Range("/policies/k"))).ranges[0][0].value == b"2"
        await end_tokens(users)
        assert (await first(store, "/policies/k", before)).events[0].kv.value == b"1"


async def test_a_token_that_has_ended_is_replaced(users: EtcdServer) -> None:
    """The watch took etcd's ``invalid auth token`` for a lack of permission and gave up."""
    async with connected(users) as store, connected(users) as other:
        now = (await store.commit(put(b"0"))).revision
        await _until_ended(store)
        assert (await first(store, "/policies/k", now)).events[0].kv.value == b"0"
        await other.commit(put(b"1"))
        await _until_ended(other)
        assert (await other.commit(put(b"2"))).succeeded


async def _until_ended(store: EtcdStore) -> None:
    """Wait, without using the token, for longer than it lives unused."""
    token = store._identity._token
    assert token
    await asyncio.sleep(TOKEN_SECONDS)
    probe = EtcdStore(store._channels.endpoints, user="regops", password="")
    probe._identity._token = token
    async with asyncio.timeout(10):
        while probe._identity._token == token:
            await asyncio.sleep(TOKEN_SECONDS * 1.2)  # every use prolongs it
            with contextlib.suppress(RegopsError):
                await probe.read(Range("/policies/k"))
    await probe.aclose()
