"""The difference of two versions on a policy's page: as much of it as a page can hold, and where all of it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web

from api.differences import difference
from api.problems import ProblemError
from reconciler.core.errors import RegopsError
from reconciler.core.model import PolicyName
from reconciler.core.versions import State

MOST: Final = 500
"""Lines of a text, and changes of data, that a page shows."""
_LONG: Final = 1_000
"""Characters of a line or a value that a page shows."""
_KINDS: Final = (("@@", "at"), ("+", "plus"), ("-", "minus"))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Compared:
    """What was asked for, and the document of `GET /policies/{…}/diff` as bytes, or why there is none."""

    start: str = ""
    end: str = "live"
    raw: bytes | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """(how it is drawn, text) of each line; ``more`` were left out."""

    shown: tuple[tuple[str, str], ...]
    more: int


@dataclass(frozen=True, slots=True)
class Change:
    """One of the data's. ``before`` and ``after`` are JSON, empty for nothing."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows of a difference; ``command`` prints all of it."""

    rego: Lines
    data: tuple[Change, ...]
    data_more: int
    data_text: Lines
    command: str

    @property
    def nothing(self) -> bool:
        """Whether there is no difference."""
        return not (self.rego.shown or self.data or self.data_text.shown)

    @property
    def cut(self) -> bool:
        """Whether something was left out."""
        texts = [text for _, text in (*self.rego.shown, *self.data_text.shown)]
        texts += [text for each in self.data for text in (each.path, each.before, each.after)]
        return bool(self.rego.more or self.data_more or self.data_text.more) or any(len(text) > _LONG for text in texts)


async def compared(request: web.Request, name: PolicyName, broken: str | None = None) -> Compared:
    """What ``?from=`` and ``?to=`` ask for; by default from what is live to the version that is held, which is
    ``broken``, or where there is none the last change of what is live."""
    start, end = (request.query.get(side, "")[:20] for side in ("from", "to"))
    if broken is not None and not start and not end:
        start, end = "live", broken
    end = end or "live"
    try:
        return Compared(start, end, await difference(request, name, start or None, end))
    except (ProblemError, RegopsError) as error:
        return Compared(start, end, error=str(error))


def broken_in(past: Sequence[Mapping[str, Any]]) -> str:
    """Which side of a difference a held policy's version in the branch is: the newest of its versions, by number, or
    the branch itself where the record has not got that far. The number needs no fetch, which a remote may hold up."""
    return str(past[0]["version"]) if past[0]["state"] == State.HELD else "head"


def shown_of(found: Compared) -> Shown | None:
    """What of it a page shows. Pure, and long where the difference is: not for the event loop."""
    if found.raw is None:
        return None
    document = json.loads(found.raw)
    data, more = _first(document["data"], _change)
    return Shown(
        rego=_lines(document["rego"]),
        data=data,
        data_more=more,
        data_text=_lines(document.get("data_text", "")),
        command=_command(document),
    )


def _lines(text: str) -> Lines:
    """Lines end at a line feed, and nowhere else."""
    return Lines(*_first(text.removesuffix("\n").split("\n") if text else [], _line))


def _line(line: str) -> tuple[str, str]:
    return next((kind for mark, kind in _KINDS if line.startswith(mark)), "same"), _cut(line)


def _change(change: Mapping[str, Any]) -> Change:
    before, after = (_cut(json.dumps(change[side], ensure_ascii=False)) if side in change else "" for side in _SIDES)
    return Change(_cut(change["path"]), before, after)


_SIDES: Final = ("from", "to")


def _first(items: Sequence[Any], shown: Callable[[Any], T]) -> tuple[tuple[T, ...], int]:
    """The first ones as they are shown, and how many more there are."""
    return tuple(shown(each) for each in items[:MOST]), max(0, len(items) - MOST)


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _command(document: Mapping[str, Any]) -> str:
    """What prints all of it: `regops diff`, or where that cannot name a side the route of the API."""
    name = str(document["policy"]).removeprefix("projects/")
    start, end = (_named(document[side]) for side in _SIDES)
    if start is None:  # there was nothing before
        return f"regops diff {name}" if end == "live" else f"GET /policies/{name}/diff?to={end}"
    return f"regops diff {name} {start} {end}"


def _named(side: Mapping[str, Any]) -> str | None:
    if "version" in side:
        return str(side["version"])
    return None if side["ref"] == "nothing" else str(side["ref"])
