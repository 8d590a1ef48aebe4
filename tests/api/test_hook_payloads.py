"""Whole webhooks as the Git hosts send them, and what is made of them by those who forge, cut, repeat and inflate."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

import pytest
import pytest_asyncio
from fixtures.etcd import EtcdServer
from fixtures.replicas import Answer, Replica, open_world

from api.hooks import MOST
from reconciler.settings import GitSettings, HooksSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET: Final = "a-secret-of-0123456789"
HOST: Final = "https://git.example.org/Platform/policies.git"
DELIVERIES: Final = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((Path(__file__).parent / "payloads").glob("*.json"))
}
PUSHES: Final = [name for name, sent in DELIVERIES.items() if sent["answer"]["result"] == "looking"]
SIGNED: Final = [name for name in PUSHES if not name.startswith("gitlab")]
"""GitLab sends its token as it is: nothing ties it to the body."""

Sent = tuple[str, bytes, dict[str, str]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(tmp_path_factory: pytest.TempPathFactory, etcd_server: EtcdServer) -> AsyncIterator[Replica]:
    """It polls so rarely that only a hook lets it look."""
    folder = tmp_path_factory.mktemp("payloads")
    (folder / "secrets").write_text(SECRET)
    async with open_world(folder, etcd_server) as world:
        git = GitSettings(remote=world.remote.url, poll_interval=3600)
        hooks = HooksSettings(secrets_file=folder / "secrets", repositories=(HOST,))
        async with world.replica(git=git, hooks=hooks) as replica:
            await replica.get("/policies", Policy_Min_Commit=world.remote.head)
            yield replica


def made(name: str, payload: Mapping[str, Any] | None = None, *, secret: str = SECRET) -> Sent:
    """A delivery as its host would send it: path, the very bytes, headers with every proof that it carries."""
    sent = DELIVERIES[name]
    body = json.dumps(sent["payload"] if payload is None else payload, ensure_ascii=False).encode()
    if "form" in sent["headers"]["Content-Type"]:
        body = b"payload=" + quote_plus(body).encode()
    proof = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {}
    for header, value in sent["headers"].items():
        prefix = "sha256=" if header == "X-Hub-Signature-256" else ""
        word = secret if header == "X-Gitlab-Token" else prefix + proof
        older = f"sha1={hmac.new(secret.encode(), body, hashlib.sha1).hexdigest()}"
        headers[header] = {"SIGNED": word, "SHA1": older}.get(value, value)
    return sent["path"], body, headers


async def post(replica: Replica, sent: Sent) -> Answer:
    path, body, headers = sent
    return await replica.call("POST", path, body, bearer="", **headers)


async def counted(replica: Replica, path: str, result: str) -> float:
    text = (await replica.get("/metrics", bearer="")).body
    line = f'regops_hooks_total{{provider="{path.rpartition("/")[2]}",result="{result}"}} '
    return float(next((each.removeprefix(line) for each in text.splitlines() if each.startswith(line)), 0))


async def looks(replica: Replica) -> float:
    """How often a hook let the reconciler look."""
    return await counted(replica, "hooks/github", "looking") + sum(
        [await counted(replica, each, "looking") for each in ("hooks/gitlab", "hooks/gitea")]
    )


@pytest.mark.parametrize("name", DELIVERIES)
async def test_each_delivery_is_answered_as_its_page_expects_and_counted(replica: Replica, name: str) -> None:
    expected, sent = DELIVERIES[name]["answer"], made(name)
    before = await counted(replica, sent[0], expected["result"])
    answer = await post(replica, sent)
    assert (answer.status, answer.body["result"]) == (expected["status"], expected["result"])
    assert await counted(replica, sent[0], expected["result"]) == before + 1


async def test_every_host_and_kind_of_event_is_among_the_deliveries() -> None:
    """So that a file that vanished is missed."""
    kinds = {(name.partition("-")[0], sent["answer"]["result"]) for name, sent in DELIVERIES.items()}
    assert {(host, "looking") for host in ("github", "gitlab", "gitea", "forgejo")} <= kinds
    assert {("github", "pong"), ("github", "ignored_branch"), ("github", "ignored_event")} <= kinds
    assert len(DELIVERIES) >= 22


@pytest.mark.parametrize("name", DELIVERIES)
async def test_a_forged_delivery_is_refused_whatever_it_says(replica: Replica, name: str) -> None:
    before = await looks(replica)
    path, body, headers = made(name)
    bare = {header: value for header, value in headers.items() if "Signature" not in header and "Token" not in header}
    for forged in (made(name, secret="another-secret-0123456789"), (path, body, bare)):
        answer = await post(replica, forged)
        assert (answer.status, answer.code) == (401, "unauthorized")
        assert "WWW-Authenticate" in answer.headers
    assert await looks(replica) == before


@pytest.mark.parametrize("name", SIGNED)
async def test_a_delivery_that_was_changed_on_its_way_is_refused(replica: Replica, name: str) -> None:
    path, body, headers = made(name)
    for changed in (body[: len(body) // 2], body[:-1], body.replace(b"main", b"evil"), body + b"\n", b""):
        assert (await post(replica, (path, changed, headers))).status == 401
    older = {header: value for header, value in headers.items() if header == "X-Hub-Signature" or "Event" in header}
    assert (await post(replica, (path, body, older))).status == 401


@pytest.mark.parametrize("name", [name for name in PUSHES if name.startswith("gitlab")])
async def test_a_truncated_delivery_whose_token_is_right_is_malformed(replica: Replica, name: str) -> None:
    path, body, headers = made(name)
    before = await counted(replica, path, "malformed")
    answer = await post(replica, (path, body[: len(body) // 2], headers))
    assert (answer.status, answer.code) == (400, "validation_error")
    assert await counted(replica, path, "malformed") == before + 1


@pytest.mark.parametrize("name", PUSHES)
async def test_a_delivery_that_is_repeated_is_answered_the_same_each_time(replica: Replica, name: str) -> None:
    """A host that got no answer sends it again; so may anybody who has recorded it."""
    answers = await asyncio.gather(*(post(replica, made(name)) for _ in range(20)))
    assert {(answer.status, answer.body["result"]) for answer in answers} == {(202, "looking")}
    assert (await replica.get("/status")).body["sync"]["status"] == "Synced"


@pytest.mark.parametrize("name", PUSHES)
async def test_a_delivery_about_another_branch_or_repository_lets_nobody_look(replica: Replica, name: str) -> None:
    before = await looks(replica)
    payload = json.loads(json.dumps(DELIVERIES[name]["payload"]).replace("refs/heads/main", "refs/heads/mainly"))
    other = await post(replica, made(name, payload))
    assert (other.status, other.body["result"]) == (202, "ignored_branch")
    assert "refs/heads/mainly" in other.body["reason"]
    payload = json.loads(json.dumps(DELIVERIES[name]["payload"]).replace("Platform/policies", "Platform/policies-2"))
    other = await post(replica, made(name, payload))
    assert (other.status, other.body["result"]) == (202, "ignored_repository")
    assert "policies-2" in other.body["reason"]
    assert await looks(replica) == before


@pytest.mark.parametrize("name", PUSHES)
async def test_a_delivery_of_a_mebibyte_is_taken_and_one_byte_more_is_not(replica: Replica, name: str) -> None:
    payload = {**DELIVERIES[name]["payload"], "padding": ""}
    room = MOST - len(made(name, payload)[1])
    most = await post(replica, made(name, {**payload, "padding": "x" * room}))
    assert (most.status, most.body["result"]) == (202, "looking")
    more = await post(replica, made(name, {**payload, "padding": "x" * (room + 1)}))
    assert (more.status, more.code) == (413, "payload_too_large")


@pytest.mark.parametrize("name", ["github-push", "gitlab-push", "gitea-push"])
async def test_a_delivery_that_says_it_is_too_large_is_refused_before_its_body_comes(
    replica: Replica, name: str
) -> None:
    """GitHub's payloads may have 25 MB: nobody has to send them first."""
    answer = await asyncio.wait_for(_raw(replica, made(name), length=25_000_000, body=b""), 10)
    assert b" 413 " in answer.partition(b"\r\n")[0]


@pytest.mark.parametrize("name", ["github-push", "gitlab-push", "gitea-push"])
async def test_a_delivery_that_breaks_off_harms_nobody(replica: Replica, name: str) -> None:
    sent = made(name)
    before = await looks(replica)
    answer = await asyncio.wait_for(_raw(replica, sent, length=len(sent[1]), body=sent[1][:1000]), 10)
    assert not answer or b" 400 " in answer.partition(b"\r\n")[0]
    assert await looks(replica) == before
    assert (await post(replica, made(name))).status == 202


@pytest.mark.parametrize("url", ["http://[not-an-address/Platform/policies", "https://[v1.x]/a", "//[", ""])
async def test_a_delivery_with_a_url_that_is_none_is_about_no_repository(replica: Replica, url: str) -> None:
    """Such a URL, in a delivery signed with the secret, once was an error 500."""
    answer = await post(replica, made("gitea-push", {"ref": "refs/heads/main", "repository": {"clone_url": url}}))
    assert (answer.status, answer.body["result"]) == (202, "ignored_repository")
    both = {"ref": "refs/heads/main", "repository": {"html_url": url, "clone_url": HOST}}
    assert (await post(replica, made("gitea-push", both))).body["result"] == "looking"


async def _raw(replica: Replica, sent: Sent, *, length: int, body: bytes) -> bytes:
    """What comes back until the server closes, or has answered, when only ``body`` of ``length`` is sent."""
    path, _, headers = sent
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.settings.server.port)
    try:
        lines = [f"POST {path} HTTP/1.1", "Host: regops", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        if body:
            writer.write_eof()
        return await reader.read(4096)
    finally:
        writer.close()
