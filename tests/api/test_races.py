"""Many writers on two replicas: the answers of each round could have been given one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
import pytest_asyncio
from fixtures.replicas import Answer, Replica, World
from linearizable import Operation, Version, is_linearizable

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUNDS = 200
WRITERS = 32
READERS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas(world: World, replica: Replica) -> AsyncIterator[tuple[Replica, Replica]]:
    async with world.replica() as second:
        yield replica, second


async def write(replica: Replica, expected: str | None, word: str) -> Operation:
    began = monotonic()
    headers = {"If_None_Match": "*"} if expected is None else {"If_Match": expected}
    answer = await replica.put("raced", word, query="?wait=none", **headers)
    ended = monotonic()
    if answer.status in {200, 201}:
        return Operation("write", began, ended, expected, answer.etag)
    assert (answer.status, answer.code) == (409, "conflict"), answer
    return Operation("refused", began, ended, expected)


async def read(replica: Replica, commit: str) -> Operation:
    """A read that must see at least this commit; both replicas' reads count."""
    began = monotonic()
    answer = await replica.get("/policies/raced", Policy_Min_Commit=commit)
    assert answer.status == 200, answer
    return Operation("read", began, monotonic(), made=answer.etag)


async def test_of_32_writers_with_one_version_exactly_one_wins_in_each_of_200_rounds(
    replicas: tuple[Replica, Replica],
) -> None:
    """Half of the writers on each replica; reads ask for the commit of the round before, on both."""
    etag: Version = None
    last: Answer | None = None
    commits = set()
    for turn in range(ROUNDS):
        writes = [write(replicas[i % 2], etag, f"{turn}-{i}") for i in range(WRITERS)]
        history = await asyncio.gather(*writes)
        winners = [operation for operation in history if operation.kind == "write"]
        assert len(winners) == 1, f"round {turn}: {len(winners)} writers won"
        assert is_linearizable(history, etag), f"round {turn}: {history}"
        etag = winners[0].made
        last = await replicas[turn % 2].get("/policies/raced?ref=head")
        assert last.etag == etag
        commits.add(last.commit)
        if turn % 20 == 0:
            reads = await asyncio.gather(*(read(replicas[i % 2], last.commit) for i in range(READERS)))
            assert {operation.made for operation in reads} == {etag}
    assert len(commits) == ROUNDS


async def test_reads_after_ones_own_commit_are_linearizable_beside_writers_on_the_other_replica(
    replicas: tuple[Replica, Replica],
) -> None:
    """A chain of writers, each of whom reads what it changes on the other replica, at the commit of its own write."""
    history: list[Operation] = []
    first = await replicas[0].put("chained", "start")

    async def chain(replica: Replica, other: Replica, name: str) -> None:
        etag, commit = first.etag, first.commit
        for i in range(12):
            began = monotonic()
            answer = await replica.put("chained", f"{name}-{i}", query="?wait=none", If_Match=etag)
            if answer.status == 200:
                history.append(Operation("write", began, monotonic(), etag, answer.etag))
                commit = answer.commit
            else:
                assert answer.code == "conflict", answer
                history.append(Operation("refused", began, monotonic(), etag))
                commit = (await replica.get("/policies/chained?ref=head")).commit
            seen = await other.get("/policies/chained", Policy_Min_Commit=commit)
            etag = seen.etag

    pair = replicas
    await asyncio.gather(*(chain(pair[i % 2], pair[1 - i % 2], f"w{i}") for i in range(4)))
    assert sum(operation.kind == "write" for operation in history) >= 12
    assert is_linearizable(history, first.etag)


async def test_writers_of_different_policies_all_win_and_share_pushes(
    replicas: tuple[Replica, Replica],
) -> None:
    answers = await asyncio.gather(*(replicas[i % 2].put(f"own-{i}", query="?wait=none") for i in range(WRITERS)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.commit for answer in answers}) == WRITERS
