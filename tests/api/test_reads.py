"""GET: what is live, who may see it, and what need not be sent again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fixtures.etcd import eventually
from fixtures.replicas import Replica, World, rego
from fixtures.tokens import token

from api.app import routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALPHA = token(sub="ann", project="alpha")
BOTH = token(sub="bob", project=["alpha", "beta"])
NOBODY = token(sub="eve", project=...)


async def test_the_whole_fleet_of_policies_is_listed_page_by_page(replica: Replica) -> None:
    first = await replica.get("/policies?limit=2")
    assert [item["policy"] for item in first.body["items"]] == ["platform", "projects/alpha"]
    second = await replica.get(f"/policies?limit=2&after={first.body['next']}")
    assert [item["policy"] for item in second.body["items"]] == ["projects/beta"]
    assert second.body["next"] is None
    item = second.body["items"][0]
    assert item["etag"] == (await replica.get("/policies/beta")).etag
    assert item["held"] is False


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1" * 5000])
async def test_a_limit_that_is_none_is_named(replica: Replica, limit: str) -> None:
    """Python refuses to read a number of 5000 digits, and the answer was 500."""
    answer = await replica.get(f"/policies?limit={limit}")
    assert (answer.status, answer.code) == (400, "validation_error")


async def test_an_unchanged_policy_is_not_sent_again(replica: Replica) -> None:
    first = await replica.get("/policies/alpha")
    for header in (first.etag, f"W/{first.etag}", f'"x", {first.etag}', "*"):
        answer = await replica.get("/policies/alpha", If_None_Match=header)
        assert (answer.status, answer.body, answer.etag) == (304, None, first.etag)
    assert (await replica.get("/policies/alpha", If_None_Match='"x"')).status == 200


async def test_a_member_reads_its_projects_and_nothing_else(replica: Replica) -> None:
    assert (await replica.get("/policies/alpha", bearer=ALPHA)).status == 200
    assert (await replica.get("/policies/beta", bearer=BOTH)).status == 200
    for path in ("/policies/beta", "/policies/unknown", "/policies/platform"):
        answer = await replica.get(path, bearer=ALPHA)
        assert (answer.status, answer.code) == (403, "forbidden")
    listed = await replica.get("/policies", bearer=BOTH)
    assert [item["policy"] for item in listed.body["items"]] == ["projects/alpha", "projects/beta"]
    assert (await replica.get("/policies", bearer=NOBODY)).body["items"] == []


async def test_only_an_admin_writes(replica: Replica) -> None:
    for method in ("PUT", "PATCH", "DELETE"):
        answer = await replica.call(method, "/policies/alpha", {"rego": rego("alpha")}, bearer=ALPHA)
        assert (answer.status, answer.code) == (403, "forbidden")
    assert (await replica.call("POST", "/admin/sync", bearer=ALPHA)).status == 403
    assert (await replica.call("POST", "/policies/alpha:validate", {"rego": "x"}, bearer=ALPHA)).status == 200


async def test_without_a_token_only_the_open_routes_answer(replica: Replica) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"):
        assert (await replica.get(path, bearer="")).status == 200
    for path in ("/status", "/policies", "/policies/alpha", "/nowhere"):
        answer = await replica.get(path, bearer="")
        assert (answer.status, answer.code) == (401, "unauthorized")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_the_status_names_to_a_member_only_what_it_may_read(replica: Replica, world: World) -> None:
    world.remote.commit({f"policies/projects/{name}/rego.rego": b"broken" for name in ("gamma", "delta")})

    async def held() -> bool:
        return bool((await replica.get("/status")).body["policies"]["held"] == 2)

    await eventually(held, 10)
    everything = await replica.get("/status")
    assert {item["policy"] for item in everything.body["held"]} == {"projects/gamma", "projects/delta"}
    mine = await replica.get("/status", bearer=token(project="gamma"))
    assert {item["policy"] for item in mine.body["held"]} == {"projects/gamma"}
    assert mine.body["policies"] == everything.body["policies"]
    assert "delta" not in str(mine.body)
    world.remote.commit({f"policies/projects/{name}": None for name in ("gamma", "delta")})


@pytest_asyncio.fixture(loop_scope="module")
async def second(world: World) -> AsyncIterator[Replica]:
    async with world.replica(reconciler=False) as second:
        yield second


async def test_ones_own_write_is_read_on_another_replica(replica: Replica, second: Replica) -> None:
    written = await replica.put("mine", query="?wait=none")
    read = await second.get("/policies/mine", Policy_Min_Commit=written.commit)
    assert (read.status, read.etag) == (200, written.etag)


async def test_a_write_on_a_replica_that_does_not_lead_is_live_at_once(replica: Replica, second: Replica) -> None:
    written = await second.put("theirs")
    assert (written.status, written.headers["Policy-Sync"]) == (201, "live")
    assert (await replica.get("/policies/theirs")).etag == written.etag


async def test_a_commit_that_does_not_come_is_waited_for_in_vain_and_said_so(replica: Replica) -> None:
    await replica.call("POST", "/admin/suspend", {})
    written = await replica.put("late", query="?wait=none")
    answer = await replica.get("/policies/alpha?timeout=0.2", Policy_Min_Commit=written.commit)
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    await replica.call("POST", "/admin/resume")
    for commit in ("abc", "1" * 40):
        answer = await replica.get("/policies/alpha", Policy_Min_Commit=commit)
        assert (answer.status, answer.code) == (400, "validation_error")


async def test_every_policy_of_the_openapi_document_has_a_route_and_the_other_way_round(replica: Replica) -> None:
    document = (await replica.get("/openapi.json")).body
    known = {(route.method.lower(), route.path) for route in routes()} | {("get", "/metrics")}
    assert {(method, path) for path, methods in document["paths"].items() for method in methods} == known
    page = await replica.get("/docs")
    assert "PUT" in page.body
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep"),
        pytest.param(b'{"a": NaN}', id="nan"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', id="bom"),
        pytest.param('{"a": 1}'.encode("utf-16"), id="utf-16"),
        pytest.param(b'{"a": 1, "a": 2}', id="twice"),
        pytest.param(b'{"a": "\\ud800"}', id="half a pair"),
        pytest.param(b"[1]", id="list"),
        pytest.param(b"{", id="torn"),
    ],
)
async def test_whatever_lies_at_the_head_can_be_read(replica: Replica, world: World, data: bytes) -> None:
    """Of some data the answer was no JSON (NaN, a byte order mark, UTF-16), of deep data it was 500; so nobody could
    read by the API what was to be put right by it."""
    text = rego("broken")
    folder = "policies/projects/broken"
    world.remote.commit({f"{folder}/rego.rego": text.encode(), f"{folder}/data.json": data})
    answer = await replica.get("/policies/broken?ref=head")
    assert (answer.status, answer.body) == (200, {"rego": text, "data_text": data.decode("utf-8", "replace")})
