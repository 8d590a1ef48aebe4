"""A member of a project under the platform of `policies-example/`, which `regops dev` starts with and many copy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio
from fixtures.etcd import EtcdServer
from fixtures.pages import Browser
from fixtures.replicas import Replica, open_world
from fixtures.tokens import token

from api.app import page_routes, routes
from api.envelope import OPEN

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLE: Final = Path(__file__).parents[2] / "policies-example" / "policies"
MEMBER: Final = token(sub="ann", project="billing")
ADMIN_ONLY: Final = {"/audit"}
QUERIES: Final = {"/trace": "?policy=billing"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer) -> AsyncIterator[Replica]:
    """Live and enforced is the example; its OPA authorizes."""
    files = [file for file in EXAMPLE.rglob("*") if file.is_file() and not file.name.endswith("_test.rego")]
    policies = {file.relative_to(EXAMPLE).as_posix(): file.read_bytes() for file in files}
    async with (
        open_world(tmp_path_factory.mktemp("example"), etcd_server, policies) as world,
        world.replica() as replica,
    ):
        await replica.get("/policies", Policy_Min_Commit=world.remote.head)
        yield replica


@pytest_asyncio.fixture(loop_scope="module")
async def member(replica: Replica) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        browser = Browser(replica, http)
        await browser.log_in(MEMBER)
        yield browser


def reading() -> list[str]:
    """Every route that only reads and asks who it is, of the API and of the page, with the member's own project."""
    paths = {route.path for route in (*routes(), *page_routes()) if route.method == "GET"}
    asked = {path for path in paths - OPEN - ADMIN_ONLY if "platform" not in path and path not in {"/login", "/events"}}
    named = (path.replace("{project}", "billing").replace("{version}", "1") for path in asked)
    return sorted(f"{path}{QUERIES.get(path, '')}" for path in named if "{" not in path)


@pytest.mark.parametrize("path", reading())
async def test_a_member_reads_what_the_api_shows_members(replica: Replica, member: Browser, path: str) -> None:
    """The shipped platform refused members the events, the history, traces and versions, so that their page did not
    follow, and half of the commands did not work for them."""
    if path == "/" or path.startswith("/ui/"):
        assert (await member.get(path)).status == 200
        return
    assert (await replica.get(path, bearer=MEMBER)).status == 200
    assert (await replica.call("HEAD", path, bearer=MEMBER)).status == 200


async def test_a_member_follows_the_stream_with_a_token_and_with_the_pages_cookie(
    replica: Replica, member: Browser
) -> None:
    async with replica.events(bearer=MEMBER) as events:
        assert (await anext(events))[0] == "status"
    async with member.http.get(f"{replica.url}/events") as stream:
        assert (stream.status, stream.content_type) == (200, "text/event-stream")


async def test_a_member_is_refused_the_platform_other_projects_and_the_audit_trail(
    replica: Replica, member: Browser
) -> None:
    for path in ("/policies/platform", "/policies/orders", "/status/policies/orders", "/trace?policy=orders", "/audit"):
        assert (await replica.get(path, bearer=MEMBER)).status == 403, path
    for path in ("/ui/policies/platform", "/ui/policies/projects/orders"):
        assert (await member.get(path)).status == 403, path


REFUND = (
    '{"claims": {"sub": "ann", "roles": ["billing_agent"], "project": "billing"}, "action": "refund",'
    ' "refund": {"amount": 40, "currency": "EUR", "age_days": %d, "sold_by": "bob"}}'
)


@pytest.mark.parametrize(("days", "says"), [(20, "true"), (90, "false")])
async def test_a_member_tries_a_decision_of_its_own_project(member: Browser, days: int, says: str) -> None:
    """It is sent as a form, and forms are POSTs: the platform was asked about a write, and refused it."""
    path = "/ui/policies/projects/billing"
    mark = (await member.get(path)).mark
    page = await member.post(path, {"mark": mark, "rule": "authz/allow", "input": REFUND % days})
    assert page.status == 200
    assert re.search(r"<code>projects/billing/authz/allow</code> is</p>\s*<pre[^>]*><code>(\w+)", page.text)[1] == says  # type: ignore[index]
    assert "Decided by commit <code>1</code>" in page.text
