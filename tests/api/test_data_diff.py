"""Differences of data: put into the old document, they make the new one."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.data_diff import Change, changes
from api.texts import Number

NAMES = st.sampled_from(["a", "b", "a/b", "m~n", "", "0"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.sampled_from([Number("0"), Number("1"), Number("1.0")]) | st.sampled_from(["", "x"]),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(NAMES, below, max_size=3),
    max_leaves=12,
)


def applied(document: Any, found: list[Change]) -> Any:
    """The document with the changes put in: removals from behind, everything else in order."""
    box = {"": copy.deepcopy(document)}
    for change in [each for each in reversed(found) if each["op"] == "remove"] + [
        each for each in found if each["op"] != "remove"
    ]:
        put(box, ["", *parts(change["path"])], change)
    return box[""]


def parts(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def put(box: Any, path: list[str], change: Change) -> None:
    *way, last = path
    for part in way:
        box = box[int(part) if isinstance(box, list) else part]
    if isinstance(box, list):
        if change["op"] == "add":
            box.insert(int(last), change["to"])
        elif change["op"] == "remove":
            assert box.pop(int(last)) == change["from"]
        else:
            box[int(last)] = change["to"]
    elif change["op"] == "remove":
        assert box.pop(last) == change["from"]
    else:
        box[last] = change["to"]


@given(old=VALUES, new=VALUES)
def test_the_changes_make_the_new_document_of_the_old_one(old: Any, new: Any) -> None:
    assert applied(old, list(changes(old, new))) == new


@given(VALUES)
def test_nothing_has_changed_in_the_same(value: Any) -> None:
    assert list(changes(value, copy.deepcopy(value))) == []


def test_an_item_that_was_put_into_a_list_is_one_change() -> None:
    assert list(changes({"l": [1, 2, 3]}, {"l": [1, 9, 2, 3]})) == [{"path": "/l/1", "op": "add", "to": 9}]


def test_a_number_that_is_written_otherwise_is_a_change() -> None:
    """OPA prints 1.0 and 1 differently."""
    old, new = Number("1"), Number("1.0")
    assert list(changes({"n": old}, {"n": new})) == [{"path": "/n", "op": "replace", "from": old, "to": new}]
