"""The same idempotency key gives the same answer, on any replica, also after etcd has forgotten it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fixtures.replicas import Replica, World
from fixtures.tokens import token

from reconciler.core.ports import Delete, Range, Transaction

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def second(world: World) -> AsyncIterator[Replica]:
    async with world.replica() as second:
        yield second


async def forget(world: World) -> None:
    """What a rebuilt etcd knows of idempotency keys: nothing."""
    store = world.store()
    try:
        keys = (await store.read(Range(f"{world.keys.own}idempotency/", prefix=True, keys_only=True))).ranges[0]
        assert keys
        await store.commit(Transaction((), tuple(Delete(kv.key) for kv in keys)))
    finally:
        await store.aclose()


async def test_a_repeated_request_gets_the_first_answer_on_either_replica(
    replica: Replica, second: Replica, world: World
) -> None:
    first = await replica.put("once", Idempotency_Key="k-1")
    head = world.remote.head
    assert first.status == 201
    for other in (replica, second):
        again = await other.put("once", Idempotency_Key="k-1", X_Request_ID="again")
        assert (again.status, again.body, again.etag) == (first.status, first.body, first.etag)
        assert again.headers["Idempotent-Replay"] == "true"
        assert again.headers["X-Request-ID"] == "again"
    assert world.remote.head == head


async def test_another_request_with_the_same_key_is_refused(replica: Replica, second: Replica) -> None:
    assert (await replica.put("other", Idempotency_Key="k-2")).status == 201
    answer = await second.put("other", "second", Idempotency_Key="k-2")
    assert (answer.status, answer.code) == (422, "idempotency_key_reused")


async def test_a_key_belongs_to_its_caller_method_and_path(replica: Replica) -> None:
    assert (await replica.put("mine", Idempotency_Key="k-3")).status == 201
    assert (await replica.put("yours", Idempotency_Key="k-3")).status == 201
    somebody = token(roles=["platform_admin"], sub="somebody")
    answer = await replica.put("mine", bearer=somebody, Idempotency_Key="k-3")
    assert answer.status == 428


async def test_a_refusal_is_kept_too(replica: Replica, second: Replica) -> None:
    first = await replica.put("refused", If_Match='"x"', Idempotency_Key="k-4")
    assert first.status == 409
    await replica.put("refused")
    again = await second.put("refused", If_Match='"x"', Idempotency_Key="k-4")
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["Idempotent-Replay"] == "true"


async def test_two_at_once_run_once_and_both_get_the_answer(replica: Replica, second: Replica, world: World) -> None:
    before = world.remote.head
    answers = await asyncio.gather(*(r.put("twice", Idempotency_Key="k-5") for r in (replica, second) * 4))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.commit for answer in answers}) == 1
    assert sum(answer.headers.get("Idempotent-Replay") == "true" for answer in answers) == 7
    assert world.remote.head != before


async def test_what_etcd_has_lost_is_found_in_the_branch(replica: Replica, second: Replica, world: World) -> None:
    first = await replica.put("lost", data={"a": 1}, Idempotency_Key="k-6")
    await forget(world)
    again = await second.put("lost", data={"a": 1}, Idempotency_Key="k-6")
    assert (again.status, again.etag, again.commit) == (201, first.etag, first.commit)
    assert again.body == first.body
    assert again.headers["Idempotent-Replay"] == "true"
    await forget(world)
    other = await second.put("lost", data={"a": 2}, Idempotency_Key="k-6")
    assert (other.status, other.code) == (422, "idempotency_key_reused")


async def test_what_is_found_in_the_branch_warns_as_the_first_answer_did(replica: Replica, world: World) -> None:
    """The replay had the same commit and another body: its warnings were empty."""
    body = {"rego": "package projects.lostv0\n\nallow { input.x }\n"}
    first = await replica.call("PUT", "/policies/lostv0", body, Idempotency_Key="k-10")
    assert first.body["warnings"]
    await forget(world)
    again = await replica.call("PUT", "/policies/lostv0", body, Idempotency_Key="k-10")
    assert (again.status, again.body) == (first.status, first.body)


async def test_a_deletion_is_found_in_the_branch_too(replica: Replica, second: Replica, world: World) -> None:
    created = await replica.put("lost-deletion")
    first = await replica.call("DELETE", "/policies/lost-deletion", If_Match=created.etag, Idempotency_Key="k-7")
    await forget(world)
    again = await second.call("DELETE", "/policies/lost-deletion", If_Match=created.etag, Idempotency_Key="k-7")
    assert (first.status, again.status, again.commit) == (204, 204, first.commit)


async def test_a_key_of_a_commit_that_regops_did_not_make_proves_nothing(replica: Replica, world: World) -> None:
    await replica.put("forged", Idempotency_Key="k-8")
    await forget(world)
    world.remote.commit({"README.md": b"x"}, message="Create\n\nIdempotency-Key: 0000.1111\n")
    answer = await replica.put("forged2", Idempotency_Key="k-9")
    assert answer.status == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "ä"])
async def test_a_key_that_is_none_is_refused(replica: Replica, key: str) -> None:
    answer = await replica.put("keys", Idempotency_Key=key)
    assert (answer.status, answer.code) == (400, "validation_error")
