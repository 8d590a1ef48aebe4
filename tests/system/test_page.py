"""The status page in a real Chromium, on a running `regops dev`: as somebody uses it who has just pushed a change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from fixtures.dev import Dev, until
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]

SOON = 10_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with Dev(tmp_path_factory.mktemp("page"), "--opas", "2") as running:
        until(lambda: running.get("/status")["health"]["status"] == "Healthy")
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Debian's sandbox needs a user namespace, which a container's root has not.
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


class Visit:
    """One person at the page; whatever the browser complains of fails the test."""

    def __init__(self, browser: Browser, dev: Dev, **how: object) -> None:
        self.complaints: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._outside)
        self.dev = dev
        self.ready = dev.ready()

    def _outside(self, request: object) -> None:
        url = str(getattr(request, "url", ""))
        if not url.startswith(self.ready["api"]):
            self.complaints.append(f"asks elsewhere: {url}")

    def log_in(self) -> Page:
        """By the link that `regops dev` prints."""
        self.page.goto(self.ready["page"])
        expect(self.page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
        assert "ticket" not in self.page.url
        return self.page

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.ready['api']}{path}")
        return self.page


@pytest.fixture
def visit(browser: Browser, dev: Dev) -> Iterator[Visit]:
    visit = Visit(browser, dev)
    yield visit
    visit.context.close()
    assert visit.complaints == []


def test_a_person_logs_in_with_a_token_and_out_again(visit: Visit) -> None:
    page = visit.go("/ui/history")
    expect(page.get_by_role("heading", name="regops")).to_be_visible()
    page.get_by_label("Token").fill(visit.ready["tokens"]["admin"])
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(re.compile("/ui/history$"))
    (cookie,) = [each for each in visit.context.cookies() if each["name"] == "regops_session"]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    visit.go("/")
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_wrong_token_is_told(browser: Browser, dev: Dev) -> None:
    visit = Visit(browser, dev)
    page = visit.go("/login")
    page.get_by_label("Token").fill("nonsense")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("This token does not count")
    visit.context.close()


def test_a_push_is_seen_without_loading_the_page_again(visit: Visit) -> None:
    page = visit.log_in()
    page.evaluate("window.same = true")
    expect(page.locator(".cell.current")).to_have_count(2)
    commit = visit.dev.push(
        {"policies/projects/seen/rego.rego": "package projects.seen\n\nallow := true\n"}, "seen live"
    )
    expect(page.get_by_role("table", name="The last passes")).to_contain_text("seen live", timeout=SOON)
    expect(page.locator(".cell.current", has_text=commit[:10])).to_have_count(2, timeout=SOON)
    expect(page.locator(".plot .dot")).not_to_have_count(0)
    expect(page.get_by_role("status")).to_contain_text("Followed live")
    assert page.evaluate("window.same") is True


def test_a_policy_that_is_held_is_followed_to_its_line_and_its_repair(visit: Visit) -> None:
    page = visit.log_in()
    visit.dev.push({"policies/projects/seen/rego.rego": "package projects.seen\n\nallow := := true\n"}, "a slip")
    held = page.get_by_role("region", name=re.compile("^Held"))
    expect(held).to_contain_text("projects/seen/rego.rego:3", timeout=SOON)
    expect(page.locator(".tile").first).to_contain_text("OutOfSync")
    held.get_by_role("link", name="projects/seen").click()
    expect(page.get_by_role("heading", name="projects/seen", level=1)).to_be_visible()
    expect(page.locator("#versions ~ .scroll")).to_contain_text("a slip")
    page.get_by_role("link", name="what it changed").first.click()
    expect(page.locator(".diff .plus").last).to_have_text("+allow := := true")
    visit.dev.push({"policies/projects/seen/rego.rego": "package projects.seen\n\nallow := false\n"}, "repaired")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".tile").first).to_contain_text("Synced", timeout=SOON)


def test_a_decision_is_tried_and_another_one_after_a_change(visit: Visit) -> None:
    page = visit.log_in()
    visit.go("/ui/policies/projects/billing")
    request = '{"claims": {"sub": "ann", "roles": ["billing_agent"], "project": "billing"}, "action": "read"}'
    page.get_by_label("Input (JSON)").fill(request)
    page.get_by_role("button", name="Decide").click()
    expect(page.locator(".decision")).to_contain_text("projects/billing/authz/allow is")
    expect(page.locator(".decision pre")).to_have_text("true")
    page.get_by_label("Rule").fill("authz/nothing")
    page.get_by_role("button", name="Decide").click()
    expect(page.locator(".decision")).to_contain_text("undefined")


def test_a_mistake_in_the_input_is_told_with_its_place(browser: Browser, dev: Dev) -> None:
    visit = Visit(browser, dev)
    page = visit.log_in()
    visit.go("/ui/policies/projects/billing")
    page.get_by_label("Input (JSON)").fill('{"a": }')
    page.get_by_role("button", name="Decide").click()
    expect(page.get_by_role("alert")).to_contain_text("line 1, column 7")
    expect(page.get_by_label("Input (JSON)")).to_have_value('{"a": }')
    visit.context.close()


def test_an_opa_that_is_gone_is_seen_at_a_glance(visit: Visit) -> None:
    page = visit.log_in()
    since = visit.dev.get("/status")["last_applied_at"]
    receipt = {"id": "gone", "datacentre": "west", "scope": "all", "enforced_revision": "1" * 40, "since": since}
    visit.dev.etcd("put", key="/regops/agents/west/gone", value=json.dumps(receipt))
    expect(page.locator(".cell.unknown", has_text="gone")).to_contain_text("silent", timeout=SOON)
    expect(page.get_by_role("table", name=re.compile("^Stragglers"))).to_contain_text("west")
    visit.dev.etcd("deleterange", key="/regops/agents/west/gone")
    expect(page.locator(".cell.unknown")).to_have_count(0, timeout=SOON)


# --- following -------------------------------------------------------------------------------------------------------

STEADY = """
window.streams = [];
window.EventSource = class extends EventTarget {
  static OPEN = 1;
  static CLOSED = 2;
  constructor() {
    super();
    this.readyState = 1;
    window.streams.push(this);
    setInterval(() => this.dispatchEvent(new MessageEvent("status")), 50);
  }
  close() {}
};
"""
"""A stream that has news every 50 ms, for as long as the page is open."""
FETCHES = "performance.getEntriesByType('resource').filter(e => e.initiatorType == 'fetch').map(e => e.startTime)"


def test_a_page_is_refreshed_under_steady_news_too_and_not_for_each(browser: Browser, dev: Dev) -> None:
    """Each event put the refresh off by 150 ms, so that a page showed nothing new while there was always something."""
    visit = Visit(browser, dev)
    visit.context.add_init_script(STEADY)
    page = visit.log_in()
    until(lambda: len(page.evaluate(FETCHES)) > 1)
    times = page.evaluate(FETCHES)
    assert times[1] - times[0] > 900, "no more than once a second"
    visit.context.close()
    assert visit.complaints == []


def test_a_stream_that_is_refused_is_asked_for_again(browser: Browser, dev: Dev) -> None:
    """Browsers give a stream up for good that is not answered with 200: 503 while a server begins or ends. The page
    said that it was tried again, and it was not."""
    visit = Visit(browser, dev)
    visit.context.route("**/events", lambda route: route.fulfill(status=503, body="{}"))
    page = visit.log_in()
    expect(page.get_by_role("status")).to_contain_text("Changes cannot be followed now, which is tried again")
    visit.context.unroute("**/events")
    with page.expect_event("response", lambda answer: answer.url.endswith("/events") and answer.ok, timeout=SOON):
        pass
    commit = dev.push({"policies/projects/again/rego.rego": "package projects.again\n\nx := 1\n"}, "followed again")
    expect(page.locator(".cell.current", has_text=commit[:10])).to_have_count(2, timeout=SOON)
    expect(page.get_by_role("status")).to_contain_text("Followed live")
    visit.context.close()


def test_who_may_see_the_page_but_not_follow_it_still_sees_what_is_new(browser: Browser, dev: Dev) -> None:
    """A platform may refuse the events to somebody: no reason to load the page without an end."""
    visit = Visit(browser, dev)
    visit.context.route("**/events", lambda route: route.fulfill(status=403, body="{}"))
    page = visit.log_in()
    page.evaluate("window.same = true")
    expect(page.get_by_role("status")).to_contain_text("Changes cannot be followed now")
    since = page.get_by_role("status").text_content()
    expect(page.get_by_role("status")).not_to_have_text(str(since), timeout=SOON)
    assert page.evaluate("window.same") is True
    visit.context.close()


def test_a_session_that_is_over_leads_to_the_log_in(browser: Browser, dev: Dev) -> None:
    visit = Visit(browser, dev)
    visit.context.route("**/events", lambda route: route.fulfill(status=401, body="{}"))
    visit.log_in()
    visit.context.clear_cookies()
    expect(visit.page.get_by_label("Token")).to_be_visible(timeout=SOON)
    visit.context.close()


def test_a_refresh_that_fails_is_told_and_tried_again(browser: Browser, dev: Dev) -> None:
    """It was silent: the page went on saying that it was followed live."""
    visit = Visit(browser, dev)
    visit.context.add_init_script(STEADY)
    page = visit.log_in()
    here = f"{visit.ready['api']}/"
    visit.context.route(here, lambda route: route.fulfill(status=503, body="<main data-live>no</main>"))
    expect(page.get_by_role("status")).to_contain_text("This server answers 503", timeout=SOON)
    expect(page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
    visit.context.unroute(here)
    expect(page.get_by_role("status")).to_contain_text("Followed live", timeout=SOON)
    visit.context.close()


@pytest.mark.parametrize("region", ["Each condition", "The last passes"])
def test_the_focus_stays_where_it_was_when_the_page_is_refreshed(browser: Browser, dev: Dev, region: str) -> None:
    """A table that is scrolled by keyboard lost the focus with each refresh: the arrow keys moved the page instead."""
    visit = Visit(browser, dev, viewport={"width": 500, "height": 800})
    visit.context.add_init_script(STEADY)
    page = visit.log_in()
    table = page.get_by_role("region", name=region)
    table.focus()
    left = table.evaluate("each => { each.scrollLeft = 40; each.old = true; return each.scrollLeft; }")
    until(lambda: not table.evaluate("each => each.old"))
    expect(table).to_be_focused()
    assert table.evaluate("each => each.scrollLeft") == left
    link = page.get_by_role("link", name="each in a row")
    link.focus()
    link.evaluate("each => { each.old = true; }")
    until(lambda: not link.evaluate("each => each.old"))
    expect(link).to_be_focused()
    visit.context.close()
    assert visit.complaints == []


# --- a member --------------------------------------------------------------------------------------------------------


def test_a_member_looks_around_follows_and_tries_a_decision(browser: Browser, dev: Dev) -> None:
    """Under the platform that `regops dev` starts with, which refused members the stream and the trial."""
    visit = Visit(browser, dev)
    page = visit.go("/login")
    made = dev.run("dev", "token", "--project", "billing", "--sub", "ann")
    page.get_by_label("Token").fill(made.stdout.strip())
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
    page.evaluate("window.same = true")
    commit = dev.push({"policies/projects/others/rego.rego": "package projects.others\n\nx := 1\n"}, "not for ann")
    passes = page.get_by_role("table", name="The last passes")
    expect(passes).to_contain_text(commit[:10], timeout=SOON)
    expect(passes).to_contain_text("1 policy of others")
    expect(passes).not_to_contain_text("not for ann")
    assert page.evaluate("window.same") is True
    for name in ("Policies", "OPAs", "History"):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.locator("main")).not_to_contain_text("others/")
    page.get_by_role("link", name="Policies").click()
    page.get_by_role("link", name="projects/billing").click()
    page.get_by_role("button", name="Decide").click()
    expect(page.locator(".decision")).to_contain_text("projects/billing/authz/allow is")
    visit.context.close()
    assert visit.complaints == []


def test_the_keyboard_alone_is_enough(visit: Visit) -> None:
    page = visit.log_in()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.textContent") == "Policies":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Policies", level=1)).to_be_visible()


PAGES = ("/", "/ui/policies", "/ui/fleet", "/ui/history", "/ui/policies/platform", "/ui/policies/projects/seen")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_in_both_colours(browser: Browser, dev: Dev, scheme: str) -> None:
    """WCAG 2.1 A and AA as far as axe-core can tell: contrast, names, headings, landmarks, tables."""
    visit = Visit(browser, dev, color_scheme=scheme, reduced_motion="reduce")
    visit.log_in()
    for path in PAGES:
        page = visit.go(path)
        found = Axe().run(page)
        assert found.violations_count == 0, f"{path}: {found.generate_report()}"
    visit.context.close()
    assert visit.complaints == []


def test_a_narrow_screen_needs_no_scrolling_to_the_side(browser: Browser, dev: Dev) -> None:
    visit = Visit(browser, dev, viewport={"width": 400, "height": 800})
    visit.log_in()
    for path in PAGES:
        page = visit.go(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, path
    visit.context.close()
    assert visit.complaints == []


def test_without_scripts_everything_but_the_following_works(browser: Browser, dev: Dev) -> None:
    visit = Visit(browser, dev, java_script_enabled=False)
    page = visit.log_in()
    page.get_by_role("link", name="Policies").click()
    page.get_by_label("Part of the name").fill("bill")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name="projects/billing").click()
    page.get_by_role("button", name="Decide").click()
    expect(page.locator(".decision")).to_contain_text("projects/billing/authz/allow is")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Difference")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    visit.context.close()
    assert visit.complaints == []
