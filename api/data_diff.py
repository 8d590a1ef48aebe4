"""What changed in a policy's data, by path (JSON Pointer, RFC 6901). Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_ABSENT: Final = object()

Change = dict[str, Any]
"""{"path", "op": add | remove | replace, "from"?, "to"?}. The path of what is removed is that in the old data, every
other one that in the new."""


def changes(old: Any, new: Any) -> Iterator[Change]:
    """The differences of two documents, in the order of the paths. Numbers are `api.texts.Number`: 1.0 is not 1.

    Of lists the equal beginning and end are left out; what is between is compared one by one.
    """
    waiting = [("", old, new)]
    while waiting:
        path, before, after = waiting.pop()
        if isinstance(before, dict) and isinstance(after, dict):
            below = _of_objects(path, before, after)
        elif isinstance(before, list) and isinstance(after, list):
            below = _of_lists(path, before, after)
        else:
            if before != after:
                yield _change(path, before, after)
            continue
        waiting.extend(reversed(below))


def _of_objects(path: str, old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = sorted(old.keys() | new.keys())
    return [(f"{path}/{_escaped(name)}", old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in names]


def _of_lists(path: str, old: list[Any], new: list[Any]) -> list[tuple[str, Any, Any]]:
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    before, after = old[start : len(old) - end], new[start : len(new) - end]
    pairs = max(len(before), len(after))
    return [
        (
            f"{path}/{start + number}",
            before[number] if number < len(before) else _ABSENT,
            after[number] if number < len(after) else _ABSENT,
        )
        for number in range(pairs)
    ]


def _change(path: str, old: Any, new: Any) -> Change:
    if old is _ABSENT:
        return {"path": path, "op": "add", "to": new}
    if new is _ABSENT:
        return {"path": path, "op": "remove", "from": old}
    return {"path": path, "op": "replace", "from": old, "to": new}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
