"""Each request is one JSON line, whatever its path is made of."""

from __future__ import annotations

import asyncio
import json

import pytest

from api.rendered import Rendered, body_of
from api.requestlog import RequestLog
from reconciler.core.model import Content


@pytest.fixture(autouse=True)
def _said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "api.request")


WORST = '/policies/"\\\n\r\t\x00\u2028é\udcff'


async def test_a_line_has_the_fields_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    RequestLog("regops-server").add("r-1", "GET", WORST, 404, 0.0123456)
    await asyncio.sleep(0)
    (text,) = capsys.readouterr().err.splitlines()
    line = json.loads(text)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "service": "regops-server",
        "level": "info",
        "logger": "api.request",
        "message": "request",
        "request_id": "r-1",
        "method": "GET",
        "path": WORST,
        "status": 404,
        "latency_ms": 12.35,
    }


async def test_the_lines_of_one_turn_are_written_together_and_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    log = RequestLog("s")
    for number in range(3):
        log.add(f"r-{number}", "GET", "/", 200, 0.001)
    assert not capsys.readouterr().err
    await asyncio.sleep(0)
    assert [json.loads(line)["request_id"] for line in capsys.readouterr().err.splitlines()] == ["r-0", "r-1", "r-2"]


async def test_a_quiet_log_says_nothing(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "api.request")
    log = RequestLog("s")
    log.add("r", "GET", "/", 200, 0.001)
    log.flush()
    assert not capsys.readouterr().err


def test_bodies_are_rendered_once_and_kept_within_their_bound() -> None:
    one, two = Content(b"package a\n", b'{"n": 1.0}'), Content(b"package b\n", None)
    rendered = Rendered(most=len(body_of(one)))
    first = rendered.body('"1"', one)
    assert first == b'{"rego":"package a\\n","data":{"n": 1.0}}'
    assert rendered.body('"1"', one) is first
    assert rendered.body('"2"', two) == b'{"rego":"package b\\n"}'
    assert rendered.body('"1"', one) is not first, "forgotten for the other one"
