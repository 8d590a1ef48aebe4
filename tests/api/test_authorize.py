"""Who may do what: the built-in rule, and how the platform's policy, asked of a real OPA, narrows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fixtures.bundles import Enforcing
from fixtures.etcd import free_port
from fixtures.tokens import claims, listening
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from api.auth import ADMIN_ROLE, Action, Authorizer, Caller, may_read, path_segments, permits
from api.auth.narrowing import Narrowing
from api.problems import ProblemError
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import PLATFORM, PolicyName, project_policy

BILLING, ORDERS = project_policy("billing"), project_policy("orders")
EXAMPLE = Path(__file__).resolve().parents[2] / "policies-example" / "policies" / "platform"


def caller(roles: Iterable[str] = (), projects: Iterable[str] = (), **more: Any) -> Caller:
    said = claims(roles=list(roles), project=list(projects), **more)
    return Caller("ann", None, None, said["tenant"], frozenset(roles), frozenset(projects), said)


ADMIN, MEMBER, NOBODY = caller([ADMIN_ROLE]), caller(["reader"], ["billing"]), caller()


class Never:
    """The platform's policy, not to be asked."""

    async def allow(self, question: Mapping[str, Any]) -> bool | None:
        raise AssertionError(f"asked: {question}")


class Says:
    """The platform's policy, remembering what it was asked."""

    def __init__(self, decision: bool | None) -> None:
        self.decision = decision
        self.questions: list[Mapping[str, Any]] = []

    async def allow(self, question: Mapping[str, Any]) -> bool | None:
        self.questions.append(question)
        return self.decision


@contextlib.asynccontextmanager
async def asking(url: str, timeout: float = 5.0) -> AsyncIterator[Authorizer]:  # noqa: ASYNC109 it is the setting
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield Authorizer(Narrowing(session, url, timeout))


async def read(authorizer: Authorizer, who: Caller = MEMBER, policy: PolicyName = BILLING) -> int:
    """The status that a GET of the policy gets."""
    path = path_segments(URL(f"/policies/{policy.rpartition('/')[2]}"))
    return await outcome(authorizer, who, "GET", path, policy, Action.READ)


async def outcome(authorizer: Authorizer, *request: Any) -> int:
    try:
        await authorizer.authorize(*request)
    except ProblemError as error:
        return error.status
    except TransientError:
        return 503
    return 200


# --- the built-in rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("policy", [None, PLATFORM, BILLING])
def test_admins_may_everything(policy: PolicyName | None, action: Action) -> None:
    assert permits(ADMIN, policy, action)


@pytest.mark.parametrize(
    ("policy", "action", "may"),
    [
        (BILLING, Action.READ, True),
        (BILLING, Action.VALIDATE, True),
        (BILLING, Action.WRITE, False),
        (BILLING, Action.ROLLBACK, False),
        (ORDERS, Action.READ, False),
        (ORDERS, Action.VALIDATE, False),
        (ORDERS, Action.WRITE, False),
        (PLATFORM, Action.READ, False),
        (PLATFORM, Action.VALIDATE, False),
        (PLATFORM, Action.WRITE, False),
        (None, Action.READ, True),
        (None, Action.VALIDATE, False),
        (None, Action.WRITE, False),
        (None, Action.ADMINISTER, False),
    ],
)
def test_members_read_their_own_projects(policy: PolicyName | None, action: Action, may: bool) -> None:
    assert permits(MEMBER, policy, action) is may


LOOKALIKES = ["platform", "projects/billing", "BILLING", "billing ", "*", "", "bill", "billing-2", "b\u0456lling"]


@pytest.mark.parametrize("claimed", LOOKALIKES)
def test_a_project_that_only_looks_like_it_reads_nothing(claimed: str) -> None:
    stranger = caller(["reader"], [claimed])
    assert not may_read(stranger, BILLING)
    assert not may_read(stranger, PLATFORM)


@settings(max_examples=200)
@given(
    st.frozensets(st.sampled_from(["billing", "orders", "platform", "x"])),
    st.sampled_from([PLATFORM, BILLING, ORDERS]),
    st.sampled_from(Action),
)
def test_without_the_role_only_the_own_project_is_read_and_nothing_is_written(
    projects: frozenset[str], policy: PolicyName, action: Action
) -> None:
    own = policy != PLATFORM and policy.removeprefix("projects/") in projects
    assert permits(caller([], projects), policy, action) is (own and action in {Action.READ, Action.VALIDATE})


async def test_who_may_not_by_the_built_in_rule_is_refused_without_asking() -> None:
    authorizer = Authorizer(Never())
    assert await read(authorizer, MEMBER, ORDERS) == 403
    assert await read(authorizer, NOBODY) == 403
    assert await outcome(authorizer, MEMBER, "PUT", ("policies", "billing"), BILLING, Action.WRITE) == 403


async def test_a_refusal_says_what_is_needed_and_not_what_exists() -> None:
    said = []
    for policy in (ORDERS, project_policy("no-such-project")):
        with pytest.raises(ProblemError) as caught:
            await Authorizer(Never()).authorize(MEMBER, "GET", ("policies",), policy, Action.READ)
        said.append(caught.value.message.replace(policy.removeprefix("projects/"), "P"))
    assert said == ["this needs a token of the project P or with the role platform_admin"] * 2


# --- how the platform narrows it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decision", "status"), [(True, 200), (None, 200), (False, 403)])
async def test_the_platform_says_no_or_changes_nothing(decision: bool | None, status: int) -> None:
    platform = Says(decision)
    assert await read(Authorizer(platform)) == status
    assert platform.questions == [{"claims": MEMBER.claims, "method": "GET", "path": ["policies", "billing"]}]
    assert await read(Authorizer(platform), NOBODY) == 403, "a yes widens nothing"


@pytest.mark.parametrize(
    ("method", "action", "asked"),
    [
        ("GET", Action.READ, False),
        ("HEAD", Action.READ, False),
        ("PUT", Action.WRITE, False),
        ("POST", Action.ROLLBACK, False),
        ("PATCH", Action.WRITE, True),
        ("DELETE", Action.WRITE, True),
        ("POST", Action.VALIDATE, True),
    ],
)
async def test_an_admin_is_never_locked_out_of_the_platform(method: str, action: Action, asked: bool) -> None:
    authorizer = Authorizer(Says(False))
    status = await outcome(authorizer, ADMIN, method, ("policies", "platform"), PLATFORM, action)
    assert status == (403 if asked else 200)
    assert await outcome(authorizer, ADMIN, method, ("policies", "billing"), BILLING, action) == 403


async def test_a_real_opa_narrows_by_claims_method_and_path(enforcing: Enforcing) -> None:
    await enforcing.enforce(
        """package platform.authz
allow := false if input.claims.sub == "mallory"
allow := false if { input.method == "DELETE"; input.path == ["policies", "billing"] }
allow := true if input.claims.sub == "bob"
"""
    )
    async with asking(enforcing.opa.url) as authorizer:
        assert await read(authorizer) == 200, "undefined is not narrowed"
        assert await read(authorizer, caller([], ["billing"], sub="bob")) == 200
        assert await read(authorizer, caller([], ["orders"], sub="bob")) == 403, "true widens nothing"
        assert await read(authorizer, caller([], ["billing"], sub="mallory")) == 403
        for path, status in ((("policies", "billing"), 403), (("policies", "orders"), 200)):
            assert await outcome(authorizer, ADMIN, "DELETE", path, BILLING, Action.WRITE) == status


async def test_a_platform_without_the_rule_narrows_nothing(enforcing: Enforcing) -> None:
    await enforcing.enforce("package platform.other\nx := 1")
    async with asking(enforcing.opa.url) as authorizer:
        assert await read(authorizer) == 200


@pytest.mark.parametrize(
    "rule",
    [
        'allow := "yes"',
        "allow := 1",
        "allow := null",
        "allow := {}",
        "allow contains 1",
        "allow := [true]",
        "allow := numbers.range(1, 100000)",
        "allow := true if input\nallow := false if input",
    ],
)
async def test_a_decision_that_is_no_boolean_is_503(enforcing: Enforcing, rule: str) -> None:
    await enforcing.enforce(f"package platform.authz\n{rule}")
    async with asking(enforcing.opa.url) as authorizer:
        assert await read(authorizer) == 503
        assert await read(authorizer, NOBODY) == 403
        assert await read(authorizer, ADMIN, PLATFORM) == 200, "who must repair it can"


async def test_without_an_active_bundle_nothing_can_be_said(enforcing: Enforcing) -> None:
    async with asking(enforcing.opa.url) as authorizer:
        assert await read(authorizer) == 503
        assert await read(authorizer, ADMIN, PLATFORM) == 200
        await enforcing.enforce("package platform.authz")
        assert await read(authorizer) == 200


async def test_an_opa_that_restarts_is_503_and_then_answers_again(
    enforcing: Enforcing, caplog: pytest.LogCaptureFixture
) -> None:
    await enforcing.enforce("package platform.authz\nallow := true")
    async with asking(enforcing.opa.url) as authorizer:
        assert await read(authorizer) == 200
        await enforcing.opa.kill()
        assert [await read(authorizer), await read(authorizer)] == [503, 503]
        assert await read(authorizer, ADMIN, PLATFORM) == 200
        await enforcing.opa.start()
        await enforcing.enforce("package platform.authz\nallow := true")
        assert await read(authorizer) == 200
    assert caplog.text.count("requests cannot be authorized") == 1


async def test_a_connection_that_opa_has_closed_meanwhile_is_no_failure() -> None:
    """A kept connection may die between two requests; the question is then asked once more on a new one."""
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        with contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            answered += 1
            body = b'{"provenance": {"bundles": {"regops": {"revision": "1"}}}}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await reader.readuntil(b"\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asking(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as authorizer:
        for _ in range(3):
            assert await read(authorizer) == 200
    assert answered == 3


ACTIVE = {"provenance": {"bundles": {"regops": {"revision": "1"}}}}
ANSWERS: dict[str, Callable[[], web.Response]] = {
    "error": lambda: web.json_response({"code": "internal_error"}, status=500),
    "refused": lambda: web.json_response({**ACTIVE, "result": True}, status=401),
    "redirect": lambda: web.Response(status=307, headers={"Location": "/elsewhere"}),
    "no JSON": lambda: web.Response(body=b"<html>"),
    "a list": lambda: web.json_response([ACTIVE]),
    "no provenance": lambda: web.json_response({"result": True}),
    "no bundles": lambda: web.json_response({"result": True, "provenance": {"bundles": None}}),
    "another bundle": lambda: web.json_response({"result": True, "provenance": {"bundles": {"main": {}}}}),
    "null": lambda: web.json_response({**ACTIVE, "result": None}),
    "endless": lambda: web.json_response({**ACTIVE, "result": True, "x": "a" * 100_000}),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_whatever_else_answers_is_503(name: str) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return ANSWERS[name]()

    app = web.Application()
    app.router.add_post("/v1/data/platform/authz/allow", answer)
    async with listening(app) as url, asking(url) as authorizer:
        assert await read(authorizer) == 503


async def test_an_opa_that_hangs_or_is_not_there_is_503_within_the_deadline() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    async with server:
        for port in (server.sockets[0].getsockname()[1], free_port()):
            async with asking(f"http://127.0.0.1:{port}", 0.2) as authorizer:
                began = loop.time()
                assert await read(authorizer) == 503
                assert loop.time() - began < 2


@pytest.mark.parametrize("url", ["", "127.0.0.1:8181", "unix:///run/opa.sock", "http://"])
async def test_an_opa_that_is_no_address_stops_the_start(url: str) -> None:
    with pytest.raises(StalledError, match=r"auth\.opa"):
        async with asking(url):
            pass


# --- the path ---------------------------------------------------------------------------------------------------------


PATHS = [
    ("/", ()),
    ("/status", ("status",)),
    ("/policies/billing", ("policies", "billing")),
    ("/policies/billing?path=/x", ("policies", "billing")),
    ("/policies/billing:validate", ("policies", "billing:validate")),
    ("/policies/billing%3Avalidate", ("policies", "billing:validate")),
    ("/polici%65s/bill%69ng", ("policies", "billing")),
    ("/policies/billing%2F..%2Forders", ("policies", "billing/../orders")),
    ("/policies/%2562illing", ("policies", "%62illing")),
    ("/policies/b%C3%BCro", ("policies", "b\u00fcro")),
    ("/policies/bill+ing", ("policies", "bill+ing")),
    ("/policies/bill%20ing", ("policies", "bill ing")),
    ("http://elsewhere.example/policies/billing", ("policies", "billing")),
]


@pytest.mark.parametrize(("sent", "segments"), PATHS)
async def test_the_platform_sees_the_path_that_the_route_saw(sent: str, segments: tuple[str, ...]) -> None:
    """Also when the request line has a whole URL, or escapes that hide what it is about."""
    seen: list[tuple[tuple[str, ...], str | None]] = []

    async def see(request: web.Request) -> web.Response:
        seen.append((path_segments(request.rel_url), request.match_info.get("project")))
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/", see), web.get("/status", see), web.get("/policies/{project}", see)])
    async with listening(app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(url).port)
        writer.write(f"GET {sent} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert seen == [(segments, segments[1] if len(segments) > 1 else None)]


# --- the example ------------------------------------------------------------------------------------------------------


async def test_the_example_platform_lets_through_what_the_built_in_rule_permits(enforcing: Enforcing) -> None:
    """It is what `regops dev` starts with: it may freeze and suspend, nothing else."""
    await enforcing.enforce((EXAMPLE / "rego.rego").read_text(), (EXAMPLE / "data.json").read_text())
    both = ("GET", Action.READ)
    requests = [
        (MEMBER, *both, "/policies", None),
        (MEMBER, *both, "/policies/billing", BILLING),
        (MEMBER, *both, "/policies/billing/versions", BILLING),
        (MEMBER, "POST", Action.VALIDATE, "/policies/billing:validate", BILLING),
        *((MEMBER, *both, path, None) for path in ("/status", "/fleet", "/openapi.json", "/docs", "/ui/app.js", "/")),
        *((ADMIN, method, Action.WRITE, "/policies/orders", ORDERS) for method in ("PUT", "PATCH", "DELETE")),
        (ADMIN, "PATCH", Action.WRITE, "/policies/platform", PLATFORM),
        (ADMIN, "POST", Action.VALIDATE, "/policies/platform:validate", PLATFORM),
        (ADMIN, "POST", Action.ROLLBACK, "/policies/orders:rollback", ORDERS),
        (ADMIN, "POST", Action.ADMINISTER, "/admin/sync", None),
    ]
    async with asking(enforcing.opa.url) as authorizer:
        refused = [
            (method, path)
            for who, method, action, path, policy in requests
            if await outcome(authorizer, who, method, path_segments(URL(path)), policy, action) != 200
        ]
        suspended = caller([ADMIN_ROLE], [], tenant="acme-trial")
        assert await read(authorizer, suspended, BILLING) == 403
        assert await read(authorizer, suspended, PLATFORM) == 200
    assert refused == []
