"""Tokens for all inputs: no edit of a good one is believed, no text is anything but a refusal."""

from __future__ import annotations

import contextlib
import json
import time
from functools import cache
from typing import Any

import pytest
from fixtures.tokens import auth, claims, jwks, pair, token
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from api.auth import ADMIN_ROLE, Caller
from api.auth.claims import caller_of
from api.auth.jwks import KeySet, parse_jwks
from api.auth.tokens import bearer, payload, read
from api.problems import ProblemError

KEYS = ("rsa", "rsa-2", "ec", "ed")
SETTINGS = auth("file:///unused")


@cache
def published() -> KeySet:
    return parse_jwks(jwks(*KEYS))


@cache
def good(kid: str) -> str:
    return token(kid, exp=int(time.time()) + 3600)


def believe(authorization: str) -> Caller:
    """What `Verifier.verify` does, with the keys at hand."""
    unverified = read(bearer(authorization), SETTINGS.algorithms)
    key = published().find(unverified.kid, unverified.algorithm)
    if key is None:
        raise ProblemError(401, "unauthorized", "no key")
    return caller_of(payload(unverified, key), SETTINGS, time.time())


def outcome(changed: dict[str, Any]) -> Caller | int:
    try:
        return caller_of(claims(**changed), SETTINGS, time.time())
    except ProblemError as error:
        return error.status


CHARACTERS = st.characters(codec="latin-1") | st.sampled_from("ABCxyz019-_.+/= ")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KEYS), st.data())
def test_no_edit_of_a_good_token_is_believed(kid: str, data: st.DataObject) -> None:
    text = good(kid)
    assert believe(f"Bearer {text}").sub == "ann"
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 3)))
    changed = text[:start] + data.draw(st.text(CHARACTERS, max_size=3)) + text[end:]
    assume(changed.lstrip(" ") != text)
    with pytest.raises(ProblemError) as caught:
        believe(f"Bearer {changed}")
    assert caught.value.status == 401


@settings(max_examples=200, deadline=None)
@given(st.text(CHARACTERS) | st.from_regex(r"Bearer [A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*", fullmatch=True))
def test_no_text_is_anything_but_401(text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        believe(text)
    assert caught.value.status == 401


TEXTS = st.text(max_size=5) | st.sampled_from([ADMIN_ROLE, f"reader {ADMIN_ROLE}", "acme", "billing", "platform"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
NAMES = ["iss", "aud", "exp", "nbf", "iat", "sub", "tenant", "roles", "project", "name", "email"]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
def test_signed_claims_of_any_shape_make_a_caller_or_a_refusal(changed: dict[str, Any]) -> None:
    """The issuer is trusted, its taste is not: whatever it signs, nothing breaks and no role comes out of thin air."""
    found = outcome(changed)
    if isinstance(found, int):
        assert found in {401, 403}
        return
    said = claims(**changed)
    roles, projects = said["roles"] or [], said["project"] or []
    assert found.is_admin == (ADMIN_ROLE in (roles.split(" ") if isinstance(roles, str) else roles))
    assert set(found.projects) == ({projects} if isinstance(projects, str) else set(projects) - {""})
    assert (found.tenant, found.sub) == ("acme", said["sub"])


FIELDS = ["kty", "n", "e", "crv", "x", "y", "alg", "use", "key_ops", "kid", "d", "k"]
WORDS = st.sampled_from(["RSA", "EC", "OKP", "oct", "P-256", "P-384", "Ed448", "sig", "enc", "AQAB", "AQ", "HS256", ""])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KEYS), st.dictionaries(st.sampled_from(FIELDS), JSON | WORDS, min_size=1, max_size=3), JSON)
def test_a_key_of_any_shape_is_read_or_left_out(kid: str, changed: dict[str, Any], other: Any) -> None:
    found = parse_jwks(json.dumps({"keys": [{**pair(kid).jwk, **changed}, other, pair("rsa-3").jwk]}).encode())
    assert [key for key in found.keys if key.kid == "rsa-3"], "one bad key spoils no other"
    assert len(found.keys) <= 2
    assert {key.algorithm for key in found.keys} <= {pair(kid).algorithm, "RS256"}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=50) | JSON.map(lambda value: json.dumps({"keys": value}).encode()))
def test_a_document_of_any_shape_gives_no_key_or_is_refused(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert parse_jwks(raw).keys == ()
