"""Decision logs, in each form in which they come, and with what goes wrong in them."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fixtures.opa import OpaServer
from fixtures.reviews import decision

from reconciler.core.errors import StalledError
from regops.checking.decisions import Decision, OtherLine, Read, Skipped, Unreadable, read
from regops.checking.members import Member, Members, Unparsed


def reads(file: Path, text: str | bytes) -> list[Read]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read(str(file)))


def ids(found: list[Read]) -> list[str]:
    return [each.id for each in found if isinstance(each, Decision)]


def places(found: list[Read]) -> list[str]:
    return [each.place.partition(": ")[0].rpartition("log")[2] for each in found if isinstance(each, Unreadable)]


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log"


def line(number: int) -> str:
    return json.dumps(decision(number))


# --- forms -----------------------------------------------------------------------------------------------------------


def test_a_line_that_begins_with_a_bracket_costs_itself_only(log_file: Path) -> None:
    """`[INFO] …` in a log was taken for an array over several lines: all the rest was read with it, and lost."""
    found = reads(log_file, f"{line(1)}\n[INFO] something\n{line(2)}\n[\n{line(3)}\n")
    assert (ids(found), places(found)) == (["d1", "d2", "d3"], [":2:2"])


@pytest.mark.parametrize("between", ["", "\n", "\n\n  "])
@pytest.mark.parametrize("packed", [False, True])
def test_uploads_that_were_put_one_behind_the_other_are_read(log_file: Path, between: str, packed: bool) -> None:
    """As a receiver does that appends each body to a file: `…}][{…`, or one gzip member after the other."""
    bodies = [json.dumps([decision(1), decision(2)]), json.dumps([decision(3)])]
    parts = [f"{body}{between}".encode() for body in bodies]
    found = reads(log_file, b"".join(gzip.compress(part) if packed else part for part in parts))
    assert ids(found) == ["d1", "d2", "d3"]
    assert len(found) == 3


def test_places_are_lines_also_in_arrays(log_file: Path) -> None:
    documents = [decision(1), {"x": {"y": 1}}, decision(2)]
    found = reads(log_file, json.dumps(documents, indent=2))
    line_of_x = json.dumps(documents, indent=2).splitlines().index('    "x": {')
    assert (ids(found), places(found)) == (["d1", "d2"], [f":{line_of_x}:3"])


def test_one_bad_member_of_an_array_costs_itself_only(log_file: Path) -> None:
    text = json.dumps([decision(1), decision(2), decision(3)], indent=2).replace('"d2"', "oops")
    found = reads(log_file, text)
    assert (ids(found), len(places(found))) == (["d1", "d3"], 1)


def test_a_line_that_was_cut_off_costs_itself_only(log_file: Path) -> None:
    found = reads(log_file, f'{line(1)}\n{line(2)[:30]}\n{line(3)}\n{{"decision_id": "d4", "path"')
    assert (ids(found), places(found)) == (["d1", "d3"], [":2", ":4"])


def test_a_decision_with_something_behind_it_is_one(log_file: Path) -> None:
    """It was asked again, and its line was counted as one without a decision."""
    found = reads(log_file, f"{line(1)} oops {line(9)}\n{line(2)}\n")
    assert (ids(found), places(found)) == (["d1", "d2"], [f":1:{len(line(1)) + 2}"])


def test_what_no_json_reader_should_take_is_told(log_file: Path) -> None:
    deep = '{"decision_id": "deep", "input": ' + "[" * 100_000 + "]" * 100_000 + "}"
    found = reads(
        log_file, b'{"decision_id": "a\xff"}\n{"decision_id": NaN}\n' + deep.encode() + f"\n{line(1)}\n".encode()
    )
    assert (ids(found), places(found)) == (["d1"], [":1", ":2", ":3"])


def test_odd_values_in_a_decision_are_no_crash(log_file: Path) -> None:
    """`"erased": 5` was a traceback, and so was half a character in a path."""
    odd = [decision(1, erased=5), decision(2, masked="x"), decision(3, path="projects/\ud800"), decision(4, erased=[1])]
    found = reads(log_file, "\n".join(json.dumps(each) for each in odd))
    assert [type(each) for each in found] == [Unreadable, Unreadable, Skipped, Decision]


def test_results_that_are_hidden_are_not_known(log_file: Path) -> None:
    lines = [decision(1, erased=["/result"]), decision(2, masked=["/result/x"]), decision(3, erased=["/resultless"])]
    found = reads(log_file, "\n".join(json.dumps(each) for each in lines))
    assert [each.told for each in found if isinstance(each, Decision)] == [False, False, True]


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_gzip_file_is_an_error_that_names_it(log_file: Path, damage: str) -> None:
    """Changed bytes were a traceback: zlib has an error of its own."""
    packed = bytearray(gzip.compress("\n".join(line(number) for number in range(2000)).encode()))
    if damage == "cut":
        del packed[-40:]
    else:
        packed[40:80] = bytes(40)
    with pytest.raises(StalledError, match=f"{log_file}: .*"):
        reads(log_file, bytes(packed))


# --- in bounded memory -----------------------------------------------------------------------------------------------


def members(text: bytes, **bounds: Any) -> list[Member | Unparsed]:
    return list(Members(io.BytesIO(text), **bounds))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_nothing_depends_on_where_the_stream_is_cut(chunk: int) -> None:
    documents: list[dict[str, Any]] = [
        {"a": 'quote " brace } \\ ü😀', "b": [True, None, -1.5e3]},
        {},
        {"deep": {"er": [{"x": "]"}]}},
    ]
    text = json.dumps(documents[0]) + "\n[oops\n" + json.dumps(documents[1:], indent=1, ensure_ascii=False) + "[]"
    found = members(text.encode(), chunk=chunk)
    assert [each.value for each in found if isinstance(each, Member)] == documents
    assert found == members(text.encode())


def test_an_object_longer_than_the_bound_costs_its_line() -> None:
    text = json.dumps({"a": "x" * 5000}) + "\n" + '{"b": 1}\n'
    first, second = members(text.encode(), chunk=16, longest=1000)
    assert isinstance(first, Unparsed)
    assert "longer than 1000" in first.why
    assert isinstance(second, Member)
    assert (second.value, second.line, second.column) == ({"b": 1}, 2, 1)


# --- as a real OPA gives them ----------------------------------------------------------------------------------------

POLICY = "package projects.alpha\n\nallow if input.age >= 18\n"


async def test_what_a_real_opa_uploads_and_prints_is_read(opa: OpaServer, log_file: Path) -> None:
    bodies: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.content.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/logs", take)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reporting = {"min_delay_seconds": 3600, "max_delay_seconds": 3600, "upload_size_limit_bytes": 600}
    opa.config = json.dumps(
        {
            "services": {"here": {"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}},
            "decision_logs": {"service": "here", "console": True, "reporting": reporting},
        }
    )
    try:
        await opa.start()
        async with aiohttp.ClientSession() as http, http.put(f"{opa.url}/v1/policies/a", data=POLICY) as answer:
            assert answer.status == 200
        for age in range(30):
            await opa.query("projects/alpha/allow", {"age": age})
        await opa.stop()  # it uploads what is left, then ends
    finally:
        await runner.cleanup()
    assert len(bodies) > 1, "small uploads: several of them"
    for text in (b"".join(bodies), b"".join(map(gzip.decompress, bodies)), opa.log.encode()):
        found = [each for each in reads(log_file, text) if isinstance(each, Decision)]
        assert [each.input["age"] for each in found] == list(range(30))
        assert {each.path for each in found} == {("projects", "alpha", "allow")}
        assert [each.result if each.defined else None for each in found] == [None] * 18 + [True] * 12
        assert len({each.id for each in found}) == 30
    others = [each for each in reads(log_file, opa.log) if not isinstance(each, Decision)]
    assert {type(each) for each in others} == {OtherLine}, "OPA's own lines beside them were told as damaged ones"
