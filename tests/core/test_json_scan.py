"""The scanner that says where JSON is wrong agrees with Python's about what JSON is, and places everything exactly."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reconciler.core.json_scan import Scan, line_and_column

NESTING = 64


def problems(text: str, nesting: int = NESTING) -> list[tuple[int, int, str]]:
    """Line, column and message of everything that is wrong."""
    found = Scan(text, nesting).run().problems
    return [(*line_and_column(text, problem.offset), problem.message) for problem in found]


def repeated(text: str) -> list[str]:
    """The oracle: keys that stand twice in an object, by Python's own reader."""
    twice: list[str] = []

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                twice.append(key)
            seen.add(key)
        return dict(pairs)

    json.loads(text, object_pairs_hook=hook)
    return twice


def is_json(text: str) -> bool:
    """The oracle: Python's reader, without the words that it knows beyond RFC 8259."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
SPACES = st.text(" \t\r\n", max_size=3)


@st.composite
def spelled(draw: st.DrawFn) -> str:
    """JSON with odd white space, escapes and, sometimes, a key twice."""

    def write(value: object) -> str:
        space = draw(SPACES)
        if isinstance(value, dict):
            members = [f"{json.dumps(key)}{space}:{write(item)}" for key, item in value.items()]
            if draw(st.sampled_from([True, False])) and members:
                members.append(draw(st.sampled_from(members)))
            return "{" + f"{space},".join(members) + space + "}"
        if isinstance(value, list):
            return "[" + ",".join(write(item) + space for item in value) + space + "]"
        return space + json.dumps(value, ensure_ascii=draw(st.booleans()))

    return write(draw(VALUES))


@settings(max_examples=150, deadline=None)
@given(spelled())
def test_all_json_is_accepted_but_for_keys_that_stand_twice(text: str) -> None:
    said = problems(text)
    assert len(said) == len(repeated(text)) + sum("surrogate" in message for *_, message in said)
    assert all("twice" in message or "surrogate" in message for *_, message in said)


@settings(max_examples=300, deadline=None)
@given(
    spelled(), st.integers(0), st.sampled_from(["", ",", '"', "]", "}", ":", "\\", "0", "-", "e", "NaN", "\x01", "'"])
)
@example("1", 0, "-")
@example('{"a": 1}', 6, "0")
@example('"a"', 1, "\\")
def test_text_with_one_thing_changed_is_refused_exactly_when_python_refuses_it(text: str, at: int, put: str) -> None:
    at %= len(text) + 1
    changed = text[:at] + put + text[at + 1 :]
    fatal = [message for *_, message in problems(changed) if "twice" not in message and "surrogate" not in message]
    try:
        overflow = any("too large" in message for message in fatal)
        assert bool(fatal) != is_json(changed) or overflow
    except RecursionError:  # pragma: no cover - generated values are shallow
        raise AssertionError(changed) from None


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.text("abé\n\u20ac😀", min_size=1), st.integers(), min_size=1),
    st.sampled_from(["", "\n", "\r\n", "\t"]),
)
def test_the_second_of_two_equal_keys_is_where_the_scanner_says(members: dict[str, int], space: str) -> None:
    written = [f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in members.items()]
    head = "{" + f",{space}".join(written) + f",{space} "
    text = head + written[0] + "}"
    [(line, column, message)] = problems(text)
    assert "twice" in message
    assert (line, column) == (head.count("\n") + 1, len(head.rpartition("\n")[2]) + 1)


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ('{"a": 1,\n "a": 2}', 2, 2, 'the key "a" stands twice in this object (first in line 1)'),
        ('{"a": 1, "\\u0061": 2}', 1, 10, '"a" stands twice'),
        ('{"x": {"a": 1,\n\n  "a": 2}, "b": [{"c": 1, "c": 2}]}', 3, 3, "twice"),
        ('{"é€😀": NaN}', 1, 9, '"NaN" is no JSON value: write a number, a string or null'),
        ('{"a":\n  -Infinity}', 2, 3, '"-Infinity" is no JSON value'),
        ('{"a": 1e999}', 1, 7, "too large"),
        ('{"a": True}', 1, 7, "in lower case"),
        ('{"a": 01}', 1, 7, "without leading zeros"),
        ('{"a": .5}', 1, 7, "without leading zeros"),
        ('{"a": 1,}', 1, 8, 'remove the comma before "}"'),
        ('{"a": [1,]}', 1, 9, 'remove the comma before "]"'),
        ('{"a" 1}', 1, 6, 'expected ":" after the key "a"'),
        ('{"a": 1 "b": 2}', 1, 9, 'expected "," or "}" in this object, not """'),
        ("{a: 1}", 1, 2, "expected a key in double quotes"),
        ("{'a': 1}", 1, 2, "JSON strings stand in double quotes"),
        ('{"a": 1} // note', 1, 10, "after the end"),
        ('{\n  // note\n "a": 1}', 2, 3, "JSON has no comments"),
        ('{"a": "b\nc"}', 1, 9, "line break"),
        ('{"a": "\\x"}', 1, 8, "a backslash in a string"),
        ('{"a": "\\u12"}', 1, 8, "a backslash in a string"),
        ('{"a": "b}', 1, 7, "no closing quote"),
        ('{"a": 1', 1, 8, "the file ends here"),
        ('{"a":', 1, 6, "the file ends here"),
        ("{", 1, 2, "the file ends here"),
        ('{"a": "\\ud800"}', 1, 8, "half of a surrogate pair"),
        ('{"\\udc00": 1}', 1, 3, "half of a surrogate pair"),
        ('{"a": "\\ud83d\\u0041"}', 1, 8, "half of a surrogate pair"),
        (f'{{"a": {"9" * 4301}}}', 1, 7, "more than 4300 digits"),
        (f'{{"a": {"9" * 4301}, "b": -{"9" * 4300}}}', 1, 7, "more than 4300 digits"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, line: int, column: int, said: str) -> None:
    assert (line, column) == problems(text)[0][:2], problems(text)
    assert said in problems(text)[0][2]


def test_every_repeated_key_and_half_pair_is_told_and_what_follows_is_still_read() -> None:
    text = '{"a": 1, "a": "\\ud800",\n "b": {"c": 1, "c": 2}, "d": tru}'
    assert [place[:2] for place in problems(text)] == [(1, 10), (1, 16), (2, 16), (2, 30)]


def test_a_whole_surrogate_pair_is_one_character() -> None:
    assert problems('{"\\ud83d\\ude00": 1, "x": "\\uD83D\\uDE00"}') == []
    assert "twice" in problems('{"\\ud83d\\ude00": 1, "😀": 2}')[0][2]


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_64_levels_are_read_and_the_65th_is_told(opening: str, closing: str) -> None:
    assert problems(opening * 64 + "1" + closing * 64) == []
    [(line, column, message)] = problems(opening * 65 + "1" + closing * 65)
    assert (line, column) == (1, 64 * len(opening) + 1)
    assert "nested deeper than 64" in message


def test_siblings_do_not_add_up_to_depth() -> None:
    assert problems("[" + ",".join(["[[1]]"] * 200) + "]", nesting=3) == []


def test_a_hundred_thousand_opening_brackets_are_no_recursion() -> None:
    assert "nested deeper" in problems("[" * 100_000)[0][2]


def test_each_object_key_has_its_offset_and_those_in_arrays_have_none() -> None:
    text = '{"a": {"b": 1},\n "c": [{"d": 1}], "a": 2}'
    assert {path: line_and_column(text, at) for path, at in Scan(text, NESTING).run().keys.items()} == {
        ("a",): (1, 2),
        ("a", "b"): (1, 8),
        ("c",): (2, 2),
    }


def test_after_a_hundred_problems_the_scan_stops() -> None:
    assert len(problems("{" + ",".join(['"k": 1'] * 1000) + "}")) == 100


def test_the_time_grows_with_the_text_and_not_with_its_square() -> None:
    """For each repeated key the line of its first one was counted from the top: 1 MiB of them took a minute."""

    def seconds(text: str) -> float:
        began = time.process_time()
        Scan(text, NESTING).run()
        return time.process_time() - began

    def members(count: int) -> str:
        return "{" + ",\n".join(f'"key{n}": {{"x": [{n}, "\\u00e9"]}}' for n in range(count)) + "}"

    def twice(count: int) -> str:
        keys = ",\n".join(f'"{n}":1' for n in range(count))
        return "{" + keys + "," + keys + "}"

    for make in (members, twice):
        small, large = (min(seconds(make(count)) for _ in range(2)) for count in (2_500, 20_000))
        assert large < 8 * small * 3 + 0.05, make.__name__
