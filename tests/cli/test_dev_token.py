"""The local issuer: its key, its key set, and the tokens that `regops dev token` prints."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from fixtures.tokens import open_api

from reconciler.settings import AuthSettings, load
from regops import issuer
from regops.cli import main
from regops.issuer import Issuer, ready_entries, serve, server_environment


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder in which `regops dev` has made its key."""
    Issuer.open(tmp_path, create=True)
    return tmp_path


def printed(state: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["dev", "token", "--state", str(state), *words])
    assert done.exit_code == 0, done.output
    return done.output.strip()


def believing(jwks_url: str) -> AuthSettings:
    """The settings of a server that `regops dev` starts."""
    return load(None, server_environment(jwks_url, "http://127.0.0.1:8181")).auth


async def test_a_server_of_dev_believes_the_tokens_that_the_command_prints(state: Path) -> None:
    async with serve(Issuer.open(state, create=False)) as url, open_api(believing(url)) as api:
        admin = await api.bearing(printed(state, "--role", "platform_admin", "--sub", "root"))
        assert (admin.status, admin.body["sub"], admin.body["admin"]) == (200, "root", True)
        member = await api.bearing(printed(state, "--project", "billing", "--project", "orders", "--role", "reader"))
        assert (member.body["projects"], member.body["admin"]) == (["billing", "orders"], False)
        bare = await api.bearing(printed(state))
        assert (bare.status, bare.body["roles"], bare.body["projects"]) == (200, [], [])


def test_as_json_a_token_comes_with_its_claims(state: Path) -> None:
    said = json.loads(printed(state, "--project", "billing", "--sub", "ann", "--ttl", "60", "--json"))
    claims = said["claims"]
    assert (claims["sub"], claims["project"], claims["exp"] - claims["iat"]) == ("ann", "billing", 60)
    assert said["token"].count(".") == 2


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--ttl", "-60"), 401, "expired"),
        (("--aud", "other"), 401, "aud"),
        (("--iss", "https://other.example"), 401, "iss"),
        (("--tenant", "other"), 403, "tenant"),
        (("--tenant", ""), 403, "tenant"),
        (("--sub", ""), 401, "sub"),
    ],
)
async def test_it_prints_tokens_that_do_not_count_for_trying_that_out(
    state: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    async with serve(Issuer.open(state, create=False)) as url, open_api(believing(url)) as api:
        answer = await api.bearing(printed(state, "--role", "platform_admin", *words))
        assert answer.status == status
        assert said in answer.body["detail"]


async def test_the_ready_file_carries_the_issuer_and_two_tokens(state: Path) -> None:
    signer = Issuer.open(state, create=False)
    async with serve(signer) as url, open_api(believing(url)) as api:
        ready = ready_entries(signer, url, "billing")
        assert ready["issuer"] == {"jwks_url": url, "iss": issuer.ISS, "aud": issuer.AUD}
        assert (await api.bearing(ready["tokens"]["admin"])).body["admin"] is True
        assert (await api.bearing(ready["tokens"]["reader"])).body["projects"] == ["billing"]


async def test_the_key_stays_the_same_and_to_itself(state: Path) -> None:
    first = Issuer.open(state, create=True)
    file = state / "issuer" / "key.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == ["key.pem"]
    async with serve(Issuer.open(state, create=True)) as url, aiohttp.ClientSession() as session:
        assert url.startswith("http://127.0.0.1:")
        async with session.get(url) as answer:
            served = await answer.json(content_type=None)
    assert served == first.jwks()
    assert [sorted(key) for key in served["keys"]] == [["alg", "e", "kid", "kty", "n", "use"]]


def test_without_a_key_the_command_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["dev", "token", "--state", str(tmp_path)])
    assert done.exit_code == 1
    assert "Start `regops dev`" in done.output
    assert len(done.output.splitlines()) == 1


def test_a_key_that_cannot_be_read_is_named(state: Path) -> None:
    (state / "issuer" / "key.pem").write_text("nonsense")
    done = CliRunner().invoke(main, ["dev", "token", "--state", str(state)])
    assert done.exit_code == 1
    assert f"{state}/issuer/key.pem cannot be read" in done.output


def test_the_folder_is_found_as_by_the_other_commands(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    assert runner.invoke(main, ["dev", "--state", str(state), "token"]).exit_code == 0
    assert runner.invoke(main, ["dev", "token"], env={"REGOPS_STATE": str(state)}).exit_code == 0
    monkeypatch.chdir(state)
    assert runner.invoke(main, ["dev", "token"]).exit_code == 1, "the default is .regops/dev"


def test_help_of_the_command_has_examples() -> None:
    done = CliRunner().invoke(main, ["dev", "token", "--help"])
    assert "regops dev token --role platform_admin" in done.output.partition("Examples")[2]
