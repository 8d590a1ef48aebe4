"""Bodies as they arrive on a real connection: whole, in pieces, too large, too slow, of another kind, broken off."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from api import bodies
from api.problems import ProblemError
from api.schemas import ConfirmBody, SuspendBody, SyncBody
from api.texts import Number, parse_object
from reconciler.core.limits import Limits

JSON = "application/json"
MERGE = "application/merge-patch+json"
REGO = "package projects.a\n"
LIMITS = Limits(rego_bytes=1000, data_bytes=2000)


@dataclass
class Server:
    """``read`` has what the handlers read, ``refused`` what they refused, in the order of the requests."""

    session: aiohttp.ClientSession
    port: int
    read: list[Any] = field(default_factory=list)
    refused: list[ProblemError] = field(default_factory=list)
    refusing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def send(
        self, method: str, body: Any, kind: str | None = JSON, path: str = "/policy", **headers: str
    ) -> tuple[int, str]:
        """(status, detail) of one request; (200, "") when its body was read."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if kind:
            sent["Content-Type"] = kind
        data = body if isinstance(body, bytes) or hasattr(body, "__aiter__") else json.dumps(body).encode()
        async with self.session.request(
            method, f"{self.url}{path}", data=data, headers=sent, skip_auto_headers=["Content-Type"]
        ) as answer:
            document = json.loads(await answer.text())
            return answer.status, document.get("detail", "")

    async def wire(self, *pieces: bytes) -> bytes:
        """What is answered, until the server closes, to pieces of bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            async with asyncio.timeout(5):
                return await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async def policy(request: web.Request) -> web.Response:
        kind = bodies.PATCH if request.method == "PATCH" else bodies.PUT
        return await answer(request, bodies.read(request, kind, LIMITS))

    async def admin(request: web.Request) -> web.Response:
        models = {"sync": SyncBody, "suspend": SuspendBody, "confirm": ConfirmBody}
        return await answer(request, bodies.read_object(request, models[request.match_info["name"]]))

    async def answer(_request: web.Request, reading: Any) -> web.Response:
        try:
            found.read.append(await reading)
        except ProblemError as problem:
            found.refused.append(problem)
            found.refusing.set()
            return problem.response("request-1")
        return web.json_response({})

    app = web.Application(handler_args={"auto_decompress": False, "lingering_time": 0.1})
    app.add_routes([web.route("*", "/policy", policy), web.post("/admin/{name}", admin)])
    runner = web.AppRunner(app)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await web.SockSite(runner, listening).start()
        async with aiohttp.ClientSession() as session:
            found = Server(session, listening.getsockname()[1])
            yield found
        await runner.cleanup()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# --- what is read ----------------------------------------------------------------------------------------------------


async def test_a_policy_is_read_with_the_digits_of_its_numbers(server: Server) -> None:
    raw = b'{"rego": "package x", "data": {"n": 1.0}}'
    assert await server.send("PUT", raw) == (200, "")
    assert server.read == [bodies.Body({"rego": "package x", "data": {"n": Number("1.0")}}, raw)]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", 'Application/JSON;Charset="UTF-8"', JSON])
async def test_the_ways_to_say_json_are_taken(server: Server, kind: str) -> None:
    assert await server.send("PUT", {"rego": REGO}, kind) == (200, "")


async def test_a_body_in_chunks_is_read(server: Server) -> None:
    assert await server.send("PUT", pieces(b'{"re', b'go": "', b'x"}')) == (200, "")
    assert server.read[0].policy == {"rego": "x"}


async def test_parts_of_a_policy_and_merge_patches_are_read(server: Server) -> None:
    for kind, body in [
        (JSON, {"rego": "x"}),
        (JSON, {"data": {}}),
        (JSON, {"data": None}),
        (MERGE, {"data": {"a": None}}),
        (MERGE, {}),
    ]:
        assert await server.send("PATCH", body, kind) == (200, ""), body
    assert [body.policy for body in server.read][-2:] == [{"data": {"a": None}}, {}]


async def test_a_large_body_is_parsed_beside_the_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a megabyte of numbers took 100 ms and more of the event loop, a malformed one seconds."""
    threads = []

    def parse(raw: bytes, nesting: int) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return parse_object(raw, nesting)

    monkeypatch.setattr(bodies, "parse_object", parse)
    assert await server.send("PUT", b'{"rego": "x"}') == (200, "")
    assert await server.send("PUT", b'{"rego": "x"}' + b" " * 40_000) == (200, "")
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "body", "words"),
    [
        ("PUT", JSON, b"", "the body is empty: send"),
        ("PUT", JSON, b" \n", "the body is empty: send"),
        ("PATCH", JSON, b"", "the body is empty: send"),
        ("PUT", JSON, b'{"data": {}}', "rego is missing"),
        ("PUT", JSON, b'{"rego": null}', "rego must be a string, not null"),
        ("PUT", JSON, b'{"rego": 1e3}', "rego must be a string, not a number"),
        ("PUT", JSON, b'{"rego": true}', "not a boolean"),
        ("PUT", JSON, b'{"rego": ["x"]}', "not an array"),
        ("PUT", JSON, b'{"rego": {}}', "not an object"),
        ("PUT", JSON, b'{"rego": "x", "data": "{}"}', "data must be a JSON object, not a string"),
        ("PUT", JSON, b'{"rego": "x", "data": null}', "leave it out"),
        ("PATCH", JSON, b"{}", "changes nothing"),
        ("PATCH", JSON, b'{"rego": null}', "rego cannot be removed"),
        ("PATCH", MERGE, b'{"rego": null}', "rego cannot be removed"),
        ("PATCH", MERGE, b'{"data": [1]}', "data must be a JSON object, not an array"),
        ("PUT", JSON, b'{"Rego": "x"}', "'Rego' (did you mean 'rego'?); a policy has rego and data"),
        ("PUT", JSON, b'{"rego": "x", "dta": {}, "zzzzz": 1}', "'dta' (did you mean 'data'?), 'zzzzz'; a policy"),
        ("PUT", JSON, json.dumps({f"{i}": i for i in range(9)}).encode(), "'4' and 4 more; a policy"),
        ("PUT", JSON, b'{"rego": "x"', "body:1:13"),
        ("PUT", JSON, b'{"rego": "\\ud800"}', "surrogate"),
        ("PUT", JSON, b'{"rego": "x", "rego": "y"}', "stands twice"),
        ("PUT", JSON, b'{"rego": "x", "data": ' + b'{"a":' * 64 + b"{}" + b"}" * 65, "deeper than 65"),
    ],
)
async def test_a_body_that_is_wrong_is_told_what_would_be_right(
    server: Server, method: str, kind: str, body: bytes, words: str
) -> None:
    status, detail = await server.send(method, body, kind)
    assert status == 400
    assert words in detail
    assert server.refused[0].code == "validation_error"


async def test_data_as_deep_as_a_file_may_be_is_read(server: Server) -> None:
    body = b'{"rego": "x", "data": ' + b'{"a":' * 63 + b"{}" + b"}" * 64
    assert await server.send("PUT", body) == (200, "")


@pytest.mark.parametrize(
    ("method", "path", "header", "accepted"),
    [
        ("PUT", "/policy", "Accept", JSON),
        ("PATCH", "/policy", "Accept-Patch", f"{JSON}, {MERGE}"),
        ("POST", "/policy", "Accept-Post", JSON),
        ("POST", "/admin/sync", "Accept-Post", JSON),
    ],
)
async def test_another_kind_of_body_is_told_which_one_is_taken(
    server: Server, method: str, path: str, header: str, accepted: str
) -> None:
    for kind in ("text/plain", "application/json-patch+json", "application/x-www-form-urlencoded", ";;", None):
        status, detail = await server.send(method, b"{}", kind, path)
        assert (status, server.refused[-1].code) == (415, "unsupported_media_type")
        assert f"send {accepted}, not " in detail
        assert server.refused[-1].headers == {header: accepted}
    assert "without Content-Type" in detail


@pytest.mark.parametrize("charset", ["utf-16", "iso-8859-1", "nonsense"])
async def test_another_charset_is_not_read_as_if_it_were_utf_8(server: Server, charset: str) -> None:
    status, detail = await server.send("PUT", {"rego": "x"}, f"{JSON}; charset={charset}")
    assert (status, detail) == (415, f"send UTF-8, not {charset!r}")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_a_packed_body_is_refused_before_it_is_unpacked(server: Server, coding: str) -> None:
    status, detail = await server.send("PUT", b"\x1f\x8b no gzip at all", Content_Encoding=coding)
    assert status == 415
    assert repr(coding) in detail
    assert server.refused[0].headers == {"Accept-Encoding": "identity"}


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_body_that_says_that_it_is_too_large_is_refused_before_it_comes(server: Server) -> None:
    size = bodies.most_bytes(LIMITS) + 1
    head = f"PUT /policy HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: {size}\r\n\r\n"
    answer = await server.wire(head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in answer


async def test_a_body_that_does_not_say_how_large_it_is_is_refused_once_it_is_too_large(server: Server) -> None:
    head = f"PUT /policy HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    answer = await server.wire(head.encode(), *[piece] * (bodies.most_bytes(LIMITS) // 0x8000 + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_text_as_long_as_allowed_is_read_and_one_byte_more_is_not(server: Server) -> None:
    assert await server.send("PUT", {"rego": "é" * 500}) == (200, "")
    status, detail = await server.send("PUT", {"rego": "é" * 500 + "x"})
    assert (status, server.refused[0].code) == (413, "payload_too_large")
    assert "rego is 1001 bytes; the limit is 1000" in detail


async def test_data_as_long_as_allowed_is_read_and_one_byte_more_is_not(server: Server) -> None:
    filler = "x" * (2000 - len('{"a":""}'))
    assert await server.send("PUT", json.dumps({"rego": "x", "data": {"a": filler}}, indent=9).encode()) == (200, "")
    status, detail = await server.send("PUT", {"rego": "x", "data": {"a": filler + "x"}})
    assert status == 413
    assert "data is larger than 2000 bytes" in detail
    status, _ = await server.send("PATCH", {"data": {"a": filler + "x"}}, MERGE)
    assert status == 413


async def test_texts_at_their_limits_fit_into_the_body_however_they_are_escaped(server: Server) -> None:
    body = {"rego": "é" * 500, "data": {"a": "é" * 996}}
    assert await server.send("PUT", json.dumps(body, ensure_ascii=True).encode()) == (200, "")


async def test_a_body_that_drips_is_given_up_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SLOWEST", 0.1)
    head = f'PUT /policy HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: 50\r\n\r\n{{"rego"'
    answer = await server.wire(head.encode())
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert server.refused[0].code == "request_timeout"


async def test_a_body_that_breaks_off_is_a_fault_of_the_request(server: Server) -> None:
    """A client that hung up in the middle of its body counted as a defect of regops, with a traceback."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f'PUT /policy HTTP/1.1\r\nHost: a\r\nContent-Type: {JSON}\r\nContent-Length: 50\r\n\r\n{{"rego"'.encode()
    )
    await writer.drain()
    writer.close()
    await asyncio.wait_for(server.refusing.wait(), 5)
    problem = server.refused[0]
    assert (problem.status, problem.message) == (400, "the body broke off before its end")


# --- small bodies ----------------------------------------------------------------------------------------------------


async def test_a_small_body_is_checked_field_by_field(server: Server) -> None:
    assert await server.send("POST", b"", None, "/admin/sync") == (200, "")
    assert await server.send("POST", {"remove_foreign": True}, path="/admin/sync") == (200, "")
    assert server.read == [SyncBody(), SyncBody(remove_foreign=True)]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/admin/sync", b'{"remove_foregin": true}', "did you mean 'remove_foreign'?"),
        ("/admin/sync", b'{"remove_foreign": "yes"}', "remove_foreign: "),
        ("/admin/sync", b'{"remove_foreign": 1}', "remove_foreign: "),
        ("/admin/sync", b"[]", "must be a JSON object"),
        ("/admin/sync", b'{"remove_foreign": true', "body:1:24"),
        ("/admin/suspend", b'{"reason": null}', "reason: "),
        ("/admin/suspend", json.dumps({"reason": "x" * 1001}).encode(), "reason: "),
        ("/admin/confirm", b"", "commit: "),
        ("/admin/confirm", b'{"commit": "abc"}', "commit: "),
        ("/admin/confirm", b'{"commit": "zzzzzzzz"}', "commit: "),
    ],
)
async def test_a_small_body_that_is_wrong_is_refused(server: Server, path: str, body: bytes, words: str) -> None:
    status, detail = await server.send("POST", body, path=path)
    assert status == 400
    assert words in detail


async def test_a_small_body_is_small(server: Server) -> None:
    status, _ = await server.send("POST", b" " * 70_000, path="/admin/sync")
    assert status == 413
