"""How a plan gets into etcd: in which order, how much at once, and what stands there when it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest
from fakes.source import InMemorySource
from fakes.store import InMemoryStore
from test_focus import KEYS, Reader

from reconciler.applying import AT_ONCE
from reconciler.core.errors import ConflictError, RegopsError, StoreError, UnknownOutcomeError
from reconciler.core.guards import Limits
from reconciler.core.live import decode_live, live_ranges
from reconciler.core.ports import Delete, Fence, Outcome, Put, Transaction
from reconciler.core.records import Applied
from reconciler.reconcile import PassResult, Reconciler
from reconciler.validation import Judge

NAMES = [f"p{number:04}" for number in range(400)]
"""Ten transactions full."""


class Slow(InMemoryStore):
    """Notes its transactions; those of the middle take a few turns of the loop, so that they could overtake."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Transaction] = []
        self.running = self.most = 0
        self.fate: Callable[[int], RegopsError | None] = lambda _number: None

    async def commit(self, transaction: Transaction) -> Outcome:
        self.sent.append(transaction)
        number = len(self.sent)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            removes = any(isinstance(each, Delete) for each in transaction.operations)
            for _ in range(1 if removes else 3 if number % 2 else 12):
                await asyncio.sleep(0)
            if error := self.fate(number):
                raise error
            return await super().commit(transaction)
        finally:
            self.running -= 1


class Leader:
    """A leader on a branch and an etcd in memory."""

    def __init__(self) -> None:
        self.source = InMemorySource()
        self.store = Slow()
        judge = Judge(self.source, Reader())
        limits = Limits(cap=1000, ratio=1.0)
        self.reconciler = Reconciler(self.source, self.store, judge, keyspace=KEYS, limits=limits)
        self.fence = Fence(KEYS.leader, self.store.put(KEYS.leader, b"me"))

    async def run(self) -> PassResult:
        self.store.sent.clear()
        return await self.reconciler.run(self.fence)

    def fill(self) -> None:
        """Ten transactions' worth of policies."""
        self.source.commit({f"policies/projects/{name}/rego.rego": b"odd" for name in NAMES})

    def texts(self) -> dict[str, bytes]:
        return self.store.values(KEYS.policies)

    def wanted(self) -> dict[str, bytes]:
        assert self.source.head is not None
        files = self.source._commits[self.source.head].files
        return {path.replace("policies/", KEYS.policies, 1): text for path, text in files.items()}


@pytest.fixture
def leader() -> Leader:
    return Leader()


def writes(transaction: Transaction, key: str) -> bool:
    return any(isinstance(each, Put) and each.key == key for each in transaction.operations)


async def test_a_large_apply_has_a_few_transactions_under_way_and_ends_with_applied(leader: Leader) -> None:
    leader.fill()
    result = await leader.run()
    assert leader.texts() == leader.wanted()
    assert leader.store.most == AT_ONCE
    sent = leader.store.sent
    assert writes(sent[0], KEYS.applying)
    assert [number for number, each in enumerate(sent) if writes(each, KEYS.applied)] == [len(sent) - 1]
    live = decode_live(KEYS, await leader.store.read(*live_ranges(KEYS)))
    assert (live.applying, live.policies) == (None, result.live.policies)
    for revision in range(live.applied_revision - len(sent) + 1, live.applied_revision + 1):
        assert await leader.reconciler.wrote(revision)
    assert not (await leader.run()).wrote


async def test_deletions_wait_until_all_else_has_succeeded(leader: Leader) -> None:
    leader.fill()
    await leader.run()
    changes = {f"policies/projects/{name}/rego.rego": b"odd 2" for name in NAMES[:200]}
    leader.source.commit({**changes, **{f"policies/projects/{name}": None for name in NAMES[200:]}})
    ended: list[int] = []
    ended_before: list[int] = []

    def note(number: int) -> None:
        if any(isinstance(each, Delete) for each in leader.store.sent[number - 1].operations):
            ended_before.append(len(ended))
        ended.append(number)

    leader.store.fate = note
    await leader.run()
    sent = leader.store.sent
    first = next(n for n, each in enumerate(sent, 1) if any(isinstance(op, Delete) for op in each.operations))
    assert first > AT_ONCE
    assert set(ended[: first - 1]) == set(range(1, first))
    assert min(ended_before) == first - 1
    assert leader.texts() == leader.wanted()


@pytest.mark.parametrize("number", [1, 2, 5, 10])
@pytest.mark.parametrize("kind", [StoreError, UnknownOutcomeError])
async def test_an_apply_that_breaks_off_is_taken_up_where_it_was(
    leader: Leader, number: int, kind: type[RegopsError]
) -> None:
    leader.fill()
    leader.store.fate = lambda sent: kind("lost", reason="Lost") if sent == number else None
    with pytest.raises(kind):
        await leader.run()
    assert leader.store.running == 0, "what was sent has its answer"
    assert len(leader.store.sent) < number + 2 * AT_ONCE
    assert not leader.store.values(KEYS.applied)
    leader.store.fate = lambda _sent: None
    result = await leader.run()
    assert leader.texts() == leader.wanted()
    assert result.live.applying is None
    assert Applied.decode(leader.store.values(KEYS.applied)[KEYS.applied]).changed is None


async def test_of_several_failures_the_one_that_leaves_a_doubt_is_told(leader: Leader) -> None:
    leader.fill()
    fates = {2: StoreError("away", reason="StoreUnavailable"), 3: UnknownOutcomeError("?", reason="UnknownOutcome")}
    leader.store.fate = fates.get
    with pytest.raises(UnknownOutcomeError):
        await leader.run()


async def test_somebody_who_writes_in_between_makes_the_whole_apply_fail(leader: Leader) -> None:
    leader.fill()

    def meddle(number: int) -> None:
        if number == 4:
            leader.store.put(KEYS.applied, b"{}")

    leader.store.fate = meddle
    with pytest.raises(ConflictError):
        await leader.run()
    assert leader.store.values(KEYS.applied)[KEYS.applied] == b"{}"
    leader.store.fate = lambda _number: None
    await leader.run()
    assert leader.texts() == leader.wanted()


async def test_cancelled_in_the_middle_nothing_is_sent_behind_its_back(leader: Leader) -> None:
    leader.fill()
    gate = leader.store.hold("commit")
    gate.set()
    reached = asyncio.Event()

    def stop(number: int) -> None:
        if number == 3:
            gate.clear()
            reached.set()

    leader.store.fate = stop
    running = asyncio.ensure_future(leader.run())
    async with asyncio.timeout(10):
        await reached.wait()
    running.cancel()
    await asyncio.wait([running], timeout=10)
    assert running.cancelled()
    count = len(leader.store.sent)
    gate.set()
    await asyncio.sleep(0)
    assert (len(leader.store.sent), leader.store.running) == (count, 0)
    leader.store.fate = lambda _number: None
    await leader.run()
    assert leader.texts() == leader.wanted()


async def test_a_long_apply_says_how_it_gets_on(
    leader: Leader, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reconciler.applying._PROGRESS_SECONDS", 0.0)
    leader.fill()
    with caplog.at_level(logging.INFO, logger="reconciler.applying"):
        await leader.run()
    done = [getattr(record, "done", 0) for record in caplog.records if record.message == "applying"]
    assert done == sorted(done)
    assert done[-1] == getattr(caplog.records[-1], "of", 0) == len(NAMES)
