"""A policy's two files are judged before OPA sees them, and every message has its place and remedy."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.documents import check_data, check_documents, check_rego
from reconciler.core.limits import Limits
from reconciler.core.model import PLATFORM, Content, FileError, project_policy

A, DASHED = project_policy("a"), project_policy("a-b")
LIMITS = Limits()


def data_error(raw: bytes, limits: Limits = LIMITS) -> FileError:
    data, errors = check_data(A, raw, limits)
    assert data is None
    return errors[0]


def rego_error(raw: bytes, limits: Limits = LIMITS) -> FileError:
    text, errors = check_rego(A, raw, limits)
    assert text is None
    return errors[0]


def test_sound_files_come_back_as_text_and_json() -> None:
    checked = check_documents(A, Content("package projects.a\n# ä\r\n".encode(), b'{"x": [1.5, "\\u00e9"]}'), LIMITS)
    assert (checked.rego, checked.data, checked.errors) == ("package projects.a\n# ä\r\n", {"x": [1.5, "é"]}, ())


def test_a_policy_without_data_has_none() -> None:
    assert check_documents(A, Content(b"package projects.a\n"), LIMITS).data is None


def test_both_files_are_judged_and_the_rego_comes_first() -> None:
    errors = check_documents(A, Content(b"", b"[]"), LIMITS).errors
    assert [error.file for error in errors] == ["projects/a/rego.rego", "projects/a/data.json"]


def test_one_verdict_has_a_bounded_number_of_errors_the_first_ones() -> None:
    raw = ('{"k": 0' + ',\n"k": 1' * 90 + "}").encode()
    errors = check_documents(A, Content(b"package projects.a\n", raw), LIMITS).errors
    assert [error.line for error in errors] == list(range(2, 22))


@pytest.mark.parametrize(
    ("raw", "line", "column", "said"),
    [
        (b"\xef\xbb\xbfpackage projects.a\n", 1, 1, "byte order mark (BOM): save it as UTF-8 without BOM"),
        (b"package projects.a\n\xc3\xa4 \xff\n", 2, 3, "byte 0xff is no UTF-8"),
        (b"package projects.a\nx\0\n", 2, 2, "NUL"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 1, 1, "Git LFS pointer"),
        (b"", 1, 1, "begins with `package projects.a`"),
        (b" \n# only a comment\n\t# another\n", 1, 1, "begins with `package projects.a`"),
        (b"package projects.a\nx := " + b"[" * 65 + b"]" * 65, 2, 70, "deeper than 64"),
    ],
)
def test_rego_that_opa_must_not_see_is_told_with_its_place(raw: bytes, line: int, column: int, said: str) -> None:
    error = rego_error(raw)
    assert (error.file, error.line, error.column) == ("projects/a/rego.rego", line, column)
    assert said in error.message


@pytest.mark.parametrize(
    ("raw", "line", "column", "said"),
    [
        (b'\xef\xbb\xbf{"a": 1}', 1, 1, "without BOM"),
        (b'{"a":\n "\xe4"}', 2, 3, "byte 0xe4 is no UTF-8"),
        (b'{"a": "\0"}', 1, 8, "NUL"),
        (b"version https://git-lfs.github.com/spec/v1\n", 1, 1, "Git LFS pointer"),
        (b" \n\t", 1, 1, "is empty: write {} or delete the file"),
        (b"\n [1]", 2, 2, "the top must be a JSON object, loaded at data.projects.a"),
        (b'"text"', 1, 1, "the top must be a JSON object"),
        (b"null", 1, 1, "the top must be a JSON object"),
        (b'{"a": 1,\n "a": 1}', 2, 2, "stands twice"),
        (b'{"a": NaN}', 1, 7, "NaN"),
        (b'{"a": [Infinity]}', 1, 8, "Infinity"),
        (b'{"a": 1e400}', 1, 7, "too large"),
        (b'{"a": "\\uD800"}', 1, 8, "half of a surrogate pair"),
        (b'{"a": ' + b"9" * 5000 + b"}", 1, 7, "more than 4300 digits"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, 1, 321, "nested deeper than 64"),
        (b"[" * 200_000, 1, 65, "nested deeper than 64"),
        (b'{"a": "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", b}', 1, 14, "expected a key"),
    ],
)
def test_json_that_would_be_read_otherwise_elsewhere_is_told_with_its_place(
    raw: bytes, line: int, column: int, said: str
) -> None:
    error = data_error(raw)
    assert (error.file, error.line, error.column) == ("projects/a/data.json", line, column)
    assert said in error.message


def test_the_place_of_a_top_level_array_is_rendered_as_rego_writes_it() -> None:
    assert 'data.projects["a-b"]' in check_data(DASHED, b"[]", LIMITS)[1][0].message
    assert "data.platform:" in check_data(PLATFORM, b"[]", LIMITS)[1][0].message


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not() -> None:
    rego, data = b"package projects.a\n", b'{"a":"bc"}'
    limits = Limits(rego_bytes=len(rego), data_bytes=len(data))
    assert check_documents(A, Content(rego, data), limits).errors == ()
    assert rego_error(rego + b"#", limits).message == "is 20 bytes; the limit is 19: make it smaller"
    assert data_error(data + b" ", limits).message == "is 11 bytes; the limit is 10: make it smaller"


def test_64_levels_of_json_are_allowed() -> None:
    assert check_data(A, b'{"a":' * 64 + b"1" + b"}" * 64, LIMITS)[1] == ()
    assert check_data(A, b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", LIMITS)[1] == ()


def test_a_text_that_only_looks_like_a_surrogate_escape_is_allowed() -> None:
    assert check_data(A, b'{"a": "\\\\ud800", "b": "\\ud83d\\ude00"}', LIMITS)[0] == {"a": "\\ud800", "b": "😀"}


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.dictionaries(st.text(), v)))
def test_every_object_that_python_writes_is_read_as_it_is(value: object) -> None:
    raw = json.dumps({"top": value}, ensure_ascii=False).encode()
    assert check_data(A, raw, LIMITS) == ({"top": value}, ())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40) | st.text('{}[]",:\\u0d8eE+-. \n\ttrue', max_size=40).map(str.encode))
def test_no_bytes_make_a_check_fail_and_what_is_refused_has_a_message(raw: bytes) -> None:
    for value, errors in (check_data(A, raw, LIMITS), check_rego(A, raw, LIMITS)):
        assert (value is None) == bool(errors)
        assert all(error.message for error in errors)


def test_a_mebibyte_is_checked_in_a_moment_whether_right_or_wrong() -> None:
    flat = "{" + ",".join(f'"{n}":1' for n in range(100_000)) + "}"
    text = json.dumps({"t": "\\" * 500_000})
    pairs = '{"x": "' + "\\ud83d\\ude00" * 80_000 + '"}'
    for raw in (flat, flat[:-1] + ',"0":1}', text, text[:-1], pairs, '{"x":' + "[1,2]," * 150_000):
        assert len(raw) < LIMITS.data_bytes
        began = time.process_time()
        check_data(A, raw.encode(), LIMITS)
        assert time.process_time() - began < 5
