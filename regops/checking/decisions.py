"""Recorded decisions: OPA's decision log, one JSON object a line, or the arrays that OPA uploads, gzipped or not."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from reconciler.core.errors import StalledError

_GZIP: Final = b"\x1f\x8b"
_CHUNK: Final = 1 << 20
_LONGEST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Decision:
    """One that can be asked again. ``path`` are the segments below ``data``; ``defined`` is false where the log has no
    result."""

    path: tuple[str, ...]
    input: Any
    has_input: bool
    result: Any
    defined: bool
    id: str
    nondeterministic: bool


@dataclass(frozen=True, slots=True)
class Skipped:
    """One that cannot, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is no decision, and where."""

    place: str


Read = Decision | Skipped | Unreadable


def read(name: str) -> Iterator[Read]:
    """Every decision of a file (``-``: standard input), in order, in bounded memory. Raises `StalledError` for a file
    that cannot be opened or unpacked."""
    try:
        with _opened(name) as stream:
            for place, document in _documents(name, stream):
                yield Unreadable(f"{place}: {document}") if isinstance(document, _Bad) else _decision(place, document)
    except (OSError, EOFError) as error:
        said = getattr(error, "strerror", None) or error
        raise StalledError(
            f"{name}: {said}", remedy="Name a decision log of OPA: JSON lines, maybe gzipped."
        ) from error


class _Bad(str):
    """Why a line is none."""

    __slots__ = ()


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


def _documents(name: str, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Each line's document with its place; the members of arrays one by one."""
    number = 0
    while True:
        line = stream.readline(_LONGEST)
        if not line:
            return
        number += 1
        place = f"{name}:{number}"
        text = line.strip()
        if not text:
            continue
        if text.startswith(b"[") and not _is_json(text):
            text += stream.read()  # an array over several lines
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield place, _Bad(f"no JSON: {error}")
            continue
        yield from ((place, each) for each in (document if isinstance(document, list) else [document]))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _decision(place: str, document: Any) -> Read:
    if not isinstance(document, dict) or not ({"path", "query", "decision_id", "input"} & document.keys()):
        return Unreadable(f"{place}: no decision of OPA: neither path nor decision_id")
    path = document.get("path")
    if not isinstance(path, str) or not path.strip("/"):
        return Skipped("a query without a path")
    erased = [each for each in (document.get("erased") or ()) if str(each).startswith("/input")]
    masked = [each for each in (document.get("masked") or ()) if str(each).startswith("/input")]
    if erased or masked:
        return Skipped("a part of its input was erased or masked")
    segments = tuple(path.strip("/").split("/"))
    if segments[0] not in {"platform", "projects"}:
        return Skipped("a rule outside platform and projects")
    return Decision(
        path=segments,
        input=document.get("input"),
        has_input="input" in document,
        result=document.get("result"),
        defined="result" in document,
        id=str(document.get("decision_id") or place),
        nondeterministic=bool(document.get("nd_builtin_cache")),
    )
