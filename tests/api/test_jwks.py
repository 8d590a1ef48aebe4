"""The issuer's keys: which count, how fresh they are, and what happens while they cannot be had."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fixtures.etcd import eventually, free_port
from fixtures.tokens import Api, IssuerServer, auth, jwks, open_api, pair, token
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from api.auth.jwks import parse_jwks
from api.auth.key_sources import FileKeys
from api.auth.keys import Keys
from reconciler.core.errors import StalledError, TransientError
from reconciler.settings import AuthSettings

NONE = 1e-9
"""A cooldown that is over at once, also on a machine that answers within a millisecond."""


@pytest.fixture
async def issuer() -> AsyncIterator[IssuerServer]:
    server = IssuerServer()
    async with server.running():
        yield server


@contextlib.asynccontextmanager
async def kept_fresh(settings: AuthSettings) -> AsyncIterator[Api]:
    """An API whose keys are kept fresh, as a server does it."""
    async with open_api(settings) as api:
        running = asyncio.create_task(api.access.keys.run())
        try:
            yield api
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def status(api: Api, kid: str = "rsa") -> int:
    return (await api.bearing(token(kid))).status


# --- which keys count -------------------------------------------------------------------------------------------------


def private(name: str) -> dict[str, Any]:
    found: dict[str, Any] = RSAAlgorithm.to_jwk(pair(name).private, as_dict=True)
    return found


def rsa_of(bits: int) -> dict[str, Any]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits).public_key()
    return {**RSAAlgorithm.to_jwk(key, as_dict=True), "kid": "k", "key_ops": ["verify"]}


def secret() -> str:
    return base64.urlsafe_b64encode(b"top secret " * 4).decode()


P_384 = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
LEFT_OUT = {
    "symmetric": ({"kty": "oct", "k": secret(), "kid": "k"}, "is symmetric"),
    "symmetric under an RSA name": ({"kty": "RSA", "k": secret(), "kid": "k"}, "is a private key"),
    "private": ({**private("rsa-2"), "kid": "k"}, "is a private key"),
    "RSA of 1024 bits": (rsa_of(1024), "has 1024 bits"),
    "RSA beyond all measure": ({**pair("rsa-2").jwk, "kid": "k", "n": "_" * 3000}, "RSA keys must have 2048 to 8192"),
    "RSA with exponent 1": ({**pair("rsa-2").jwk, "kid": "k", "e": "AQ"}, "cannot be read"),
    "RSA without modulus": ({"kty": "RSA", "e": "AQAB", "kid": "k"}, "cannot be read"),
    "a point beside the curve": ({**pair("ec").jwk, "kid": "k", "y": pair("ec").jwk["x"]}, "cannot be read"),
    "another curve": ({**P_384, "kid": "k"}, "serves none of"),
    "another algorithm": ({**pair("rsa-2").jwk, "kid": "k", "alg": "RS512"}, "another algorithm"),
    "an HMAC algorithm": ({**pair("rsa-2").jwk, "kid": "k", "alg": "HS256"}, "another algorithm"),
    "a certificate alone": ({"kty": "RSA", "x5c": ["MIIB"], "kid": "k"}, "cannot be read"),
    "a name twice": ({**pair("rsa-2").jwk, "kid": "rsa"}, "the name (kid) of another"),
    "a name that is no text": ({**pair("rsa-2").jwk, "kid": 7}, "no text"),
    "no object": ("key", "no JSON object"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
async def test_a_key_that_should_not_be_there_is_left_out_with_a_warning(
    name: str, issuer: IssuerServer, caplog: pytest.LogCaptureFixture
) -> None:
    entry, words = LEFT_OUT[name]
    issuer.body = json.dumps({"keys": [pair("rsa").jwk, entry]}).encode()
    async with open_api(auth(issuer.url)) as api:
        assert await status(api) == 200
    warnings = [vars(record)["why"] for record in caplog.records if record.message == "key ignored"]
    assert len(warnings) == 1
    assert words in warnings[0]
    material = [value for field, value in entry.items() if field in {"n", "d", "k"}] if isinstance(entry, dict) else []
    assert not [text for text in material if text in caplog.text + warnings[0]], "no key material in the log"


def test_keys_for_encryption_are_passed_over_in_silence() -> None:
    for use in ({"use": "enc"}, {"use": ..., "key_ops": ["encrypt"]}):
        entry = {name: value for name, value in {**pair("rsa-2").jwk, **use}.items() if value is not ...}
        found = parse_jwks(json.dumps({"keys": [entry, pair("rsa").jwk]}).encode())
        assert ([key.kid for key in found.keys], found.ignored) == (["rsa"], ())


async def test_a_token_without_kid_is_served_by_the_only_key(issuer: IssuerServer) -> None:
    nameless = {name: value for name, value in pair("rsa").jwk.items() if name not in {"kid", "alg", "use"}}
    issuer.body = json.dumps({"keys": [nameless, pair("ec").jwk]}).encode()
    async with open_api(auth(issuer.url)) as api:
        assert (await api.bearing(token(header={"kid": ...}))).status == 200
        assert await status(api, "rsa") == 401, "a name that the set does not have is no name"


# --- fresh in time, and not driven by strangers -----------------------------------------------------------------------


async def test_a_storm_of_unknown_keys_is_one_request(issuer: IssuerServer) -> None:
    async with open_api(auth(issuer.url)) as api:
        await status(api)
        before = issuer.requests
        for _ in range(3):
            answers = await asyncio.gather(*(api.bearing(token(header={"kid": f"k{n}"})) for n in range(40)))
            assert {answer.status for answer in answers} == {401}
        assert issuer.requests - before <= 1
        assert await status(api) == 200


async def test_a_new_key_counts_with_its_first_token(issuer: IssuerServer) -> None:
    async with open_api(auth(issuer.url, jwks_cooldown=NONE)) as api:
        assert await status(api) == 200
        issuer.body = jwks("rsa", "rsa-2")
        assert await status(api, "rsa-2") == 200
        assert issuer.requests == 2


async def test_all_who_wait_for_a_new_key_get_it_by_one_request(issuer: IssuerServer) -> None:
    async with open_api(auth(issuer.url, jwks_cooldown=NONE)) as api:
        assert await status(api) == 200
        issuer.body = jwks("rsa", "rsa-2")
        go = asyncio.Event()
        issuer.hold = go.wait
        waiting = [asyncio.create_task(status(api, "rsa-2")) for _ in range(20)]
        await eventually(lambda: issuer.requests == 2)
        assert await status(api) == 200, "known keys wait for nobody"
        go.set()
        assert await asyncio.gather(*waiting) == [200] * 20
        assert issuer.requests == 2


async def test_a_caller_that_goes_away_does_not_break_the_others(issuer: IssuerServer) -> None:
    async with open_api(auth(issuer.url, jwks_cooldown=NONE)) as api:
        go = asyncio.Event()
        issuer.hold = go.wait
        first, second = (asyncio.create_task(api.access.keys.find("rsa", "RS256")) for _ in range(2))
        await eventually(lambda: issuer.requests == 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        go.set()
        assert (await second).kid == "rsa"


async def test_a_withdrawn_key_stops_counting_in_time(issuer: IssuerServer) -> None:
    async with kept_fresh(auth(issuer.url, jwks_refresh=0.02)) as api:
        assert await status(api) == 200
        issuer.body = jwks("rsa-2")

        async def withdrawn() -> bool:
            return await status(api) == 401

        await eventually(withdrawn)
        assert await status(api, "rsa-2") == 200


async def test_an_emptied_set_is_the_issuers_word(issuer: IssuerServer) -> None:
    async with kept_fresh(auth(issuer.url, jwks_refresh=0.02)) as api:
        assert await status(api) == 200
        issuer.body = b'{"keys": []}'
        await eventually(lambda: not api.access.keys.usable)
        assert await status(api) == 503


# --- when the keys cannot be had --------------------------------------------------------------------------------------


async def test_without_any_key_the_answer_is_503_until_there_is_one() -> None:
    issuer = IssuerServer()
    issuer.port = free_port()
    async with kept_fresh(auth(issuer.url, jwks_refresh=0.05, jwks_cooldown=0.01)) as api:
        answer = await api.bearing(token())
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.body["code"] == "unavailable"
        assert "auth.jwks" in answer.body["detail"]
        assert (await api.get()).status == 401, "no token needs no key"
        async with issuer.running():
            await eventually(lambda: api.access.keys.usable)
            assert await status(api) == 200


async def redirect(issuer: IssuerServer) -> None:
    issuer.status, issuer.headers = 302, {"Location": "/elsewhere"}


async def too_long(issuer: IssuerServer) -> None:
    issuer.body = b'{"keys": [], "x": "%b"}' % (b"a" * 300_000)


async def compressed(issuer: IssuerServer) -> None:
    issuer.body, issuer.headers = gzip.compress(jwks("rsa")), {"Content-Encoding": "gzip"}


async def broken(issuer: IssuerServer) -> None:
    issuer.status = 500


async def no_key_set(issuer: IssuerServer) -> None:
    issuer.body = b"<html>log in</html>"


async def a_list(issuer: IssuerServer) -> None:
    issuer.body = b"[]"


async def ambiguous(issuer: IssuerServer) -> None:
    issuer.body = b'{"keys": [], "keys": []}'


async def hanging(issuer: IssuerServer) -> None:
    issuer.hold = asyncio.Event().wait


FAULTS = [redirect, too_long, compressed, broken, no_key_set, a_list, ambiguous, hanging]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_source_that_fails_changes_nothing_and_an_unknown_key_is_then_503(
    issuer: IssuerServer, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a new key exists cannot be known then: the client shall try again, not ask for another token."""
    async with open_api(auth(issuer.url, jwks_timeout=0.2, jwks_cooldown=NONE)) as api:
        assert await status(api) == 200
        await fault(issuer)
        async with asyncio.timeout(10):
            assert await status(api, "rsa-2") == 503
        assert await status(api) == 200
        assert issuer.requests == 2, "no redirect is followed"
    assert caplog.text.count("keys not refreshed") == 1


async def test_a_key_endpoint_that_is_away_leaves_the_keys_at_hand_in_use_for_a_bounded_time(tmp_path: Path) -> None:
    now = [0.0]
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks("rsa"))
    keys = Keys(FileKeys(file), cooldown=5, max_age=100, clock=lambda: now[0])
    assert (await keys.find("rsa", "RS256")).kid == "rsa"
    file.unlink()
    now[0] = 99
    assert (await keys.find("rsa", "RS256")).kid == "rsa"
    now[0] = 101
    with pytest.raises(TransientError, match="cannot be read"):
        await keys.find("rsa", "RS256")
    file.write_bytes(jwks("rsa"))
    now[0] = 107
    assert (await keys.find("rsa", "RS256")).kid == "rsa"


async def test_within_the_cooldown_nobody_asks_again(issuer: IssuerServer) -> None:
    async with open_api(auth(issuer.url, jwks_cooldown=3600)) as api:
        assert await status(api) == 200
        issuer.body = jwks("rsa", "rsa-2")
        assert await status(api, "rsa-2") == 401
        assert issuer.requests == 1


# --- files ------------------------------------------------------------------------------------------------------------


async def test_a_replaced_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes does it: the name is a link, and the link is swapped."""
    monkeypatch.setattr(FileKeys, "interval", 0.01)
    for name in ("rsa", "rsa-2"):
        (tmp_path / name).write_bytes(jwks(name))
    link = tmp_path / "jwks.json"
    link.symlink_to("rsa")
    async with kept_fresh(auth(str(link))) as api:
        await eventually(lambda: api.access.keys.usable)
        assert await status(api) == 200
        (tmp_path / "new").symlink_to("rsa-2")
        (tmp_path / "new").rename(link)

        async def swapped() -> bool:
            return await status(api, "rsa-2") == 200

        await eventually(swapped)
        assert await status(api, "rsa") == 401


async def test_a_file_that_is_being_written_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks("rsa"))
    async with open_api(auth(f"file://{file}", jwks_cooldown=NONE)) as api:
        assert await status(api) == 200
        file.write_bytes(jwks("rsa", "rsa-2")[:-20])
        assert await status(api, "rsa-2") == 503
        assert await status(api) == 200
        file.write_bytes(jwks("rsa", "rsa-2"))
        assert await status(api, "rsa-2") == 200


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "no keys to verify tokens with"),
        ("http://issuer.example/jwks.json", "plain http:// address"),
        ("http://127.0.0.1.issuer.example/jwks.json", "plain http:// address"),
        ("ftp://issuer.example/jwks.json", "neither an https:// address nor a file"),
        ("https:///jwks.json", "neither an https:// address nor a file"),
    ],
)
async def test_an_address_that_cannot_be_trusted_stops_the_start(where: str, words: str) -> None:
    with pytest.raises(StalledError, match=words):
        async with open_api(auth(where)):
            pass


@pytest.mark.parametrize(
    ("where", "changed"),
    [
        ("https://issuer.example/jwks.json", {}),
        ("http://localhost/jwks.json", {}),
        ("http://[::1]/jwks.json", {}),
        ("http://issuer.example/jwks.json", {"jwks_allow_http": True}),
    ],
)
async def test_other_addresses_are_taken(where: str, changed: dict[str, Any]) -> None:
    async with open_api(auth(where, **changed)):
        pass


async def test_a_certificate_file_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StalledError, match="jwks_ca_file cannot be read"):
        async with open_api(auth("https://issuer.example/", jwks_ca_file=tmp_path / "none.pem")):
            pass
