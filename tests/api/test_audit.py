"""Every attempt to write leaves one event; requests leave one line; neither has a token or a policy in it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from fixtures.etcd import eventually
from fixtures.replicas import Replica, World
from fixtures.tokens import token

from reconciler.audit import AuditEvent, AuditLog

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIELDS = {
    *(
        "ts",
        "actor",
        "action",
        "resource",
        "etag_before",
        "etag_after",
        "result",
        "request_id",
        "client_ip",
        "commit",
        "id",
    ),
}


def event(replica: Replica, request_id: str) -> dict[str, Any]:
    (found,) = [event for event in replica.audit() if event["request_id"] == request_id]
    assert found.keys() >= FIELDS
    return found


async def test_each_end_of_a_write_has_its_event(replica: Replica) -> None:
    created = await replica.put("told", X_Request_ID="r1")
    updated = await replica.put("told", "second", X_Request_ID="r2", If_Match=created.etag)
    await replica.put("told", "second", X_Request_ID="r3", If_Match=updated.etag)
    await replica.put("told", "third", X_Request_ID="r4", If_Match=created.etag)
    await replica.call("PUT", "/policies/told", {"rego": "x"}, X_Request_ID="r5", If_Match=updated.etag)
    await replica.call("PUT", "/policies/told", b"{", X_Request_ID="r6")
    await replica.put("told", bearer=token(sub="ann"), X_Request_ID="r7")
    await replica.put("told", bearer="", X_Request_ID="r8")
    await replica.call("DELETE", "/policies/told", X_Request_ID="r9", If_Match=updated.etag)
    await replica.call("PUT", "/policies/NO", {}, X_Request_ID="r10")
    found = {name: event(replica, name) for name in (f"r{i}" for i in range(1, 11))}
    assert {name: e["result"] for name, e in found.items()} == {
        "r1": "created",
        "r2": "updated",
        "r3": "unchanged",
        "r4": "conflict",
        "r5": "validation_error",
        "r6": "validation_error",
        "r7": "forbidden",
        "r8": "unauthorized",
        "r9": "deleted",
        "r10": "validation_error",
    }
    assert {name: e["actor"] for name, e in found.items() if name in {"r1", "r7", "r8"}} == {
        "r1": "root",
        "r7": "ann",
        "r8": "anonymous",
    }
    assert found["r2"]["etag_before"] == created.etag
    assert found["r2"]["etag_after"] == updated.etag
    assert found["r2"]["commit"] == updated.commit
    assert found["r2"]["client_ip"] == "127.0.0.1"
    assert found["r9"]["etag_after"] is None
    assert {e["resource"] for name, e in found.items() if name != "r10"} == {"projects/told"}


async def test_an_answer_that_is_given_again_is_audited_as_what_it_is(replica: Replica) -> None:
    """Both were `done`, without a commit: a refusal that was repeated looked like a write that had been granted."""
    first = await replica.put("again", Idempotency_Key="audit-1")
    await replica.put("again", Idempotency_Key="audit-1", X_Request_ID="again-1")
    await replica.put("again", If_Match='"x"', Idempotency_Key="audit-2")
    await replica.put("again", If_Match='"x"', Idempotency_Key="audit-2", X_Request_ID="again-2")
    granted, refused = event(replica, "again-1"), event(replica, "again-2")
    assert (granted["result"], granted["commit"], granted["etag_after"]) == ("replayed", first.commit, first.etag)
    assert (refused["result"], refused["commit"], refused["etag_after"]) == ("conflict", None, None)


async def test_what_writes_nothing_leaves_no_event(replica: Replica) -> None:
    before = len(replica.audit())
    await replica.get("/policies/alpha")
    await replica.put("dry", query="?dry_run=true")
    await replica.call("POST", "/policies/dry:validate", {"rego": "x"})
    assert len(replica.audit()) == before


async def test_administration_is_audited(replica: Replica) -> None:
    await replica.call("POST", "/admin/suspend", {"reason": "x"}, X_Request_ID="s1")
    await replica.call("POST", "/admin/suspend", {"reason": "y"}, X_Request_ID="s2")
    await replica.call("POST", "/admin/resume", X_Request_ID="s3")
    await replica.call("POST", "/admin/sync", {}, X_Request_ID="s4")
    await replica.call("POST", "/admin/confirm", {"commit": "1" * 40}, X_Request_ID="s5")
    found = [event(replica, f"s{i}") for i in range(1, 6)]
    assert [(e["action"], e["result"]) for e in found] == [
        *(("suspend", "done"), ("suspend", "unchanged"), ("resume", "done"), ("sync", "done")),
        ("confirm", "conflict"),
    ]


async def test_request_lines_have_the_fields_of_the_contract_and_no_secret(
    replica: Replica, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    secret = 'package projects.secret\n\npassword := "tulip-9f3a7c"\n'
    await replica.call("PUT", "/policies/secret", {"rego": secret, "data": {"pin": "rose-51d2e8"}}, X_Request_ID="line")
    written = capsys.readouterr().err
    (line,) = [json.loads(text) for text in written.splitlines() if '"request_id": "line"' in text]
    assert {"ts", "service", "level", "request_id", "method", "path", "status", "latency_ms"} <= line.keys()
    said = written + "\n".join(str(vars(record)) for record in caplog.records) + json.dumps(replica.audit())
    for word in ("tulip-9f3a7c", "rose-51d2e8", replica.admin, replica.admin.rpartition(".")[2]):
        assert word not in said


async def test_the_journal_is_empty_when_everything_is_logged(replica: Replica) -> None:
    await replica.put("journalled")
    assert not (replica.settings.server.state / "audit-journal.jsonl").exists()


async def test_what_a_killed_replica_had_sent_is_audited_when_it_starts_again(world: World) -> None:
    """It died between the push and the log: the journal is what is left of the attempt."""
    settings = world.settings("killed")
    settings.server.state.mkdir(parents=True)
    made, lost = world.remote.head, "1" * 40
    lines = [
        {"request_id": "made", "commit": made, "actor": "ann", "policy": "projects/alpha"},
        {"request_id": "lost", "commit": lost, "actor": "bob", "policy": "projects/beta"},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines) + '{"request_id": "torn'
    (settings.server.state / "audit-journal.jsonl").write_text(text)
    replica = Replica(settings)
    await replica.start()
    try:

        async def recovered() -> bool:
            return len(replica.audit()) == 2

        await eventually(recovered, 10)
    finally:
        await replica.stop()
    found = {e["request_id"]: (e["result"], e["commit"], e["recovered"]) for e in replica.audit()}
    assert found == {"made": ("committed", made, True), "lost": ("not_committed", None, True)}


async def exchanged(replica: Replica, *lines: str) -> bytes:
    """What comes back for these lines of a request's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.settings.server.port)
    head = "\r\n".join((*lines, "Host: x", "Content-Type: application/json", "Content-Length: 2", "Connection: close"))
    writer.write(f"{head}\r\n\r\n{{}}".encode("latin-1"))
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def test_an_expectation_that_cannot_be_met_is_a_problem_and_an_event(replica: Replica) -> None:
    """aiohttp answered before the middleware: no problem, no request id, no line, no event."""
    token = f"Authorization: Bearer {replica.admin}"
    answer = await exchanged(replica, "PUT /policies/told HTTP/1.1", token, "X-Request-ID: e1", "Expect: a-miracle")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 417 ")
    assert json.loads(body)["code"] == event(replica, "e1")["result"] == "expectation_failed"
    answer = await exchanged(replica, "PUT /policies/told HTTP/1.1", token, "X-Request-ID: e2", "Expect: 100-Continue")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 ")
    assert event(replica, "e2")["result"] == "validation_error"


@pytest.mark.parametrize("bad", ["\x01", "x" * 30_000])
async def test_a_token_in_a_line_that_cannot_be_read_is_in_no_log(
    replica: Replica, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    """aiohttp logs the line that its parser refuses; a token with a stray byte at its end stood there whole."""
    caplog.set_level("DEBUG")
    answer = await exchanged(replica, "GET /policies HTTP/1.1", f"Authorization: Bearer tulip-9f3a7c{bad}")
    assert b" 400 " in answer
    formatter = logging.Formatter()
    (line,) = [record for record in caplog.records if record.name == "api.wire"]
    assert line.getMessage() == "request cannot be read"
    assert "tulip-9f3a7c" not in "".join(formatter.format(r) + str(vars(r)) for r in caplog.records)


async def test_an_event_that_was_written_before_the_crash_is_not_written_again(world: World) -> None:
    """It died between the audit log and the journal's note: once that was a second event."""
    settings = world.settings("died-between")
    settings.server.state.mkdir(parents=True)
    line = {"attempt": "a1", "request_id": "r", "commit": "1" * 40, "actor": "ann", "policy": "projects/alpha"}
    (settings.server.state / "audit-journal.jsonl").write_text(f"{json.dumps(line)}\n")
    assert settings.audit.file is not None
    log = AuditLog(settings.audit.file)
    log.emit(AuditEvent("ann", "write", "projects/alpha", "created", "r", commit="1" * 40, id="a1"))
    log.close()
    replica = Replica(settings)
    await replica.start()
    try:
        await eventually(lambda: not list(settings.server.state.glob("audit-journal.jsonl*")))
        assert [event["id"] for event in replica.audit()] == ["a1"]
    finally:
        await replica.stop()


async def test_what_nobody_offers_is_no_action_whoever_asks_for_it(replica: Replica) -> None:
    """Each path under /admin/ that a stranger made up was an audit event of an action of that name, and a child of the
    metric for ever."""
    for number in range(20):
        asked = [await replica.call("POST", f"/admin/made-up-{number}", bearer=bearer) for bearer in ("", None)]
        assert [each.status for each in asked] == [401, 404]
    lines = (await replica.get("/metrics")).body.splitlines()
    children = [line for line in lines if line.startswith("regops_audit_events_total{")]
    assert not [line for line in children if "made-up" in line]
    assert not [found for found in replica.audit() if "made-up" in found["action"]]
    await replica.call("POST", "/admin/suspend", {"reason": "x"}, bearer="", X_Request_ID="still-told")
    assert event(replica, "still-told")["action"] == "suspend"
