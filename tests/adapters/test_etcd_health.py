"""What a server start looks at in etcd, and what a person is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from fixtures.etcd import EtcdServer, free_port
from fixtures.scripted import Script, scripted_etcd
from prometheus_client import CollectorRegistry

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.errors import StalledError, StoreError, UnknownOutcomeError
from reconciler.core.ports import Delete, Put, Range, StoreHealth, StoreWarning, Transaction
from reconciler.metrics import StoreMetrics

GIB = 2**30
QUOTA = 4 * 2**20


@contextlib.asynccontextmanager
async def connected(*endpoints: str) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(endpoints, read_timeout=1.5)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd with its default request limit and very little room."""
    flags = ["--max-request-bytes", "1572864", "--quota-backend-bytes", str(QUOTA)]
    server = EtcdServer(tmp_path / "etcd", flags=flags)
    try:
        server.start()
        yield server
    finally:
        server.stop()


async def test_an_etcd_started_as_it_should_be_needs_no_attention(store: EtcdStore) -> None:
    before = (await store.read(Range("/"))).revision
    health = await store.health()
    assert health.version.startswith("3.")
    assert health.db_size > 0
    assert health.quota > health.db_size
    assert health.alarms == ()
    assert health.warnings == ()
    assert (await store.read(Range("/"))).revision == before  # looking changes nothing


async def test_a_request_limit_that_is_too_small_is_found_before_a_large_policy_is_refused(narrow: EtcdServer) -> None:
    async with connected(narrow.endpoint) as store:
        (warning,) = (await store.health()).warnings
    assert warning.kind == "request_limit"
    assert narrow.endpoint in warning.text
    assert "it has --max-request-bytes 1572864, start it with --max-request-bytes 2097152" in warning.text


@pytest.mark.parametrize(("limit", "warnings"), [(2_097_151, 1), (2_097_152, 0)])
async def test_the_request_limit_is_found_out_to_the_byte(tmp_path: Path, limit: int, warnings: int) -> None:
    server = EtcdServer(tmp_path / "etcd", flags=["--max-request-bytes", str(limit)])
    try:
        await asyncio.to_thread(server.start)
        async with connected(server.endpoint) as store:
            assert len((await store.health()).warnings) == warnings
    finally:
        server.stop()


async def test_a_full_etcd_is_said_with_a_remedy_and_works_again_when_tidied(narrow: EtcdServer) -> None:
    """The whole way that a person goes: full, compact, defragment, disarm."""
    async with connected(narrow.endpoint) as store:
        lease = await store.grant(60)
        with pytest.raises(StalledError) as full:
            await _fill(store)
        assert full.value.reason == "NoSpace"
        assert "etcdctl alarm disarm" in full.value.remedy
        health = await store.health()
        assert health.quota == QUOTA
        (alarm,) = health.alarms
        assert alarm.startswith("NOSPACE at member ")
        assert any(f"of its {QUOTA // 2**20} MiB" in warning.text for warning in health.warnings)
        assert {warning.kind for warning in health.warnings} == {"request_limit", "size"}
        assert await store.keep_alive(lease) > 1

        now = (await store.commit(Transaction((), (Delete("/k"),)))).revision
        status = await asyncio.to_thread(narrow.post, "maintenance/status", {})
        await asyncio.to_thread(narrow.post, "kv/compaction", {"revision": now, "physical": True})
        await asyncio.to_thread(narrow.post, "maintenance/defragment", {})
        disarm = {"action": "DEACTIVATE", "memberID": status["header"]["member_id"], "alarm": "NOSPACE"}
        await asyncio.to_thread(narrow.post, "maintenance/alarm", disarm)
        assert (await store.commit(Transaction((), (Put("/k", b"1"),)))).succeeded
        assert (await store.health()).alarms == ()


async def _fill(store: EtcdStore) -> None:
    for number in range(100):
        await store.commit(Transaction((), (Put("/k", b"%d" % number * 250_000),)))


@pytest.mark.parametrize("version", ["3.4.33", "3.4.0-rc.1", "2.3.8"])
async def test_an_etcd_that_is_too_old_is_refused(version: str) -> None:
    async with scripted_etcd(Script(version=version)) as etcd, connected(etcd.endpoint) as store:
        with pytest.raises(StalledError, match=version) as refused:
            await store.health()
    assert refused.value.reason == "EtcdTooOld"
    assert "3.5" in refused.value.remedy


async def test_versions_are_numbers_and_the_oldest_member_counts() -> None:
    async with (
        scripted_etcd(Script(version="3.10.0-alpha.0")) as new,
        scripted_etcd(Script(version="3.5.33")) as old,
        connected(new.endpoint, old.endpoint) as store,
    ):
        assert (await store.health()).version == "3.5.33"


async def test_a_member_that_does_not_answer_is_named_and_the_others_are_examined(etcd_server: EtcdServer) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    async with connected(dead, etcd_server.endpoint) as store:
        health = await store.health()
    assert health.db_size > 0
    (warning,) = health.warnings
    assert warning.kind == "member"
    assert warning.text.startswith(f"etcd member {dead} does not answer")
    async with connected(dead) as store:
        with pytest.raises(StoreError, match="did not answer"):
            await store.health()


async def test_alarms_and_other_findings_of_etcd_are_in_words() -> None:
    errors = ("memberID:255  alarm:CORRUPT ", "memberID:16 alarm:NOSPACE", "memberID:16 alarm:NOSPACE", "no leader")
    async with scripted_etcd(Script(errors=errors)) as etcd, connected(etcd.endpoint) as store:
        alarms = (await store.health()).alarms
    assert [alarm.partition(":")[0] for alarm in alarms] == [
        "CORRUPT at member ff",
        "NOSPACE at member 10",
        "no leader",
    ]
    assert "etcdctl alarm disarm" in alarms[1]


@pytest.mark.parametrize(
    ("size", "told", "quota", "full"),
    [
        (1000, 0, 2 * GIB, False),
        (int(1.9 * GIB), 0, 2 * GIB, True),
        (3 * GIB, 0, 0, False),
        (3 * GIB, 8 * GIB, 8 * GIB, False),
        (7 * GIB, 8 * GIB, 8 * GIB, True),
        (7 * GIB, -1, 0, False),
    ],
)
async def test_an_etcd_that_does_not_tell_its_quota_has_the_default_one(
    size: int, told: int, quota: int, full: bool
) -> None:
    """etcd 3.5 tells none: no alert could fire while it filled up."""
    async with scripted_etcd(Script(size=size, quota=told)) as etcd, connected(etcd.endpoint) as store:
        health = await store.health()
    assert health.quota == quota
    assert [warning.kind for warning in health.warnings] == (["size"] if full else [])


async def test_an_etcd_that_keeps_every_revision_is_told_how_to_forget(store: EtcdStore) -> None:
    async with scripted_etcd(Script(revision=10_000)) as etcd, connected(etcd.endpoint) as other:
        (warning,) = (await other.health()).warnings
        assert warning.kind == "history"
        assert "--auto-compaction-retention" in warning.text
        etcd.refusal = (grpc.StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        assert (await other.health()).warnings == ()
    assert (await store.health()).warnings == ()


@pytest.mark.parametrize(
    ("status", "words", "known"),
    [
        ("UNAVAILABLE", "etcdserver: request timed out", False),
        ("UNAVAILABLE", "etcdserver: leader changed", False),
        ("UNAVAILABLE", "Connection reset by peer", False),
        ("UNKNOWN", "panic", False),
        ("CANCELLED", "etcdserver: request canceled", False),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", True),
        ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner", True),
        ("FAILED_PRECONDITION", "etcdserver: not capable", True),
    ],
)
async def test_a_write_that_fails_is_sent_once_and_is_unknown_unless_etcd_surely_refused_it(
    status: str, words: str, known: bool
) -> None:
    script = Script(refusal=(grpc.StatusCode[status], words))
    async with scripted_etcd(script) as etcd, connected(etcd.endpoint) as store:
        with pytest.raises(StoreError if known else UnknownOutcomeError):
            await store.commit(Transaction((), (Put("/k", b"1"),)))
        assert etcd.calls["txn"] == 1
        with pytest.raises(StoreError):
            await store.read(Range("/k"))


def test_what_was_found_is_in_the_metrics() -> None:
    registry = CollectorRegistry()
    metrics = StoreMetrics(registry)
    metrics.observe(StoreHealth("3.6.1", 10, 20, ("NOSPACE",), (StoreWarning("size", "…"), StoreWarning("size", "…"))))
    metrics.observe(StoreHealth("3.6.2", 11, 20, (), (StoreWarning("history", "…"),)))
    assert registry.get_sample_value("regops_etcd_info", {"version": "3.6.1"}) is None
    assert registry.get_sample_value("regops_etcd_info", {"version": "3.6.2"}) == 1
    assert registry.get_sample_value("regops_etcd_db_size_bytes") == 11
    assert registry.get_sample_value("regops_etcd_quota_bytes") == 20
    assert registry.get_sample_value("regops_etcd_alarms") == 0
    kinds = ("member", "request_limit", "size", "history")
    assert [registry.get_sample_value("regops_etcd_warnings", {"kind": kind}) for kind in kinds] == [0, 0, 0, 1]
