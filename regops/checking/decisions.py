"""Recorded decisions: OPA's decision log, one JSON object a line, or the arrays that OPA uploads, gzipped or not, one
after the other."""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from reconciler.core.errors import StalledError
from regops.checking.members import Members, Unparsed

_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Decision:
    """One that can be asked again. ``path`` are the segments below ``data``.

    What the log says became of it: ``failed`` with an error, or ``result`` where it is ``defined``; nobody knows where
    it is not ``told``, since it was erased or masked. ``size`` is how long it is in the log, in characters.
    """

    path: tuple[str, ...]
    input: Any
    has_input: bool
    result: Any
    defined: bool
    id: str
    nondeterministic: bool
    failed: bool = False
    told: bool = True
    size: int = 0


@dataclass(frozen=True, slots=True)
class Skipped:
    """One that cannot, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is no decision, and where."""

    place: str


@dataclass(frozen=True, slots=True)
class OtherLine:
    """What else OPA writes to its log, such as what it was asked and what it answered."""


Read = Decision | Skipped | Unreadable | OtherLine


def read(name: str) -> Iterator[Read]:
    """Every decision of a file (``-``: standard input), in order, in bounded memory. What cannot be read costs the rest
    of its line, not more. Raises `StalledError` for a file that cannot be opened or unpacked."""
    try:
        with _opened(name) as stream:
            for each in Members(stream):
                place = f"{name}:{each.line}" if each.column == 1 else f"{name}:{each.line}:{each.column}"
                if isinstance(each, Unparsed):
                    yield Unreadable(f"{place}: {each.why}")
                else:
                    yield _decision(place, each.value, each.size)
    except (OSError, EOFError, zlib.error) as error:
        said = getattr(error, "strerror", None) or error
        raise StalledError(
            f"{name}: {said}", remedy="Name a decision log of OPA: JSON lines, maybe gzipped."
        ) from error


@contextlib.contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        raw = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        buffered = io.BufferedReader(raw)  # type: ignore[type-var]
        if buffered.peek(2)[:2] == _GZIP:
            yield stack.enter_context(cast("IO[bytes]", gzip.GzipFile(fileobj=buffered)))
        else:
            yield buffered
        buffered.detach()


def _decision(place: str, document: dict[str, Any], size: int) -> Read:
    if not {"path", "query", "decision_id", "input"} & document.keys():
        none = Unreadable(f"{place}: no decision of OPA: neither path nor decision_id")
        return OtherLine() if _is_other_line(document) else none
    path = document.get("path")
    erased, masked = document.get("erased") or [], document.get("masked") or []
    if not (isinstance(erased, list) and isinstance(masked, list)):
        return Unreadable(f"{place}: no decision of OPA: erased and masked are lists")
    pointers = [str(each) for each in (*erased, *masked)] if erased or masked else []
    if not isinstance(path, str) or not path.strip("/"):
        return Skipped("a query without a path")
    if pointers and any(_below(each, "/input") for each in pointers):
        return Skipped("a part of its input was erased or masked")
    segments = tuple(path.strip("/").split("/"))
    if segments[0] not in {"platform", "projects"} or printable(path) != path:
        return Skipped("a rule outside platform and projects")
    return Decision(
        path=segments,
        input=document.get("input"),
        has_input="input" in document,
        result=document.get("result"),
        defined="result" in document,
        id=printable(str(document.get("decision_id") or place)),
        nondeterministic=bool(document.get("nd_builtin_cache")),
        failed=bool(document.get("error")),
        told=not (pointers and any(_below(each, "/result") for each in pointers)),
        size=size,
    )


def _is_other_line(document: dict[str, Any]) -> bool:
    """As OPA's logger writes each of its lines."""
    return isinstance(document.get("msg"), str) and isinstance(document.get("level"), str)


def printable(text: str) -> str:
    """JSON can name half a character, which no output takes: it is shown as JSON writes it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _below(pointer: str, top: str) -> bool:
    return pointer == top or pointer.startswith(f"{top}/")
