"""Whom the API believes, and who the caller then is."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fixtures.tokens import Api, IssuerServer, auth, claims, jwks, open_api, token

from api.auth import ADMIN_ROLE, Caller
from api.auth.claims import caller_of
from reconciler.core.errors import StalledError

KEYS = ("rsa", "rsa-2", "ec", "ed")


@pytest.fixture
async def issuer() -> AsyncIterator[IssuerServer]:
    server = IssuerServer()
    server.body = jwks(*KEYS)
    async with server.running():
        yield server


@pytest.fixture
async def api(issuer: IssuerServer) -> AsyncIterator[Api]:
    async with open_api(auth(issuer.url)) as running:
        yield running


@pytest.mark.parametrize("kid", KEYS)
async def test_a_good_token_names_the_caller(api: Api, kid: str) -> None:
    answer = await api.bearing(token(kid, roles="reader platform_admin", project=["billing", "orders"]))
    assert answer.status == 200
    assert answer.body == {
        "sub": "ann",
        "roles": ["platform_admin", "reader"],
        "projects": ["billing", "orders"],
        "tenant": "acme",
        "admin": True,
    }


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEaReR", "Bearer  "])
async def test_the_scheme_is_read_in_any_case(api: Api, scheme: str) -> None:
    assert (await api.get(f"{scheme} {token()}")).status == 200


GOOD: list[Callable[[], str]] = [
    lambda: token(aud=["other", "regops"]),
    lambda: token(exp=int(time.time()) - 20),
    lambda: token(exp=time.time() + 0.5),
    lambda: token(nbf=int(time.time()) + 20, iat=int(time.time()) + 20),
    lambda: token(iat=..., roles=..., project=...),
    lambda: token(roles=None, project=None, name=None),
    lambda: token(header={"typ": ...}),
    lambda: token(header={"typ": "at+jwt"}),
    lambda: token(header={"typ": "application/AT+JWT"}),
    lambda: token(padding="a" * 8000),
]


@pytest.mark.parametrize("made", GOOD)
async def test_what_the_standards_allow_is_accepted(api: Api, made: Callable[[], str]) -> None:
    assert (await api.bearing(made())).status == 200


@pytest.mark.parametrize("tenant", [..., None, "", "other", "Acme", "acme ", "acm\u0435"])
async def test_another_tenant_is_403_also_for_an_admin(api: Api, tenant: Any) -> None:
    answer = await api.bearing(token(tenant=tenant, roles=[ADMIN_ROLE]))
    assert (answer.status, answer.body["code"]) == (403, "forbidden")
    assert "auth.tenant" in answer.body["detail"]
    assert not answer.challenge


async def test_without_auth_tenant_every_tenant_is_served_with_a_warning_at_start(
    issuer: IssuerServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_api(auth(issuer.url, tenant=())) as api:
        assert "tokens of every tenant are served" in caplog.text
        for tenant in (..., "other"):
            assert (await api.bearing(token(tenant=tenant))).status == 200


async def test_the_names_of_the_claims_can_be_set(issuer: IssuerServer) -> None:
    named = auth(issuer.url, claim_tenant="https://acme/org", claim_roles="groups", claim_project="teams")
    async with open_api(named) as api:
        mine: dict[str, Any] = {"https://acme/org": "acme", "groups": ["platform_admin"], "teams": "orders"}
        answer = await api.bearing(token(**mine, tenant=..., project=...))
        assert (answer.body["admin"], answer.body["projects"]) == (True, ["orders"])
        theirs: dict[str, Any] = {"https://acme/org": "acme", "groups": [], "roles": ["platform_admin"]}
        answer = await api.bearing(token(**theirs))
        assert (answer.body["admin"], answer.body["projects"]) == (False, [])


async def test_by_default_only_rs256_counts(issuer: IssuerServer) -> None:
    async with open_api(auth(issuer.url, algorithms=("RS256",))) as api:
        assert (await api.bearing(token("rsa"))).status == 200
        for kid in ("ec", "ed"):
            answer = await api.bearing(token(kid))
            assert (answer.status, answer.body["detail"]) == (401, "the token's algorithm (alg) must be RS256")


@pytest.mark.parametrize("missing", ["issuer", "audience"])
async def test_an_issuer_or_audience_that_is_not_set_stops_the_start(issuer: IssuerServer, missing: str) -> None:
    with pytest.raises(StalledError, match=f"auth.{missing} is empty"):
        async with open_api(auth(issuer.url, **{missing: ""})):
            pass


@pytest.mark.parametrize(
    ("name", "email", "sub", "author"),
    [
        ("Ann Lee", "ann@acme.example", "u1", ("Ann Lee", "ann@acme.example")),
        (None, None, "u1", ("u1", "u1")),
        ("Ann <root@acme.example>\n\nActor: root", "a\r\nb", "u1", ("Ann root@acme.example Actor: root", "a b")),
        ("<>", " . ", "u1", ("u1", "u1")),
        (None, None, "<>", ("unknown", "unknown")),
    ],
)
def test_the_author_of_a_commit_fits_into_its_header(
    name: str | None, email: str | None, sub: str, author: tuple[str, str]
) -> None:
    identity = Caller(sub, name, email, None, frozenset(), frozenset(), {}).identity()
    assert (identity.name, identity.email) == author


def test_an_address_that_the_issuer_did_not_verify_is_no_author() -> None:
    caller = caller_of(
        claims(name="Ann", email="boss@acme.example", email_verified=False), auth("file:///unused"), time.time()
    )
    assert caller.identity().email == "ann"
