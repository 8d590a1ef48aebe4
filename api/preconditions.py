"""`If-Match` and `If-None-Match` (RFC 9110 sections 13.1.1 and 13.1.2), decided against a policy's ETag. Pure.

One departure, for clients that cannot afford to guess: a failed precondition is 409 `conflict` with the current ETag,
and an update without one is 428 (RFC 6585).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from api.problems import ProblemError

_ELEMENT = re.compile(r'[ \t]*+(?:(W/)?("[^\x00-\x20"\x7f]*+"))?[ \t]*+(?:,|\Z)')
"""One list element, maybe empty (RFC 9110 sections 5.6.1 and 8.8.3). Possessive, so that a header as long as the server
takes costs no more than its length; aiohttp gives bytes beyond ASCII as any character."""


class Headers(Protocol):
    """A multi-valued mapping of fields, as aiohttp has it."""

    def getall(self, key: str, default: Sequence[str]) -> Sequence[str]:
        """Every value of one field."""
        ...


@dataclass(frozen=True, slots=True)
class Tags:
    """One field: ``anything`` for ``*``, else its strong and weak tags, quotes included; ``malformed`` when it is
    neither."""

    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()
    anything: bool = False
    malformed: bool = False

    @classmethod
    def parse(cls, values: Sequence[str]) -> Self:
        """The field's lines, joined (RFC 9110 section 5.3); empty list elements are allowed, an empty list is not."""
        text = ", ".join(values)
        if text.strip(" \t") == "*":
            return cls(anything=True)
        strong, weak, at = set[str](), set[str](), 0
        while at < len(text):
            match = _ELEMENT.match(text, at)
            if match is None:
                return cls(malformed=True)
            if match[2]:
                (weak if match[1] else strong).add(match[2])
            at = match.end()
        if not strong and not weak:
            return cls(malformed=True)
        return cls(frozenset(strong), frozenset(weak))


@dataclass(frozen=True, slots=True)
class Preconditions:
    """Both fields of a request; ``None`` where one is absent."""

    if_match: Tags | None = None
    if_none_match: Tags | None = None

    @classmethod
    def of(cls, headers: Headers) -> Self:
        """Those of a request."""
        found = [list(headers.getall(name, [])) for name in ("If-Match", "If-None-Match")]
        return cls(*(Tags.parse(values) if values else None for values in found))

    def check_put(self, current: str | None) -> None:
        """May a PUT go on? ``current`` is the policy's ETag, ``None`` where there is no policy. Raises 409 or 428."""
        self._check_none_match(current)
        if self.if_match is not None:
            self._check_match(self.if_match, current)
        elif current is not None:
            raise _required(current)

    def check_change(self, current: str | None) -> None:
        """May a PATCH or DELETE go on? Raises 404, 409 or 428."""
        if current is None:
            raise ProblemError(404, "not_found", "there is no such policy at the head of the branch")
        self.check_put(current)

    def _check_none_match(self, current: str | None) -> None:
        tags = self.if_none_match
        if tags is None:
            return
        if tags.malformed:
            raise _conflict("If-None-Match is malformed: write * or a list of quoted entity-tags", current)
        if current is not None and (tags.anything or current in tags.strong | tags.weak):
            raise _conflict("the policy exists already, and If-None-Match says that it must not", current)

    def _check_match(self, tags: Tags, current: str | None) -> None:
        if tags.malformed:
            raise _conflict("If-Match is malformed: write the policy's ETag, quotes included", current)
        if current is None:
            raise _conflict("If-Match names a version, and there is no such policy: leave it out to create one", None)
        if tags.anything or current in tags.strong:
            return
        if current in tags.weak:
            raise _conflict("If-Match compares strongly (RFC 9110): leave out W/", current)
        raise _conflict(
            "the branch has another version of the policy: read it with ?ref=head, then repeat the change on that one",
            current,
        )


def not_modified(headers: Headers, etag: str) -> bool:
    """Whether a GET is answered 304: weak comparison, and a malformed field counts as absent."""
    values = headers.getall("If-None-Match", ())
    if not values:
        return False
    if len(values) == 1 and values[0] == etag:  # as nearly everybody asks
        return True
    tags = Tags.parse(values)
    return tags.anything or etag in tags.strong or etag in tags.weak


def _conflict(message: str, current: str | None) -> ProblemError:
    return ProblemError(409, "conflict", message, headers={"ETag": current} if current else {})


def _required(current: str) -> ProblemError:
    message = "the policy exists: give If-Match with the ETag of the version that you change"
    return ProblemError(428, "precondition_required", message, headers={"ETag": current})
