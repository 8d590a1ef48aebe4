"""The status page over HTTP: logging in, what it takes from other sites (nothing), and what it shows to whom."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.test_utils import make_mocked_request
from fixtures.agents import Agent, ago
from fixtures.etcd import eventually
from fixtures.pages import Browser, Page
from fixtures.replicas import Replica, World, rego
from fixtures.tokens import token

from api.ui.frame import page_aside
from reconciler.adapters.etcd import EtcdStore
from reconciler.core.ports import Delete, Put, Transaction
from reconciler.core.records import Receipt
from reconciler.settings import PageSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def stranger(replica: Replica) -> AsyncIterator[Browser]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        yield Browser(replica, http)


@pytest_asyncio.fixture(loop_scope="module")
async def admin(stranger: Browser, replica: Replica) -> Browser:
    await stranger.log_in(replica.admin)
    return stranger


@pytest_asyncio.fixture(loop_scope="module")
async def store(world: World) -> AsyncIterator[EtcdStore]:
    opened = world.store()
    yield opened
    await opened.aclose()


async def written(replica: Replica, project: str, text: str, data: Any = None) -> None:
    before = await replica.get(f"/policies/{project}?ref=head")
    condition = {"If_Match": before.etag} if before.status == 200 else {}
    body = {"rego": text} | ({} if data is None else {"data": data})
    answer = await replica.call("PUT", f"/policies/{project}?wait=live", body, **condition)
    assert answer.headers["Policy-Sync"] == "live", answer.body


# --- logging in ------------------------------------------------------------------------------------------------------


async def test_who_is_not_logged_in_is_led_to_the_form_and_back(stranger: Browser, replica: Replica) -> None:
    led = await stranger.get("/ui/policies?q=al&page=1")
    assert (led.status, led.headers["Location"]) == (303, "/login?next=%2Fui%2Fpolicies%3Fq%3Dal%26page%3D1")
    form = await stranger.get(led.headers["Location"])
    assert 'value="/ui/policies?q=al&amp;page=1"' in form.text
    fields = {"mark": form.mark, "token": f"  Bearer {replica.admin}\n", "next": "/ui/policies?q=al&page=1"}
    done = await stranger.post("/login", fields)
    assert (done.status, done.headers["Location"]) == (303, "/ui/policies?q=al&page=1")
    assert (await stranger.get(done.headers["Location"])).status == 200


async def test_the_cookie_is_for_this_site_alone_and_no_script_reads_it(stranger: Browser, replica: Replica) -> None:
    form = await stranger.get("/login")
    done = await stranger.post("/login", {"mark": form.mark, "token": replica.admin})
    cookie = done.cookies["regops_session"]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["domain"]) == (True, "Strict", "/", "")
    assert 0 < int(cookie["max-age"]) <= 3600
    secure = await stranger.get("/login", X_Forwarded_Proto="https")
    over = {"X_Forwarded_Proto": "https", "Cookie": f"__Host-regops_login={secure.mark}"}
    done = await stranger.post("/login", {"mark": secure.mark, "token": replica.admin}, **over)
    cookie = done.cookies["__Host-regops_session"]
    assert (cookie["secure"], cookie["httponly"], cookie["path"]) == (True, True, "/")


ELSEWHERE = ["https://x.example", "//x.example", "/\\x.example", "/ui//x", "javascript:x", "/ui/\r\nX: x", "/docs"]


@pytest.mark.parametrize("target", ELSEWHERE)
async def test_a_login_leads_to_no_other_place(stranger: Browser, replica: Replica, target: str) -> None:
    form = await stranger.get("/login")
    done = await stranger.post("/login", {"mark": form.mark, "token": replica.admin, "next": target})
    assert done.status == 303
    assert done.headers["Location"] == "/"


async def test_a_token_that_does_not_count_is_told_why_and_never_repeated(stranger: Browser) -> None:
    old = token(roles=["platform_admin"], sub="late", exp=1)
    form = await stranger.get("/login")
    wrong = {old: "has expired", "rubbish": "does not count", "": "Paste a token", "x" * 4000: "4000 characters"}
    for given, says in wrong.items():
        refused = await stranger.post("/login", {"mark": form.mark, "token": given})
        assert refused.status in {400, 401}, refused.text
        assert says in refused.text, refused.text
        assert not given or given not in refused.text
        assert not refused.cookies.get("regops_session")
    assert (await stranger.get("/")).status == 303


async def test_a_session_that_is_over_leads_to_the_form_with_a_word(stranger: Browser) -> None:
    old = token(roles=["platform_admin"], sub="late", exp=1)
    led = await stranger.get("/", Cookie=f"regops_session={old}")
    assert (led.status, led.headers["Location"]) == (303, "/login")
    assert "Your session is over" in (await stranger.get("/login", Cookie=f"regops_session={old}")).text


async def test_a_log_out_takes_the_cookie_away(admin: Browser) -> None:
    page = await admin.get("/")
    done = await admin.post("/logout", {"mark": page.mark})
    assert (done.status, done.headers["Location"]) == (303, "/login")
    assert (await admin.get("/")).status == 303


async def test_a_ticket_logs_in_and_leaves_no_trace(world: World, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "tickets.json"
    admin = token(roles=["platform_admin"], sub="root")
    file.write_text(json.dumps({"good-ticket": admin}))
    async with (
        world.replica(reconciler=False, page=PageSettings(tickets_file=file)) as replica,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http,
    ):
        browser = Browser(replica, http)
        wrong = await browser.get("/login?ticket=bad-ticket")
        assert (wrong.status, "not known here" in wrong.text) == (401, True)
        done = await browser.get("/login?ticket=good-ticket")
        assert (done.status, done.headers["Location"]) == (303, "/")
        assert (await browser.get("/")).status == 200
    assert "good-ticket" not in capfd.readouterr().err


# --- what other sites cannot do --------------------------------------------------------------------------------------


async def test_forms_of_other_sites_are_refused(admin: Browser) -> None:
    mark = (await admin.get("/")).mark
    host = admin.url.removeprefix("http://")
    for fields, headers in (
        ({}, {}),
        ({"mark": "0" * 64}, {}),
        ({"mark": mark}, {"Origin": "https://evil.example"}),
        ({"mark": mark}, {"Origin": "null"}),
        ({"mark": mark}, {"Sec_Fetch_Site": "cross-site"}),
        ({"mark": mark}, {"Sec_Fetch_Site": "same-site"}),
    ):
        refused = await admin.post("/logout", fields, **headers)
        assert (refused.status, "not sent by this page" in refused.text) == (403, True), (fields, headers)
    assert (await admin.get("/")).status == 200
    form = await admin.get("/login")
    assert (await admin.post("/login", {"mark": "x", "token": "y"})).status == 403
    assert form.status == 200
    fine = await admin.post("/logout", {"mark": mark}, Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
    assert fine.status == 303


async def test_the_cookie_counts_for_the_page_and_nowhere_else(admin: Browser, replica: Replica) -> None:
    assert (await admin.get("/status")).status == 401
    assert (await admin.get("/policies/alpha")).status == 401
    assert (await admin.post("/admin/sync", {})).status == 401
    assert (await admin._send("PUT", "/policies/alpha", {}, json={"rego": "x"})).status == 401
    assert (await admin._send("DELETE", "/policies/alpha", {})).status == 401
    async with admin.http.get(f"{replica.url}/events") as stream:
        assert stream.status == 200


@pytest.mark.parametrize("path", ["/", "/login", "/ui/policies", "/ui/policies/platform", "/ui/nothing", "/ui/fleet"])
async def test_every_page_forbids_what_it_does_not_need(admin: Browser, path: str) -> None:
    page = await admin.get(path)
    policy = page.headers["Content-Security-Policy"]
    for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'self'"):
        assert rule in policy
    assert "unsafe" not in policy
    assert (page.headers["Cache-Control"], page.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page.text), "nothing inline"
    assert not re.search(r'(?:src|href|action)="(?!/|#|")', page.text), "nothing from outside"


async def test_assets_are_kept_for_ever_under_their_content(stranger: Browser) -> None:
    form = await stranger.get("/login")
    assets = re.findall(r'"(/ui/assets/[^"]+)"', form.text)
    assert len(assets) == 3
    for address in assets:
        found = await stranger.get(address)
        assert (found.status, "immutable" in found.headers["Cache-Control"]) == (200, True)
    assert (await stranger.get("/ui/assets/page.0000000000000000.css")).status == 404
    assert (await stranger.get("/ui/assets/..%2fframe.py")).status == 404


# --- what it shows ---------------------------------------------------------------------------------------------------


async def test_what_is_held_stands_there_with_its_place(admin: Browser, replica: Replica, world: World) -> None:
    await written(replica, "broken", rego("broken"))
    world.remote.commit({"policies/projects/broken/rego.rego": b"package projects.broken\n\noops("})

    async def held() -> bool:
        return "projects/broken/rego.rego:3" in (await admin.get("/")).text.replace("</code>", "")

    await eventually(held)
    page = await admin.get("/ui/policies/projects/broken")
    assert "the version in Git does not go live" in page.text
    difference = page.text.partition('<h2 id="difference">')[2]
    assert 'class="plus">+oops(' in difference, "what is broken, and not what the live version once changed"
    assert 'class="minus">-mark' in difference
    assert '<option value="live" selected>' in difference
    asked = await admin.get("/ui/policies/projects/broken?to=live")
    assert "oops(" not in asked.text.partition('<h2 id="difference">')[2], "who asks for another one gets it"
    assert page.text.index("projects/broken") < (await admin.get("/ui/policies")).text.index("projects/broken")
    listed = (await admin.get("/ui/policies")).text
    assert listed.index("projects/broken") < listed.index("/ui/policies/platform"), "held ones first"
    world.remote.commit({"policies/projects/broken/rego.rego": rego("broken", "mended").encode()})


async def test_nothing_that_somebody_wrote_becomes_markup(
    admin: Browser, replica: Replica, world: World, store: EtcdStore
) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    agent = Agent(world, store, "evil")
    await agent.live()
    await agent.tell("1" * 40, ago(5), error=evil)
    await written(replica, "evil", f"# {evil}\n{rego('evil')}", data={evil: evil})
    await written(replica, "evil", f"# {evil} again\n{rego('evil')}", data={evil: [evil]})
    files = {"policies/projects/evil/rego.rego": f"package projects.evil\n{evil}".encode()}
    world.remote.commit(files, message=evil, author=f"{evil.replace('<', '(').replace('>', ')')} <e@example.org>")

    async def held() -> bool:
        return "projects/evil/rego.rego" in (await admin.get("/")).text

    await eventually(held)
    pages = ("/", "/ui/fleet", "/ui/history", "/ui/policies?q=<script>", "/ui/policies/projects/evil?to=live")
    for path in pages:
        text = (await admin.get(path)).text
        assert "<script>alert" not in text, path
        assert "<img" not in text, path
        assert "&lt;script&gt;" in text, path
    await agent.forget()
    world.remote.commit({"policies/projects/evil": None})


async def test_a_member_sees_its_own_and_the_totals(
    stranger: Browser, replica: Replica, world: World, store: EtcdStore
) -> None:
    await written(replica, "mine", rego("mine"))
    await written(replica, "secret", rego("secret"))
    agent = Agent(world, store, "only-secret", scope="projects:secret")
    await agent.live()
    await agent.tell("1" * 40, ago(5))
    await stranger.log_in(token(sub="ann", project="mine"))
    for path in ("/", "/ui/policies", "/ui/fleet", "/ui/history", "/ui/policies/projects/mine"):
        page = await stranger.get(path)
        assert page.status == 200
        assert "secret" not in page.text, path
    assert "0 of 1" in (await stranger.get("/")).text, "the totals are for everybody"
    for path in ("/ui/policies/projects/secret", "/ui/policies/platform"):
        refused = await stranger.get(path)
        assert (refused.status, "This is not for you" in refused.text) == (403, True)
    mark = (await stranger.get("/")).mark
    tried = await stranger.post("/ui/policies/projects/secret", {"mark": mark, "rule": "mark", "input": "{}"})
    assert tried.status == 403
    await agent.forget()


async def test_of_a_pass_a_member_sees_how_many_policies_of_others_it_changed(
    stranger: Browser, replica: Replica, world: World
) -> None:
    """Four were taken off the number, whether four names stood before it or none."""
    names = [f"others-{number}" for number in range(6)]
    files = {f"policies/projects/{name}/rego.rego": rego(name).encode() for name in (*names, "among-them")}
    commit = world.remote.commit(files)
    await replica.get("/policies", Policy_Min_Commit=commit)
    files = {f"policies/projects/{name}/rego.rego": rego(name, "second").encode() for name in names}
    await replica.get("/policies", Policy_Min_Commit=world.remote.commit(files))
    await stranger.log_in(token(sub="ann", project="among-them"))

    async def rows() -> list[str]:
        page = (await stranger.get("/ui/history")).text
        found = re.findall(r"<tr>\s*<td>.*?</tr>", page, re.DOTALL)[:2]
        return [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in found]

    async def logged() -> bool:
        return "6 policies of others" in (await rows())[0]

    await eventually(logged)
    said = await rows()
    assert "projects/among-them created and 6 more" in said[1]
    assert "others-1" not in str(said)


async def test_a_hand_edit_is_told_as_healed(admin: Browser, replica: Replica, world: World, store: EtcdStore) -> None:
    await written(replica, "edited", rego("edited"))
    key = f"{world.keys.policies}projects/edited/rego.rego"
    await store.commit(Transaction((), (Put(key, b"package projects.edited\n"),)))

    async def told() -> bool:
        return re.search(r"projects/edited</a> healed\b", (await admin.get("/ui/history")).text) is not None

    await eventually(told)


async def test_who_suspended_and_why_is_told_to_admins_only(admin: Browser, replica: Replica) -> None:
    assert (await replica.call("POST", "/admin/suspend", {"reason": "incident at Acme"})).status == 200
    try:
        assert "incident at Acme" in (await admin.get("/")).text
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
            member = Browser(replica, http)
            await member.log_in(token(sub="ann", project="alpha"))
            page = (await member.get("/")).text
        assert "<strong>Suspended</strong>" in page
        assert "incident" not in page
        assert "Root" not in page
    finally:
        await replica.call("POST", "/admin/resume", {})


async def test_a_thousand_opas_are_shown_stragglers_first_and_counted(
    admin: Browser, replica: Replica, world: World, store: EtcdStore
) -> None:
    """In the matrix the ones that are current came before those of which nothing is known: it was sorted again, by
    the word."""
    head, puts = (await replica.get("/status")).body["last_applied_revision"].rpartition(":")[2], []
    for number in range(1_000):
        commit = {7: "1" * 40, 8: None}.get(number, head)
        receipt = Receipt(f"opa-{number:04}", "east", "all", commit, ago(60), opa_version="1.4.2")
        puts.append(Put(f"{world.keys.receipts}east/opa-{number:04}", receipt.encode()))
        puts.append(Put(f"{world.keys.alives}east/opa-{number:04}", b"{}"))
    for start in range(0, len(puts), 100):
        await store.commit(Transaction((), tuple(puts[start : start + 100])))
    try:
        page = (await admin.get("/")).text
        assert "998 of 1000" in page
        cells = re.findall(r'class="cell (\w+)">\s*<span class="name">([^<]+)', page)
        assert cells[:3] == [("behind", "opa-0007"), ("unknown", "opa-0008"), ("current", "opa-0000")]
        assert (len(cells), "and 600 more" in page) == (400, True)
        last = (await admin.get("/ui/fleet?page=5")).text
        assert ("Page 5 of 5" in last, "opa-0999" in last, "opa-0007" in last) == (True, True, False)
        assert "800 more" in (await admin.get("/ui/policies/projects/alpha")).text
    finally:
        gone = [Delete(each.key) for each in puts]
        for start in range(0, len(gone), 100):
            await store.commit(Transaction((), tuple(gone[start : start + 100])))


async def test_a_long_page_is_made_beside_the_event_loop() -> None:
    """A difference of half a megabyte was drawn on it: every other request waited for that."""
    threads = []

    def facts() -> dict[str, str]:
        threads.append(threading.get_ident())
        return {"message": "long", "next": "/", "form": ""}

    response = await page_aside(make_mocked_request("GET", "/login"), "login.html", facts)
    assert (response.status, response.content_type) == (200, "text/html")
    assert threads != [threading.get_ident()]


async def test_of_a_large_difference_the_beginning_is_shown_and_what_shows_all_of_it(
    admin: Browser, replica: Replica
) -> None:
    comments = "".join(f"# {number}\n" for number in range(20_000))
    await written(replica, "large", rego("large"), data={})
    await written(replica, "large", f"{rego('large', 'two')}{comments}", data={str(key): key for key in range(3_000)})
    page = (await admin.get("/ui/policies/projects/large?from=1&to=2")).text
    diff, _, after = page.partition('<h2 id="difference">')[2].partition("</pre>")
    assert diff.count('<span class="') == 500
    assert re.search(r"and 19\d{3} lines more", after)
    assert "and 2500 changes more" in after
    assert "<code>regops diff large 1 2</code> shows the whole" in after


async def test_versions_and_their_difference_are_on_the_policys_page(admin: Browser, replica: Replica) -> None:
    await written(replica, "compared", rego("compared", "one"), data={"limit": 1})
    await written(replica, "compared", rego("compared", "two"), data={"limit": 2})
    page = (await admin.get("/ui/policies/projects/compared")).text
    assert 'class="minus">-mark := &#34;one&#34;' in page
    assert 'class="plus">+mark := &#34;two&#34;' in page
    assert "Changes of data.json" in page
    other = (await admin.get("/ui/policies/projects/compared?from=2&to=1")).text
    assert 'class="plus">+mark := &#34;one&#34;' in other
    assert "must be a version" in (await admin.get("/ui/policies/projects/compared?from=x&to=1")).text
    assert (await admin.get("/ui/policies/projects/never-was")).status == 404


async def test_a_long_list_is_searched_and_paged(admin: Browser) -> None:
    found = await admin.get("/ui/policies?q=alph")
    assert "projects/alpha" in found.text
    assert "projects/beta" not in found.text
    assert (await admin.get("/ui/policies?page=0")).status == 400
    assert "There is none." in (await admin.get("/ui/policies?page=99")).text


# --- a decision ------------------------------------------------------------------------------------------------------


async def tried(admin: Browser, rule: str, text: str, policy: str = "platform") -> Page:
    path = f"/ui/policies/{policy}"
    return await admin.post(path, {"mark": (await admin.get("/")).mark, "rule": rule, "input": text})


async def test_what_is_no_question_is_said_with_its_place(admin: Browser) -> None:
    broken = await tried(admin, "authz/allow", '{"a":\n oops}')
    assert (broken.status, "line 2, column 2" in broken.text) == (400, True)
    assert (await tried(admin, "../system", "{}")).status == 400
    assert (await tried(admin, "x" * 300, "[")).status == 400
    assert (await tried(admin, "authz/allow", f'"{"x" * 70_000}"')).status == 400
    assert "is no number" in (await tried(admin, "authz/allow", "NaN")).text


async def test_an_undefined_decision_is_called_so(admin: Browser) -> None:
    page = await tried(admin, "nothing/here", "{}")
    assert (page.status, "undefined" in page.text) == (200, True)
    assert "platform/nothing/here" in page.text


async def test_only_this_policy_is_asked(admin: Browser) -> None:
    for rule in ("data/system/x", "/v1/data/projects/alpha/mark", "projects.alpha.mark"):
        page = await tried(admin, rule, "{}")
        assert page.status == 200, rule
        assert re.search(r"<code>platform/[a-z/]+</code> is <strong>undefined", page.text), rule
