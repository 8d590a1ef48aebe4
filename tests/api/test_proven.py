"""A token is proven once, and for no longer than it would be accepted anew."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fixtures.tokens import auth, claims, forge, jwks, signer, token

from api.auth import Verifier, tokens
from api.auth.jwks import Key
from api.auth.key_sources import FileKeys
from api.auth.keys import Keys
from api.auth.proven import MOST, Proven
from api.problems import ProblemError
from reconciler.core.errors import TransientError


class Issuer:
    """Keys in a file, and a verifier whose clocks stand still until they are set."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "jwks.json"
        self.file.write_bytes(jwks("rsa"))
        self.now, self.ticks = time.time(), 0.0
        self.keys = Keys(FileKeys(self.file), cooldown=1e-9, max_age=100, clock=lambda: self.ticks)
        self.verifier = Verifier(self.keys, auth(str(self.file)), clock=lambda: self.now)

    async def status(self, presented: str) -> int:
        try:
            await self.verifier.verify(f"Bearer {presented}")
        except ProblemError as error:
            return error.status
        except TransientError:
            return 503
        return 200

    async def refresh(self, *names: str) -> None:
        """The issuer publishes these keys, and they are read."""
        self.file.write_bytes(jwks(*names))
        async with self.keys._lock:
            await self.keys._read()


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path)


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The signatures that were verified."""
    seen: list[str] = []
    prove = tokens.payload

    def counted(read: tokens.Unverified, key: Key) -> object:
        seen.append(read.signature.hex())
        return prove(read, key)

    monkeypatch.setattr(tokens, "payload", counted)
    return seen


async def test_a_token_is_proven_once(issuer: Issuer, proofs: list[str]) -> None:
    mine, other = token(), token(sub="bob")
    first = await issuer.verifier.verify(f"Bearer {mine}")
    assert await issuer.verifier.verify(f"Bearer {mine}") is first
    assert (await issuer.verifier.verify(f"Bearer {other}")).sub == "bob"
    assert len(proofs) == 2


async def test_a_key_that_the_issuer_takes_away_ends_its_proven_tokens_at_the_refresh(issuer: Issuer) -> None:
    await issuer.refresh("rsa", "rsa-2")
    kept, withdrawn = token("rsa"), token("rsa-2")
    assert [await issuer.status(each) for each in (kept, withdrawn, kept, withdrawn)] == [200] * 4
    await issuer.refresh("rsa")
    assert [await issuer.status(each) for each in (kept, withdrawn, withdrawn)] == [200, 401, 401]


async def test_another_key_of_the_same_name_ends_the_proven_tokens_too(issuer: Issuer) -> None:
    mine = token()
    assert await issuer.status(mine) == 200
    issuer.file.write_bytes(jwks("rsa-2").replace(b'"rsa-2"', b'"rsa"'))
    async with issuer.keys._lock:
        await issuer.keys._read()
    assert await issuer.status(mine) == 401


async def test_a_refresh_that_changes_nothing_proves_nothing_again(issuer: Issuer, proofs: list[str]) -> None:
    mine = token()
    await issuer.status(mine)
    await issuer.refresh("rsa")
    assert await issuer.status(mine) == 200
    assert len(proofs) == 1


async def test_keys_that_have_become_too_old_end_the_proven_tokens(issuer: Issuer) -> None:
    mine = token()
    assert await issuer.status(mine) == 200
    issuer.file.unlink()
    issuer.ticks = 101
    assert await issuer.status(mine) == 503


async def test_a_proven_token_ends_when_it_expires(issuer: Issuer) -> None:
    mine = token(exp=int(issuer.now) + 5)
    assert await issuer.status(mine) == 200
    issuer.now = int(issuer.now) + 5 + 29
    assert await issuer.status(mine) == 200, "within the leeway"
    issuer.now += 1
    assert [await issuer.status(mine), await issuer.status(mine)] == [401, 401]


async def test_a_proven_token_vouches_for_no_other_signature_or_claim(issuer: Issuer) -> None:
    said, header = claims(), {"alg": "RS256", "kid": "rsa", "typ": "JWT"}
    mine = forge(header, said, signer("rsa"))
    assert await issuer.status(mine) == 200
    head, payload, signature = mine.split(".")
    richer = forge(header, said | {"roles": ["platform_admin"]}, b"x").split(".")[1]
    for forged in (f"{head}.{richer}.{signature}", f"{head}.{payload}.{signature[:-4]}AAAA", f"{head}.{payload}."):
        assert await issuer.status(forged) == 401


async def test_what_was_refused_is_not_remembered(issuer: Issuer, proofs: list[str]) -> None:
    early = token(nbf=int(issuer.now) + 60)
    assert await issuer.status(early) == 401
    issuer.now += 60
    assert await issuer.status(early) == 200
    assert len(proofs) == 2


async def test_only_so_many_tokens_are_remembered(issuer: Issuer) -> None:
    found = await issuer.verifier.verify(f"Bearer {token()}")
    proven, keys = Proven(), issuer.keys.current
    for number in range(MOST + 1):
        digest = number.to_bytes(32)
        proven.add(type(found)(*("",) * 3, None, frozenset(), frozenset(), {}, digest), keys, issuer.now + 1)
    assert proven.find((0).to_bytes(32), keys, issuer.now) is None
    assert proven.find((1).to_bytes(32), keys, issuer.now) is not None
    assert len(proven._callers) == MOST


async def test_the_tokens_themselves_are_not_kept(issuer: Issuer) -> None:
    mine = token()
    await issuer.status(mine)
    assert mine not in repr(vars(issuer.verifier._proven))


async def test_a_token_is_not_remembered_when_the_keys_became_too_old_while_it_was_proven(issuer: Issuer) -> None:
    """It was remembered for the lack of any key, and counted until its end while there was none."""
    assert await issuer.status("x.y.z") == 401
    presented = token()
    await issuer.refresh("rsa")
    looks = iter([99.0, 99.0])
    issuer.keys._clock = lambda: next(looks, 101.0)
    await issuer.status(presented)
    issuer.file.unlink()
    assert await issuer.status(presented) == 503
