"""The status page while etcd or OPA is away, and under a platform that says no: what is not known is said so."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from fixtures.agents import Agent, ago
from fixtures.etcd import EtcdServer, eventually
from fixtures.pages import Browser
from fixtures.replicas import Replica, World, open_world

from reconciler.adapters.etcd import EtcdStore

PLATFORM = """package platform.authz

import rego.v1

allow := false if {
	input.method in {"GET", "HEAD"}
	input.path[0] == "policies"
	input.path[1] == "hidden"
}

allow := false if input.path == ["ui", "policies", "projects", "unseen"]
"""
POLICIES = {
    "platform/rego.rego": PLATFORM.encode(),
    **{
        f"projects/{name}/rego.rego": f"package projects.{name}\n\nx := 1\n".encode()
        for name in ("a", "hidden", "unseen")
    },
}


@pytest.fixture
async def world(tmp_path: Path, etcd: EtcdServer) -> AsyncIterator[World]:
    async with open_world(tmp_path, etcd, POLICIES) as world:
        yield world


@pytest.fixture
async def replica(world: World) -> AsyncIterator[Replica]:
    async with world.replica() as replica:
        await replica.get("/policies", Policy_Min_Commit=world.remote.head)
        yield replica


@pytest.fixture
async def admin(replica: Replica) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        browser = Browser(replica, http)
        await browser.log_in(replica.admin)
        yield browser


async def test_what_the_platform_refuses_by_the_api_is_not_shown_on_the_page(replica: Replica, admin: Browser) -> None:
    """The platform was asked about the page's own path only: who refused `GET policies/hidden` showed its text."""
    assert (await replica.get("/policies/hidden")).status == 403
    for name, status in (("a", 200), ("hidden", 403), ("unseen", 403)):
        path = f"/ui/policies/projects/{name}"
        assert (await admin.get(path)).status == status, name
        mark = (await admin.get("/")).mark
        assert (await admin.post(path, {"mark": mark, "rule": "x", "input": "{}"})).status == status, name


async def test_while_etcd_is_away_each_page_says_that_what_it_shows_is_old(
    world: World, admin: Browser, etcd: EtcdServer
) -> None:
    """The history showed its old log as if it were new, and the list of OPAs that no agent had ever reported; then
    that list was gone, and "0 of 1" stood beside it in red."""
    store = EtcdStore([etcd.endpoint])
    agent = Agent(world, store, "one")
    await agent.live()
    await agent.tell(world.remote.head, ago(5))
    await store.aclose()
    for path in ("/", "/ui/fleet", "/ui/history", "/ui/policies"):
        assert 'class="notice"' not in (await admin.get(path)).text, path
    etcd.stop()

    async def away() -> bool:
        return "etcd cannot be read" in (await admin.get("/")).text

    await eventually(away, 20)
    says = {
        "/": "what the OPAs enforce is not known here",
        "/ui/fleet": "what the OPAs enforce is not known here",
        "/ui/history": "these are the passes that this server last knew of",
        "/ui/policies": "this is what was live when it was read last",
        "/ui/policies/projects/a": "this is what was live when it was read last",
    }
    for path, notice in says.items():
        page = await admin.get(path)
        assert (page.status, notice in page.text) == (200, True), path
        assert "No agent has reported yet" not in page.text, path
        assert "Synced" not in page.text.replace("OutOfSync", ""), path
    for path in ("/", "/ui/fleet", "/ui/policies/projects/a"):
        page = await admin.get(path)
        assert "0 of 1" not in page.text, "nobody can say that it is none"
        row = re.sub("<[^>]+>", " ", page.text.partition('<th scope="row">one</th>')[2].partition("</tr>")[0])
        assert f"unknown; last {world.remote.head[:10]}" in " ".join(row.split()), path
        assert ("not known now" in row, "silent" in row) == (True, False), path
    assert "? of 1" in (await admin.get("/")).text
    history = (await admin.get("/ui/history")).text
    assert (world.remote.head[:10] in history, "newest pass, " in history) == (True, True)


async def test_while_opa_is_away_the_page_says_so_and_a_trial_too(world: World, admin: Browser) -> None:
    await world.opa.stop()

    async def away() -> bool:
        return (await admin.get("/")).status == 503

    await eventually(away)
    page = await admin.get("/ui/policies/projects/a")
    assert (page.status, "Out of reach" in page.text) == (503, True)
    assert "the OPA that authorizes requests does not answer" in page.text
    platform = await admin.get("/ui/policies/platform")
    assert platform.status == 200, "an admin can always read it"
    tried = await admin.post("/ui/policies/platform", {"mark": platform.mark, "rule": "authz/allow", "input": "{}"})
    assert (tried.status, "does not answer within 2 s" in tried.text) == (503, True)
