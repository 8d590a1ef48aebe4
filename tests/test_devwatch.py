"""What `regops dev` tells while it runs, on a real etcd."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from fixtures.etcd import EtcdServer, eventually

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.conditions import READY, Condition, StatusRecord
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Put, Transaction
from reconciler.core.records import Receipt
from reconciler.core.times import rfc3339
from regops.devwatch import narrate

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = Keyspace()


def applied(commit: str, seconds: float, *, renewed: bool, digest: str = "d") -> bytes:
    at = rfc3339(START + timedelta(seconds=seconds))
    counts = {"created": 0, "updated": 1, "deleted": 0, "held": 0}
    last = {"commit": commit, "trigger": "push", "seen_at": at, "applied_at": at, "digest": digest, "renewed": renewed}
    ready = Condition(READY, "True", "ReconciliationSucceeded", "")
    return StatusRecord((ready,), {}, commit, None, (), (), "me", at, last_apply=last | counts).encode()


async def test_an_outage_of_etcd_is_told_and_what_is_written_anew_is_no_news(etcd: EtcdServer) -> None:
    """`regops dev` said nothing while etcd was frozen, though its help says that it tells what goes wrong, and then of
    a commit that had long been live that it was applied."""
    said: list[str] = []
    store = EtcdStore([etcd.endpoint])
    document = {"etcd": [etcd.endpoint], "opa": ["one"]}
    telling = asyncio.create_task(narrate(document, said.append, START))
    try:
        receipt = Receipt("one", "east", "all", "1" * 40, rfc3339(START), live_digest="d")
        puts = (
            Put(KEYS.receipt("east", "one"), receipt.encode()),
            Put(KEYS.status, applied("1" * 40, 1, renewed=False)),
        )
        await store.commit(Transaction((), puts))
        await eventually(lambda: any(text.startswith("1" * 12) for text in said))
        etcd.pause()
        await eventually(lambda: any("etcd does not answer" in text for text in said), 20)
        etcd.resume()
        await eventually(lambda: "etcd answers again" in said, 20)
        before = len(said)
        await store.commit(Transaction((), (Put(KEYS.status, applied("1" * 40, 9, renewed=True)),)))
        receipt = Receipt("one", "east", "all", "2" * 40, rfc3339(START), live_digest="e")
        news = (Put(KEYS.receipt("east", "one"), receipt.encode()),)
        await store.commit(Transaction((), (*news, Put(KEYS.status, applied("2" * 40, 20, renewed=False, digest="e")))))
        await eventually(lambda: len(said) > before)
        assert [text[:12] for text in said[before:]] == ["2" * 12]
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        await store.aclose()
