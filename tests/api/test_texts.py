"""JSON texts: read exactly, refused with a place, written so that a person's diff stays small."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import texts
from api.problems import ProblemError
from api.texts import Number, TooLongError, compact_size, dump, parse_object, strict_object

NESTING = 64


def refusal(raw: bytes, nesting: int = NESTING) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        parse_object(raw, nesting)
    assert (caught.value.status, caught.value.code) == (400, "validation_error")
    return caught.value


@pytest.mark.parametrize(
    "number",
    ["1", "1.0", "1.00", "-0", "-0.0", "1e400", "1E+2", "1e-400", "12345678901234567890123", "0.1000", "9" * 5000],
)
def test_a_number_keeps_its_own_digits(number: str) -> None:
    document = parse_object(f'{{"n": [{number}]}}'.encode(), NESTING)
    assert document == {"n": [Number(number)]}
    assert dump(document).decode() == f'{{\n  "n": [\n    {number}\n  ]\n}}\n'


def test_numbers_that_are_written_differently_are_different() -> None:
    assert parse_object(b'{"n": 1}', NESTING) != parse_object(b'{"n": 1.0}', NESTING)
    assert parse_object(b'{"n": 1}', NESTING) != parse_object(b'{"n": "1"}', NESTING)
    assert parse_object(b'{"n": 1}', NESTING) != parse_object(b'{"n": true}', NESTING)


def test_what_is_written_is_utf_8_with_two_spaces_and_a_final_newline() -> None:
    text = dump({"b": "grün ☂ 😀 \u2028", "a": {"empty": {}, "none": [], "x": None, "y": [True, '\t\x00"\\/']}})
    assert text.decode() == (
        '{\n  "b": "grün ☂ 😀 \u2028",\n  "a": {\n    "empty": {},\n    "none": [],\n    "x": null,\n'
        '    "y": [\n      true,\n      "\\t\\u0000\\"\\\\/"\n    ]\n  }\n}\n'
    )
    assert dump({}) == b"{}\n"


def test_keys_stay_where_the_file_has_them_and_new_ones_follow() -> None:
    former = {"z": {"b": 1, "a": 2}, "y": [{"q": 1, "p": 2}], "x": "gone"}
    text = dump({"new": 1, "y": [{"p": 3, "q": 1}, {"p": 4, "q": 5}], "z": {"c": 0, "a": 2, "b": 1}}, former)
    assert json.loads(text) == {"z": {"b": 1, "a": 2, "c": 0}, "y": [{"q": 1, "p": 3}, {"p": 4, "q": 5}], "new": 1}
    keys = [line.strip()[1] for line in text.decode().splitlines() if line.strip().startswith('"')]
    assert keys == ["z", "b", "a", "c", "y", "q", "p", "p", "q", "n"]


def test_one_changed_value_is_a_diff_of_one_line() -> None:
    former = {f"key-{i}": {"limit": Number(str(i)), "users": ["a", "b"]} for i in range(50, 0, -1)}
    before = dump(former)
    changed = json.loads(json.dumps({key: {"users": ["a", "b"], "limit": i} for i, key in enumerate(sorted(former))}))
    for i, key in enumerate(sorted(former)):
        changed[key]["limit"] = former[key]["limit"] if i else Number("7000")
    after = dump(changed, former)
    diff = list(difflib.unified_diff(before.decode().splitlines(), after.decode().splitlines(), n=0, lineterm=""))
    assert len([line for line in diff if line[0] in "+-" and line[:3] not in {"+++", "---"}]) == 2


@pytest.mark.parametrize(
    ("raw", "line", "column", "words"),
    [
        (b'{"a": 1,\n "a": 2}', 2, 2, "stands twice"),
        (b'{"a": NaN}', 1, 7, "no JSON value"),
        (b'{"a": -Infinity}', 1, 7, "no JSON value"),
        (b'{"a": "\\ud800"}', 1, 8, "surrogate"),
        (b'{"\\udc00": 1}', 1, 3, "surrogate"),
        (b'{"a": ["x", "\\ud83d"]}', 1, 14, "surrogate"),
        (b'{"a":' * 63 + b'["\\ud83d"]' + b"}" * 63, 1, 318, "surrogate"),
        (b'{"a": 01}', 1, 7, "no JSON value"),
        (b'{"a": 1,}', 1, 8, "remove the comma"),
        (b"{'a': 1}", 1, 2, "double quotes"),
        (b'{"a": 1} x', 1, 10, "after the end"),
        (b'{"a": "\x01"}', 1, 8, "control character"),
        (b"  [1]", 1, 3, "must be a JSON object"),
        (b'"text"', 1, 1, "must be a JSON object"),
        (b"null", 1, 1, "must be a JSON object"),
        (b"\xef\xbb\xbf{}", 1, 1, "byte order mark"),
        ('{"é": "é'.encode() + b'\xff"}', 1, 9, "0xff is no UTF-8"),
        (b'{\n"a": "\xc3"}', 2, 7, "0xc3 is no UTF-8"),
        ('{"a": 1}'.encode("utf-16"), 1, 1, "no UTF-8"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, 1, 321, "deeper than 64"),
        (b'{"a":' + b"[" * 100_000, 1, 69, "deeper than 64"),
    ],
)
def test_what_is_no_strict_json_is_refused_with_its_place(raw: bytes, line: int, column: int, words: str) -> None:
    problem = refusal(raw)
    first = problem.errors[0]
    assert (first.file, first.line, first.column) == ("body", line, column), first
    assert words in first.message
    assert str(first) in problem.message


def test_every_duplicate_is_named_at_once() -> None:
    problem = refusal(b'{"a": 1, "a": 2, "b": {"c": 1, "c": 2}}')
    assert [error.column for error in problem.errors] == [10, 32]


def test_the_deepest_allowed_nesting_is_read_and_written() -> None:
    raw = b'{"a":' * 63 + b"[]" + b"}" * 63
    assert strict_object(dump(parse_object(raw, NESTING)).decode(), NESTING) == parse_object(raw, NESTING)
    refusal(b'{"a":' * 64 + b"[]" + b"}" * 64)


def test_too_many_keys_are_refused_at_the_first_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "KEYS", 3)
    raw = b'{"a:\\"": {"b": "x: y"},\n "c"\t: ["d", {"e": 1}]}'
    problem = refusal(raw)
    assert (problem.errors[0].line, problem.errors[0].column) == (2, 15)
    assert "more than 3 keys" in problem.message
    monkeypatch.setattr(texts, "KEYS", 4)
    assert parse_object(raw, NESTING)


def test_a_file_may_have_more_keys_than_a_request() -> None:
    """The bound of request bodies held for the file in Git too, so that nobody could replace one that had more."""
    text = json.dumps({f"k{i}": 1 for i in range(texts.KEYS + 1)})
    assert len(strict_object(text, NESTING)) == texts.KEYS + 1
    refusal(text.encode())


def test_a_short_request_does_not_grow_into_a_long_text() -> None:
    """Each number in 60 nested lists takes a line of its own: 160 KB became 10 MB, the longest body 300 MB."""
    nested: list[Any] = [Number("1")] * 10_000
    for _ in range(60):
        nested = [nested]
    with pytest.raises(TooLongError):
        dump({"a": nested}, limit=1_000_000)
    sheet = texts._Sheet(limit=1000)
    with pytest.raises(TooLongError):
        sheet.value(nested, None, "\n")
    assert sheet.length < 2000
    assert compact_size({"a": nested}, 100_000) == 2 * 10_000 + len('{"a":[]}') + 120 - 1


def test_a_limit_counts_bytes() -> None:
    text = dump({"a": "ä" * 100})
    assert dump({"a": "ä" * 100}, limit=len(text)) == text
    with pytest.raises(TooLongError):
        dump({"a": "ä" * 100}, limit=len(text) - 1)
    assert compact_size({"a": "ä"}, 8 + 2) == 10
    with pytest.raises(TooLongError):
        compact_size({"a": "ä"}, 9)


# --- properties ------------------------------------------------------------------------------------------------------

numbers = st.one_of(st.integers().map(str), st.floats(allow_nan=False, allow_infinity=False).map(repr)).map(Number)
characters = st.characters(codec="utf-8")
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(characters, max_size=6))
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(characters, max_size=3), inner, max_size=4),
    max_leaves=20,
)
documents = st.dictionaries(st.text(characters, max_size=3), values, max_size=5)


@given(document=documents, former=st.one_of(st.none(), documents))
def test_what_is_written_reads_as_the_same_whatever_stood_there(document: dict[str, Any], former: Any) -> None:
    text = dump(document, former)
    assert parse_object(text, NESTING) == document
    assert text.endswith(b"\n")
    assert not text.endswith(b"\n\n")
    assert dump(document, limit=len(text)) != b""
    assert len(dump(document)) == len(text)


@given(document=documents)
def test_what_is_written_again_is_the_same_text(document: dict[str, Any]) -> None:
    text = dump(document)
    assert dump(strict_object(text.decode(), NESTING), strict_object(text.decode(), NESTING)) == text


@given(document=documents)
def test_the_form_is_that_of_python_with_two_spaces(document: dict[str, Any]) -> None:
    plain = to_python(document, float)
    expected = (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()
    assert dump(to_python(document, lambda text: Number(json.dumps(float(text))))) == expected


@given(document=documents)
def test_the_shortest_text_is_measured_exactly(document: dict[str, Any]) -> None:
    plain = to_python(document, float)
    written = to_python(document, lambda text: Number(json.dumps(float(text))))
    shortest = json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
    assert compact_size(written, 10**6) == len(shortest)


def to_python(value: Any, number: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return {key: to_python(inner, number) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_python(inner, number) for inner in value]
    return number(value.text) if isinstance(value, Number) else value
