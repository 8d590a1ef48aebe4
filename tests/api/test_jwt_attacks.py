"""Every known attack on JWTs, tried on a running application with the real verifier."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from fixtures.jwt_attacks import ATTACKER, Attack, attacks
from fixtures.tokens import Api, IssuerServer, auth, claims, forge, jwks, open_api, signer, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api() -> AsyncIterator[Api]:
    server = IssuerServer()
    server.body = jwks("rsa", "rsa-2", "ec", "ed")
    async with server.running(), open_api(auth(server.url)) as running:
        yield running


@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack[0])
async def test_a_forged_or_broken_token_is_401_and_the_answer_names_what_is_wrong(api: Api, attack: Attack) -> None:
    _, words, make = attack
    text = make()
    answer = await api.bearing(text)
    assert answer.status == 401, answer.body
    assert words in answer.body["detail"]
    assert answer.body["code"] == "unauthorized"
    assert answer.challenge.startswith('Bearer realm="regops", error="invalid_token", error_description="')
    assert answer.challenge.count('"') == 6
    said = json.dumps(answer.body) + str(answer.headers)
    assert not [part for part in text.split(".") if len(part) > 8 and part in said], "the token is not repeated"


async def test_the_tokens_that_the_attacks_start_from_are_good(api: Api) -> None:
    for kid in ("rsa", "rsa-2", "ec", "ed"):
        assert (await api.bearing(token(kid))).status == 200


@pytest.mark.parametrize("field", ["jku", "x5u"])
async def test_an_address_in_the_token_is_never_visited(api: Api, field: str) -> None:
    stranger = IssuerServer()
    stranger.body = jwks("rsa", ATTACKER)
    async with stranger.running():
        for kid in ("rsa", ATTACKER):
            forged = forge({"alg": "RS256", "kid": kid, field: stranger.url}, claims(), signer(ATTACKER))
            assert (await api.bearing(forged)).status == 401
        assert (await api.bearing(token(header={field: stranger.url}))).status == 200
    assert stranger.requests == 0


async def test_two_authorization_headers_are_refused_even_when_one_is_good(api: Api) -> None:
    good = f"Bearer {token()}"
    for headers in ((good, good), (good, "Bearer x"), ("Bearer x", good), (good, "")):
        answer = await api.get(*headers)
        assert answer.status == 401
        assert "more than one" in answer.body["detail"]


@pytest.mark.parametrize("text", [None, "", "Basic YW5uOmFubg==", "Bearerx", "Negotiate abc", "Token Bearer x"])
async def test_without_a_bearer_token_the_challenge_is_bare(api: Api, text: str | None) -> None:
    answer = await (api.get() if text is None else api.get(text))
    assert (answer.status, answer.challenge) == (401, 'Bearer realm="regops"')
    assert "Authorization: Bearer" in answer.body["detail"]


@pytest.mark.parametrize(
    "role",
    [
        "pl\u0430tform_admin",
        "platform\uff3fadmin",
        "\uff50latform_admin",
        "platform_admin\u200b",
        "Platform_Admin",
        "platform_adm\u0131n",
        "platform_admin\0",
        "platform-admin",
        "platform_admin,reader",
        "reader\u2003platform_admin",
        "reader\tplatform_admin",
        "reader\nplatform_admin",
    ],
)
async def test_what_only_looks_like_the_admins_role_gives_nothing(api: Api, role: str) -> None:
    for roles in (role, [role]):
        answer = await api.bearing(token(roles=roles))
        assert (answer.status, answer.body["admin"]) == (200, False)


async def test_a_role_in_a_list_is_one_name_with_its_spaces(api: Api) -> None:
    assert (await api.bearing(token(roles=["reader platform_admin"]))).body["admin"] is False
