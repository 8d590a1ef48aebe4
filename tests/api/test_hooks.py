"""Webhooks: signed, bounded, and never more than a word to look."""

from __future__ import annotations

import asyncio
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

from api.hooks import PROVIDERS, Secrets, normal
from reconciler.core.errors import StalledError
from reconciler.settings import GitSettings, HooksSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

OLD, NEW = "old-secret-0123456789", "new-secret-0123456789"
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
    secrets.write_text(f"{OLD}\n\n{NEW}\n")
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
    for text, why in (("", "has no secret"), ("short\n", "less than 16")):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(StalledError, match=why):
            Secrets(tmp_path / "bad")
    with pytest.raises(StalledError, match="cannot be read"):
        Secrets(tmp_path / "nowhere")
    assert Secrets(None).now() == ()


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
