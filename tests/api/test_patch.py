"""From what a request says to the bytes that Git will have."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.patch import merge_patch, merged, patched, replaced
from api.problems import ProblemError
from api.texts import Number, dump, parse_object
from reconciler.core.limits import Limits
from reconciler.core.model import Content

REGO = "package projects.a\n"
TIGHT = Limits(data_bytes=200)


def body(text: str) -> dict[str, Any]:
    """The policy object as `api.bodies` reads it from a request."""
    return parse_object(text.encode(), 65)


def content(data: str | None = None, rego: str = REGO) -> Content:
    return Content(rego.encode(), None if data is None else data.encode())


# --- PUT -------------------------------------------------------------------------------------------------------------


def test_a_new_policy_has_its_text_as_given_and_its_data_as_git_shows_it() -> None:
    made = replaced(
        body('{"rego": "package projects.a\\r\\n# é, no newline at the end", "data":{"b":1,"a":1.0}}'), None
    )
    assert made.rego == "package projects.a\r\n# é, no newline at the end".encode()
    assert made.data == b'{\n  "b": 1,\n  "a": 1.0\n}\n'
    assert replaced({"rego": REGO}, None) == content()


@pytest.mark.parametrize(
    "former",
    [
        '{"b":1.0,"a":[1,2,{"x":1e2}]}',
        '{\r\n\t"b" : 1.0 , "a" : [ 1, 2, { "x":1e2 } ] }',
        '{"a": [1, 2, {"x": 1e2}], "\\u0062": 1.0}\n\n',
    ],
)
def test_what_was_read_and_is_written_back_changes_no_byte(former: str) -> None:
    before = content(former)
    again = replaced(body(f'{{"rego": {json.dumps(REGO)}, "data": {former}}}'), before)
    assert again == before
    assert again.blob_ids().etag == before.blob_ids().etag


def test_a_put_without_data_removes_it() -> None:
    assert replaced({"rego": REGO}, content('{"a": 1}')).data is None


def test_a_put_keeps_the_order_of_the_file() -> None:
    made = replaced(body('{"rego": "", "data": {"a": 1, "b": 2, "c": 3}}'), content('{"c": 0, "a": 1}'))
    assert made.data == b'{\n  "c": 3,\n  "a": 1,\n  "b": 2\n}\n'


@pytest.mark.parametrize("former", ["not json", '{"a": 1, "a": 2}', "[1]", '{"a": "\\ud800"}', "[" * 5000])
def test_data_in_git_that_is_none_can_be_replaced(former: str) -> None:
    made = replaced(body('{"rego": "", "data": {"a": 1}}'), content(former))
    assert made.data == b'{\n  "a": 1\n}\n'
    assert patched(body('{"data": {"a": 1}}'), content(former)) == Content(REGO.encode(), made.data)


def test_data_in_git_that_is_not_utf_8_can_be_replaced() -> None:
    assert replaced(body('{"rego": "", "data": {}}'), Content(b"", b'{"a": "\xff"}')).data == b"{}\n"


def test_data_in_git_with_very_many_keys_can_be_replaced() -> None:
    former = json.dumps({f"k{i}": i for i in range(100_001)})
    assert replaced(body('{"rego": "", "data": {"k7": 8}}'), content(former)).data == b'{\n  "k7": 8\n}\n'


def test_data_too_long_for_git_is_refused_but_may_stay() -> None:
    """A file in one line may be longer than the limit once it is indented: writing back what was read must work."""
    former = json.dumps({"a": list(range(50))}, separators=(",", ":"))
    again = body(f'{{"rego": "", "data": {former}}}')
    assert replaced(again, content(former), TIGHT).data == former.encode()
    with pytest.raises(ProblemError, match="200 bytes") as created:
        replaced(again, None, TIGHT)
    with pytest.raises(ProblemError, match="200 bytes") as changed:
        merged(body('{"data": {"b": 1}}'), content(former), TIGHT)
    for problem in (created.value, changed.value):
        assert (problem.status, problem.code) == (413, "payload_too_large")


# --- PATCH, application/json -----------------------------------------------------------------------------------------


def test_what_a_patch_does_not_name_stays_byte_for_byte() -> None:
    before = content('{"odd" :1}')
    assert patched({"rego": "x"}, before) == Content(b"x", b'{"odd" :1}')
    assert patched(body('{"data": {"a": 1}}'), before) == Content(REGO.encode(), b'{\n  "a": 1\n}\n')
    assert patched({"data": None}, before) == content()


def test_a_patch_does_not_read_rego_that_is_no_utf_8() -> None:
    before = Content(b"# \xff\n", b"{}")
    assert patched(body('{"data": {"a": 1}}'), before).rego == b"# \xff\n"
    assert merged(body('{"data": {"a": 1}}'), before).rego == b"# \xff\n"


# --- PATCH, application/merge-patch+json -----------------------------------------------------------------------------

APPENDIX_A = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]
"""RFC 7396, appendix A: original, patch, result."""


@pytest.mark.parametrize(("original", "patch", "result"), APPENDIX_A)
def test_a_merge_patch_gives_what_the_rfc_says(original: str, patch: str, result: str) -> None:
    assert merge_patch(json.loads(original), json.loads(patch)) == json.loads(result)


def test_a_merge_changes_data_in_part_and_keeps_its_order_and_digits() -> None:
    before = content('{\n  "z": 1.0,\n  "y": {\n    "b": 1e2,\n    "a": 2\n  },\n  "x": null\n}\n')
    after = merged(body('{"data": {"y": {"a": null, "c": 3}, "w": {"n": null}}}'), before)
    assert after.data == (b'{\n  "z": 1.0,\n  "y": {\n    "b": 1e2,\n    "c": 3\n  },\n  "x": null,\n  "w": {}\n}\n')
    assert after.rego == before.rego


def test_a_merge_that_changes_nothing_changes_no_byte() -> None:
    before = content('{"b" :1,   "a":{"c":2}}')
    assert merged(body('{"data": {"a": {"c": 2, "d": null}}}'), before) == before
    assert merged({}, before) == before
    assert merged(body(f'{{"rego": {json.dumps(REGO)}}}'), before) == before


def test_a_merge_may_create_data_remove_it_and_replace_the_text() -> None:
    assert merged(body('{"data": {"a": 1, "b": null}}'), content()).data == b'{\n  "a": 1\n}\n'
    assert merged({"data": None}, content('{"a": 1}')) == content()
    assert merged({"rego": "x"}, content('{"a": 1}')) == content('{"a": 1}', "x")


def test_a_merge_never_removes_the_text() -> None:
    with pytest.raises(ProblemError, match="rego cannot be removed") as caught:
        merged({"rego": None}, content())
    assert (caught.value.status, caught.value.code) == (400, "validation_error")


def test_a_merge_into_data_that_is_none_says_how_to_go_on() -> None:
    before = content("not json")
    with pytest.raises(ProblemError, match="replace it whole") as caught:
        merged(body('{"data": {"a": 1}}'), before)
    assert (caught.value.status, caught.value.headers) == (409, {"ETag": before.blob_ids().etag})
    assert merged({"rego": "x"}, before) == content("not json", "x")
    assert merged({"data": None}, before) == content()


# --- properties ------------------------------------------------------------------------------------------------------

keys = st.text("ab", max_size=2)
scalars = st.one_of(
    st.none(), st.booleans(), st.text("xy", max_size=2), st.integers(0, 3).map(lambda n: Number(str(n)))
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=12
)
objects = st.dictionaries(keys, values, max_size=3)


def model(target: Any, patch: Any) -> Any:
    """The pseudo-code of RFC 7396 section 2, word for word."""
    if isinstance(patch, dict):
        if not isinstance(target, dict):
            target = {}
        for name, value in patch.items():
            if value is None:
                if name in target:
                    del target[name]
            else:
                target[name] = model(target.get(name), value)
        return target
    return patch


@given(target=values, patch=values)
def test_every_merge_is_that_of_the_rfc_and_changes_neither_side(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))
    assert merge_patch(target, patch) == model(copy.deepcopy(target), patch)
    assert (target, patch) == before


@given(former=objects, change=objects)
def test_a_merge_of_data_gives_the_models_data_and_applied_twice_the_same_bytes(
    former: dict[str, Any], change: dict[str, Any]
) -> None:
    before = Content(b"", dump(former))
    after = merged({"data": change}, before)
    assert after.data is not None
    assert parse_object(after.data, 64) == model(copy.deepcopy(former), change)
    assert merged({"data": change}, after) == after


@given(former=objects, data=objects)
def test_a_put_is_what_was_put_and_put_again_changes_no_byte(former: dict[str, Any], data: dict[str, Any]) -> None:
    after = replaced({"rego": "x", "data": data}, Content(b"", json.dumps(to_json(former), indent=7).encode()))
    assert after.data is not None
    assert parse_object(after.data, 64) == data
    assert replaced({"rego": "x", "data": data}, after) == after


def to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [to_json(inner) for inner in value]
    return int(value.text) if isinstance(value, Number) else value
