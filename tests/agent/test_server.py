"""The agent's HTTP face, asked as OPA asks."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from fixtures.etcd import eventually
from prometheus_client import CollectorRegistry

from reconciler.agent.bundle import Bundle
from reconciler.agent.server import BUNDLE_TYPE, BundleServer
from reconciler.agent.witness import Identity, Offer, Witness
from reconciler.metrics import AgentMetrics

ONE, TWO = "1" * 40, "2" * 40
OPA = {"Prefer": "modes=snapshot,delta;wait=30"}


class Asker:
    """A server, and a client that asks it over one connection."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.witness = Witness(
            Identity("east", "one", "all"),
            AgentMetrics(registry),
            hold=30,
            clock=time.monotonic,
            changed=lambda: None,
            stale=lambda: False,
        )
        self.server = BundleServer(self.witness, registry, hold=30, stale=lambda: False)
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))

    async def ask(self, etag: str | None = None, **headers: str) -> tuple[int, str | None, bytes]:
        if etag is not None:
            headers["If-None-Match"] = etag
        async with self.session.get(f"{self.url}/bundles/regops", headers=headers) as answer:
            return answer.status, answer.headers.get("ETag"), await answer.read()

    def asking(self, etag: str | None = None, **headers: str) -> asyncio.Task[tuple[int, str | None, bytes]]:
        return asyncio.create_task(self.ask(etag, **headers))

    async def asked(self, times: int = 1) -> None:
        """Until so many polls have arrived."""
        await eventually(lambda: self.witness.proof.poll >= times)

    def offer(self, etag: str, body: bytes = b"bytes", commit: str = ONE, live: str | None = None) -> None:
        self.server.set_offer(Offer(Bundle(etag, commit, body), commit, live_digest=live))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    asker = Asker()
    await asker.server.start("127.0.0.1", 0)
    yield asker
    await asker.server.stop()
    await asker.session.close()


async def test_a_poll_is_held_until_there_is_something_new(asker: Asker) -> None:
    asker.offer('"a"')
    assert await asker.ask(**OPA) == (200, '"a"', b"bytes")
    poll = asker.asking('"a"', **OPA)
    await asker.asked(2)
    asker.offer('"b"', b"other")
    assert await poll == (200, '"b"', b"other")


async def test_a_poll_is_never_answered_before_its_time_when_nothing_is_new(asker: Asker) -> None:
    """OPA asks again without a delay: an early 304 makes thousands of requests a second of it."""
    asker.offer('"a"')
    begun = time.monotonic()
    assert await asker.ask('"a"', Prefer="modes=snapshot,delta;wait=1") == (304, '"a"', b"")
    assert 0.85 < time.monotonic() - begun < 3


async def test_a_poll_carries_the_type_that_keeps_opa_in_the_long_poll(asker: Asker) -> None:
    asker.offer('"a"')
    async with asker.session.get(f"{asker.url}/bundles/regops", headers=OPA) as answer:
        assert answer.headers["Content-Type"] == BUNDLE_TYPE


async def test_a_poll_before_there_is_anything_is_held_too(asker: Asker) -> None:
    poll = asker.asking(**OPA)
    await asker.asked()
    asker.offer('"a"')
    assert (await poll)[0] == 200


async def test_who_does_not_wait_is_answered_at_once(asker: Asker) -> None:
    assert (await asker.ask())[0] == 503
    asker.offer('"a"')
    assert (await asker.ask())[0] == 200
    assert (await asker.ask(""))[0] == 200
    assert (await asker.ask('"a"'))[0] == 304


async def test_a_person_who_looks_is_no_opa(asker: Asker) -> None:
    asker.offer('"a"')
    await asker.ask(**OPA)
    poll = asker.asking('"a"', **OPA)
    await asker.asked(2)
    assert asker.witness.receipt().enforced_revision == ONE
    assert (await asker.ask())[0] == 200
    assert asker.witness.receipt().enforced_revision == ONE
    poll.cancel()


async def test_a_receipt_tells_which_of_a_commits_contents_is_proven(asker: Asker) -> None:
    """It named the commit alone, which is the same before and after deletions that somebody confirms."""
    asker.offer('"a"', live="before")
    await asker.ask(**OPA)
    poll = asker.asking('"a"', **OPA)
    await asker.asked(2)
    asker.offer('"b"', live="after")
    assert (await poll)[1] == '"b"'
    receipt = asker.witness.receipt()
    assert (receipt.enforced_revision, receipt.live_digest) == (None, None), "it may still be the one or the other"
    poll = asker.asking('"b"', **OPA)
    await asker.asked(3)
    assert asker.witness.receipt().proves(ONE, "after")
    assert not asker.witness.receipt().proves(ONE, "before")
    asker.offer('"b"', live="elsewhere")
    assert asker.witness.receipt().proves(ONE, "elsewhere"), "what changed is outside of the scope"
    poll.cancel()


async def test_large_bundles_arrive_whole(asker: Asker) -> None:
    body = bytes(range(256)) * 20_000
    asker.offer('"a"', body)
    assert await asker.ask(**OPA) == (200, '"a"', body)


async def test_what_was_refused_is_held_back_until_there_is_other_content(asker: Asker) -> None:
    asker.offer('"a"')
    await asker.ask(**OPA)
    asker.offer('"bad"', commit=TWO)
    assert (await asker.ask('"a"', **OPA))[1] == '"bad"'
    poll = asker.asking('"a"', **OPA)
    await asker.asked(3)
    assert asker.witness.receipt().enforced_revision == ONE
    assert asker.witness.receipt().error is not None
    assert not poll.done()
    asker.offer('"c"')
    assert (await poll)[1] == '"c"'
    assert asker.witness.receipt().error is None


async def test_the_status_of_a_new_process_lifts_the_refusal(asker: Asker) -> None:
    async def tell(opa: str) -> None:
        async with asker.session.post(f"{asker.url}/status", json={"labels": {"id": opa}}) as answer:
            assert answer.status == 200

    asker.offer('"bad"')
    await asker.ask(**OPA)
    await tell("opa-1")
    poll = asker.asking(**OPA)
    await asker.asked(2)
    await tell("opa-1")
    assert not poll.done()
    await tell("opa-2")
    assert (await poll)[1] == '"bad"'


async def test_a_status_of_several_megabytes_is_taken_and_nonsense_is_not(asker: Asker) -> None:
    for body, expected in (
        (b'{"metrics": "' + b"x" * (4 << 20) + b'"}', 200),
        (b"[]", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
    ):
        async with asker.session.post(f"{asker.url}/status", data=io.BytesIO(body)) as answer:
            assert answer.status == expected


async def test_stopping_ends_pending_polls_at_once(asker: Asker) -> None:
    asker.offer('"a"')
    polls = [asker.asking('"a"', **OPA), asker.asking('"a"', **OPA)]
    await asker.asked(2)
    begun = time.monotonic()
    await asker.server.stop()
    assert {status for status, _, _ in await asyncio.gather(*polls)} == {304}
    assert time.monotonic() - begun < 1


async def test_a_dropped_poll_is_noticed(asker: Asker) -> None:
    asker.offer('"a"')
    poll = asker.asking('"a"', **OPA)
    await asker.asked()
    poll.cancel()
    await eventually(lambda: asker.witness.proof.dropped_at is not None)


async def test_ready_is_who_has_something_to_serve(asker: Asker) -> None:
    async def get(path: str) -> tuple[int, str]:
        async with asker.session.get(f"{asker.url}{path}") as answer:
            return answer.status, await answer.text()

    assert (await get("/healthz"))[0] == 200
    assert (await get("/readyz"))[0] == 503
    asker.offer('"a"')
    status, text = await get("/readyz")
    assert status == 200
    assert ONE in text
    await asker.ask(**OPA)
    assert "regops_agent_bundles_sent_total 1.0" in (await get("/metrics"))[1]
