"""Traces in the engine's own words: W3C trace contexts as text, spans that cost nothing where nobody traces. Pure.

The engine knows `Tracer` only; OpenTelemetry is one adapter of it, and is imported where tracing is configured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Protocol, Self

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/]{0,255}(@[a-z][a-z0-9_\-*/]{0,13})?=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,256}"
)
_VERSION: Final = "00"
STATE_MOST: Final = 512
"""Characters of ``tracestate`` that are passed on: what the standard wants passed on at least."""
_STATE_MEMBERS: Final = 32

Attribute = str | int | float | bool
"""What a span may be told."""


def traceparent(text: str | None) -> str | None:
    """The trace context in this header's value, ``None`` for none or one that is malformed: then a new trace begins
    (W3C Trace Context, section 2.2; a version that is not known yet is read as the first one)."""
    match = _PARENT.fullmatch(text.strip()) if text is not None and len(text) <= 512 else None  # noqa: PLR2004 bounded
    if match is None:
        return None
    version, trace, span, flags, rest = match.groups()
    if version == "ff" or (version == _VERSION and rest) or not int(trace, 16) or not int(span, 16):
        return None
    return f"{_VERSION}-{trace}-{span}-{flags}"


def context_of(parent: str | None, states: Iterable[str] = ()) -> str | None:
    """What is passed on from the headers traceparent and tracestate: the first one, and after a space the second one
    where it says something. Of too much, its last members, the oldest, are left out (W3C Trace Context,
    section 3.3)."""
    known = traceparent(parent)
    if known is None:
        return None
    members, size = list[str](), -1
    for each in (member.strip(" \t") for text in states for member in text[: 4 * STATE_MOST].split(",")):
        if not each:
            continue
        if not _MEMBER.fullmatch(each):
            return known  # malformed: the whole is left out
        size += len(each) + 1
        if size > STATE_MOST or len(members) == _STATE_MEMBERS:
            break
        members.append(each)
    return f"{known} {','.join(members)}" if members else known


def context_in(text: str | None) -> str | None:
    """A context that another process of regops has passed on; ``None`` for none, or what is none."""
    parent, _, state = (text or "").strip().partition(" ")
    return context_of(parent, [state])


def parent_of(context: str) -> str:
    """The ``traceparent`` of a context."""
    return context.partition(" ")[0]


def trace_id(parent: str | None) -> str | None:
    """The id of the trace that a context belongs to."""
    return parent.split("-")[1] if parent else None


class Span(Protocol):
    """One piece of work, until its block ends. ``context`` is what to pass on; ``None`` where nobody traces."""

    context: str | None

    def tell(self, **attributes: Attribute) -> None:
        """Add attributes; ``a__b`` is written ``a.b``."""
        ...

    def fail(self, why: str) -> None:
        """It did not come to what it should; ``why`` has few values."""
        ...


class Tracer(Protocol):
    """Where spans go. No method waits or raises."""

    enabled: bool

    def span(
        self, name: str, parent: str | None = None, kind: str = "internal", *, start: datetime | None = None
    ) -> SpanBlock:
        """A span around a block of work; an error that leaves the block fails it. ``start``: it began before."""
        ...

    def record(
        self,
        name: str,
        start: datetime,
        end: datetime,
        parent: str | None = None,
        *,
        link: str | None = None,
        **attributes: Attribute,
    ) -> None:
        """Work that is over already. ``link``: the context of a span, of another trace, that it was part of."""
        ...


class SpanBlock(Protocol):
    """The context manager of a span."""

    def __enter__(self) -> Span: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool | None: ...


class _Nothing:
    """The span of nobody's trace."""

    context: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self, **attributes: Attribute) -> None:
        """Nobody listens."""

    def fail(self, why: str) -> None:
        """The same."""


_NOTHING: Final = _Nothing()


class NoTracer:
    """Nobody traces: no span is made, and nothing is passed on."""

    enabled = False

    def span(
        self, name: str, parent: str | None = None, kind: str = "internal", *, start: datetime | None = None
    ) -> SpanBlock:
        """The same object, always."""
        del name, parent, kind, start
        return _NOTHING

    def record(
        self,
        name: str,
        start: datetime,
        end: datetime,
        parent: str | None = None,
        *,
        link: str | None = None,
        **attributes: Attribute,
    ) -> None:
        """Nothing."""


NO_TRACER: Final[Tracer] = NoTracer()
