"""Webhooks: signed, bounded, and never more than a word to look."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
from fixtures.etcd import EtcdServer, eventually
from fixtures.git import Remote
from fixtures.replicas import Answer, Replica, World, open_world, rego

from api.hook_proofs import PROVIDERS
from api.hook_secrets import Secrets
from api.hooks import normal
from reconciler.core.errors import StalledError
from reconciler.settings import GitSettings, HooksSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

OLD, NEW = "old-secret-0123456789", "new-secret-0123456789"
SIGNING = "whsec_" + base64.b64encode(bytes(range(32))).decode()
HOST = "https://git.example.org/Platform/policies.git"

GITHUB = {
    "ref": "refs/heads/main",
    "before": "6113728f27ae82c7b1a177c8d03f9e96e0adf246",
    "after": "0" * 40,
    "repository": {
        "full_name": "Platform/policies",
        "html_url": "https://git.example.org/Platform/policies",
        "clone_url": HOST,
        "ssh_url": "git@git.example.org:Platform/policies.git",
    },
    "pusher": {"name": "ann", "email": "ann@example.org"},
}
"""The fields of docs.github.com, "Webhook events and payloads", push, that are looked at, and some more."""
GITLAB = {
    "object_kind": "push",
    "event_name": "push",
    "ref": "refs/heads/main",
    "user_username": "ann",
    "project": {
        "path_with_namespace": "Platform/policies",
        "git_ssh_url": "git@git.example.org:Platform/policies.git",
        "git_http_url": HOST,
        "web_url": "https://git.example.org/Platform/policies",
    },
}
"""The same of docs.gitlab.com, "Webhook events", push events."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer) -> AsyncIterator[Replica]:
    """It polls so rarely that only a hook lets it look."""
    folder = tmp_path_factory.mktemp("hooks")
    secrets = folder / "secrets"
    secrets.write_text(f"{OLD}\n\n{NEW}\n{SIGNING}\n")
    async with open_world(folder, etcd_server) as world:
        git = GitSettings(remote=world.remote.url, poll_interval=3600)
        hooks = HooksSettings(secrets_file=secrets, repositories=(HOST,))
        async with world.replica(git=git, hooks=hooks) as replica:
            await replica.get("/policies", Policy_Min_Commit=world.remote.head)
            yield replica


async def send(replica: Replica, provider: str, payload: Any, secret: str = NEW, **headers: str) -> Answer:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    own = {
        "github": {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"},
        "gitlab": {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Token": secret},
        "gitea": {"X-Gitea-Event": "push", "X-Gitea-Signature": signature},
        "generic": {"X-Regops-Signature": f"sha256={signature}"},
    }[provider]
    given = {**own, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await replica.call("POST", f"/hooks/{provider}", body, bearer="", **given)


def payload(provider: str, **changed: Any) -> dict[str, Any]:
    return {**(GITLAB if provider == "gitlab" else GITHUB), **changed}


async def counted(replica: Replica, provider: str, result: str) -> float:
    text = (await replica.get("/metrics", bearer="")).body
    line = f'regops_hooks_total{{provider="{provider}",result="{result}"}} '
    return float(next((each.removeprefix(line) for each in text.splitlines() if each.startswith(line)), 0))


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_push_is_live_soon_after_its_hook(replica: Replica, provider: str) -> None:
    """The remote is watched as a folder too; but for the count nobody could tell who was first."""
    before = await counted(replica, provider, "looking")
    remote = Remote(Path(replica.settings.git.remote.removeprefix("file://")))
    name = f"policies/projects/hook-{provider}/rego.rego"
    commit = await asyncio.to_thread(remote.commit, {name: rego(f"hook-{provider}").encode()})
    answer = await send(replica, provider, payload(provider))
    assert (answer.status, answer.body) == (202, {"result": "looking"})
    assert (await replica.get("/policies", Policy_Min_Commit=commit)).status == 200
    assert await counted(replica, provider, "looking") == before + 1


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_each_secret_counts_and_no_other(replica: Replica, provider: str) -> None:
    assert (await send(replica, provider, payload(provider), OLD)).status == 202
    before = await counted(replica, provider, "refused")
    forged = await send(replica, provider, payload(provider), "another-secret-0123456789")
    assert (forged.status, forged.code) == (401, "unauthorized")
    async with aiohttp.ClientSession() as session, session.post(f"{replica.url}/hooks/{provider}", json={}) as bare:
        assert bare.status == 401
    assert await counted(replica, provider, "refused") == before + 2


async def test_a_signature_is_of_the_very_bytes(replica: Replica) -> None:
    body = json.dumps(GITHUB).encode()
    signature = hmac.new(NEW.encode(), body, hashlib.sha256).hexdigest()
    for changed in (body[:-1], body + b" ", body.replace(b"main", b"mail")):
        answer = await send(replica, "github", changed, X_Hub_Signature_256=f"sha256={signature}")
        assert answer.status == 401
    for odd in ("", "sha256=", f"sha1={signature}", "sha256=\u00e4", "sha256=" + "0" * 64):
        assert (await send(replica, "github", body, X_Hub_Signature_256=odd)).status == 401
    form = f"payload={quote(json.dumps(GITHUB))}".encode()
    sent = await send(replica, "github", form, Content_Type="application/x-www-form-urlencoded")
    assert (sent.status, sent.body["result"]) == (202, "looking")


def signed(body: bytes, token: str = SIGNING, sent: str = "1774000000") -> dict[str, str]:
    """The headers of GitLab's signed webhooks, by the Standard Webhooks."""
    key = base64.b64decode(token.removeprefix("whsec_"))
    proof = hmac.new(key, b"a-uuid." + sent.encode() + b"." + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(proof).decode()}"
    return {"webhook_id": "a-uuid", "webhook_timestamp": sent, "webhook_signature": signature}


async def gitlab(replica: Replica, body: bytes, **headers: str) -> int:
    """The answer to a hook of GitLab without a secret token, unless one is given."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    own = {"X-Gitlab-Event": "Push Hook", **given}
    return (await replica.call("POST", "/hooks/gitlab", body, bearer="", **own)).status


async def test_a_signature_is_that_of_the_standards_own_example() -> None:
    """standard-webhooks, libraries: the same secret, id, time and body in each of their tests."""
    found = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    proven = PROVIDERS["gitlab"].proof
    assert proven(found, b'{"test": 2432232314}', secret)
    assert not proven(found, b'{"test": 2432232315}', secret)


async def test_gitlabs_signature_is_of_id_time_and_the_very_bytes(replica: Replica) -> None:
    """A hook with a signing token and no secret token was refused."""
    body = json.dumps(GITLAB).encode()
    sound = signed(body)
    assert await gitlab(replica, body, **sound) == 202
    older = "v1,AAAA v1a,BBBB "
    assert await gitlab(replica, body, **{**sound, "webhook_signature": older + sound["webhook_signature"]}) == 202
    for changed in (body[:-1], body + b" ", body.replace(b"main", b"mail")):
        assert await gitlab(replica, changed, **sound) == 401
    forged = {
        "webhook_id": ("another", ""),
        "webhook_timestamp": ("1774000001", ""),
        "webhook_signature": (
            *("", "v1,", "v1", sound["webhook_signature"][:-4], sound["webhook_signature"].removeprefix("v1,")),
            *("v2" + sound["webhook_signature"][2:], "v1,\u00e4", sound["webhook_signature"].upper()),
        ),
    }
    for name, values in forged.items():
        for value in values:
            assert await gitlab(replica, body, **{**sound, name: value}) == 401, (name, value)
    for name in ("webhook_id", "webhook_timestamp"):
        assert await gitlab(replica, body, **{key: value for key, value in sound.items() if key != name}) == 401
    other = "whsec_" + base64.b64encode(bytes(32)).decode()
    assert await gitlab(replica, body, **signed(body, other)) == 401
    assert await gitlab(replica, body, **signed(body, base64.b64encode(NEW.encode()).decode())) == 401


async def test_a_signature_that_is_wrong_is_not_made_good_by_the_token_beside_it(replica: Replica) -> None:
    body = json.dumps(GITLAB).encode()
    assert await gitlab(replica, body, X_Gitlab_Token=SIGNING) == 202, "a line serves both"
    assert await gitlab(replica, body, X_Gitlab_Token=NEW, **signed(body)) == 202
    assert await gitlab(replica, body, X_Gitlab_Token=NEW, **signed(body + b" ")) == 401
    assert await gitlab(replica, body, X_Gitlab_Token=NEW, webhook_signature="") == 401


@pytest.mark.parametrize("provider", ["github", "gitlab", "gitea"])
async def test_what_is_about_something_else_is_answered_and_counted(replica: Replica, provider: str) -> None:
    branch = await send(replica, provider, payload(provider, ref="refs/heads/other"))
    assert (branch.status, branch.body["result"]) == (202, "ignored_branch")
    assert "refs/heads/other" in branch.body["reason"]
    place = "project" if provider == "gitlab" else "repository"
    other = await send(replica, provider, payload(provider, **{place: {"clone_url": "https://git.example.org/a/b"}}))
    assert (other.status, other.body["result"]) == (202, "ignored_repository")
    assert "git.example.org/a/b" in other.body["reason"]
    nothing = await send(replica, provider, payload(provider, **{place: None}))
    assert nothing.body["result"] == "ignored_repository"
    assert await counted(replica, provider, "ignored_repository") >= 2


async def test_tests_and_other_events_are_answered_as_such(replica: Replica) -> None:
    ping = await send(replica, "github", {"zen": "Design for failure.", "hook_id": 1}, X_GitHub_Event="ping")
    assert (ping.status, ping.body) == (200, {"result": "pong"})
    for provider, header, event in (
        ("github", "X_GitHub_Event", "star"),
        ("gitlab", "X_Gitlab_Event", "Tag Push Hook"),
        ("gitea", "X_Gitea_Event", "issues"),
    ):
        answer = await send(replica, provider, payload(provider), **{header: event})
        assert (answer.status, answer.body["result"]) == (202, "ignored_event")
    system = await send(replica, "gitlab", payload("gitlab", object_kind="tag_push"), X_Gitlab_Event="System Hook")
    assert system.body["result"] == "ignored_event"
    empty = await send(replica, "generic", b"")
    assert (empty.status, empty.body["result"]) == (202, "looking")
    bearer = await replica.call("POST", "/hooks/generic", b"", bearer=NEW)
    assert bearer.status == 202
    elsewhere = await send(replica, "generic", {"ref": "refs/heads/x", "repository": HOST})
    assert elsewhere.body["result"] == "ignored_branch"


async def test_a_body_that_is_none_is_refused(replica: Replica) -> None:
    for body in (b"{", b"[1]", b"\xff", b'"x"', b"[" * 100_000):
        answer = await send(replica, "github", body)
        assert (answer.status, answer.code) == (400, "validation_error")
    large = await send(replica, "github", b'{"x": "' + b"y" * 1024 * 1024 + b'"}')
    assert (large.status, large.code) == (413, "payload_too_large")
    assert (await send(replica, "github", {**GITHUB, "x": "y" * 1_000_000})).status == 202


@pytest.mark.parametrize("provider", ["github", "gitea", "generic"])
async def test_json_is_read_as_json_whatever_the_body_is_said_to_be(replica: Replica, provider: str) -> None:
    """`curl -d` says of every body that it is a form: a signed hook of JSON was answered 400, "the body is no JSON
    object"; and a form without GitHub's field 500."""
    for said in ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream"):
        answer = await send(replica, provider, payload(provider), Content_Type=said)
        assert (answer.status, answer.body) == (202, {"result": "looking"}), said
    form = await send(replica, provider, b"ref=refs/heads/main", Content_Type="application/x-www-form-urlencoded")
    assert (form.status, form.code) == (400, "validation_error")


async def test_a_hook_of_an_unknown_host_is_told_which_there_are(replica: Replica) -> None:
    """A Git host without hooks of its own was told that its token is no JWT."""
    answer = await replica.call("POST", "/hooks/bitbucket", b"{}", bearer=NEW)
    assert (answer.status, answer.code) == (404, "not_found")
    for name in PROVIDERS:
        assert f"/hooks/{name}" in answer.body["detail"]


async def test_a_hook_that_is_repeated_does_no_harm(replica: Replica) -> None:
    answers = await asyncio.gather(*(send(replica, "github", GITHUB) for _ in range(50)))
    assert {answer.status for answer in answers} == {202}
    assert (await replica.get("/status")).body["sync"]["status"] == "Synced"


async def test_without_secrets_every_hook_is_refused_and_says_what_is_missing(world: World) -> None:
    async with world.replica() as replica:
        answer = await send(replica, "github", GITHUB)
        assert (answer.status, answer.code) == (403, "forbidden")
        assert "hooks.secrets_file" in answer.body["detail"]


async def test_a_hook_at_a_replica_that_does_not_lead_reaches_the_leader(world: World, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    await asyncio.to_thread(secrets.write_text, NEW)
    git = GitSettings(remote=world.remote.url, poll_interval=3600)
    hooks = HooksSettings(secrets_file=secrets, repositories=(HOST,))
    async with world.replica(git=git, hooks=hooks), world.replica(git=git, hooks=hooks, reconciler=False) as follower:
        commit = await asyncio.to_thread(world.remote.commit, {"policies/projects/far/rego.rego": rego("far").encode()})
        assert (await send(follower, "github", GITHUB)).status == 202
        await eventually(lambda: _has(follower, commit))


async def _has(replica: Replica, commit: str) -> bool:
    return (await replica.get("/policies?timeout=1", Policy_Min_Commit=commit)).status == 200


async def test_secrets_are_exchanged_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text(OLD)
    secrets = Secrets(file)
    assert secrets.now() == [OLD.encode()]
    file.write_text(f"{OLD}\n{NEW}")
    assert secrets.now() == [OLD.encode(), NEW.encode()]
    for text, why in (
        ("", "has no secret"),
        ("short\n", "less than 16"),
        ("whsec_not-base64-at-all!\n", "signing token"),
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(StalledError, match=why):
            Secrets(tmp_path / "bad")
    with pytest.raises(StalledError, match="cannot be read"):
        Secrets(tmp_path / "nowhere")
    assert Secrets(None).now() == ()


@pytest.mark.parametrize("damage", ["emptied", "cut", "lost"])
async def test_secrets_that_are_lost_go_on_counting_and_are_told_of_once(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An emptied file turned every hook off, and told strangers the path of it in a 503."""
    file, counted = tmp_path / "secrets", list[str]()
    file.write_text(OLD)
    secrets = Secrets(file, unusable=lambda: counted.append(damage))
    if damage == "lost":
        file.unlink()
    else:
        file.write_text("" if damage == "emptied" else "cut")
    assert [secrets.now() for _ in range(3)] == [[OLD.encode()]] * 3
    assert counted == [damage]
    assert len([each for each in caplog.records if each.message == "hook secrets kept as they were"]) == 1
    file.write_text(NEW)
    assert secrets.now() == [NEW.encode()]
    file.write_text("")
    assert (secrets.now(), len(counted)) == ([NEW.encode()], 2)


async def test_an_emptied_file_of_secrets_keeps_hooks_going_and_tells_strangers_nothing(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "secrets"
    file.write_text(NEW)
    hooks = HooksSettings(secrets_file=file, repositories=(HOST,))
    async with world.replica(reconciler=False, hooks=hooks) as other:
        await asyncio.to_thread(file.write_text, "")
        forged = await send(other, "github", GITHUB, "another-secret-0123456789")
        assert (forged.status, str(file) in str(forged.body)) == (401, False)
        assert (await send(other, "github", GITHUB)).status == 202
        text = (await other.get("/metrics", bearer="")).body
        assert "regops_hook_secrets_unusable_total 1.0" in text


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.org/Platform/policies",
        "http://ann@git.example.org:8443/platform/policies.git/",
        "ssh://git@git.example.org:22/Platform/policies.git",
        "git@git.example.org:Platform/policies.git",
        "git.example.org:/Platform/policies",
    ],
)
async def test_one_repository_has_many_urls(url: str) -> None:
    assert normal(url) == normal(HOST)
    assert normal("https://git.example.org/other") != normal(HOST)
