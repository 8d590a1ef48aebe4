"""The trailers of the commits that regops made, remembered for the branch's recent history."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pygit2

from reconciler.adapters.git.history import time_of
from reconciler.adapters.git.objects import commit_of
from reconciler.adapters.git.writing import signature_of
from reconciler.core.ports import Identity

_SLACK: Final = 32
"""Commits in a row that may be older than they are looked for: clocks differ, and an old commit may be put on top of a
new one with its old date."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One commit of ours: its time (seconds since the epoch) and trailers."""

    commit: str
    at: int
    trailers: Mapping[str, str]


@dataclass(slots=True)
class Trailers:
    """An index of what a head contains, along all parents: whoever merges the branch into work of their own and pushes
    that makes our commits second parents. A head that does not contain the last one begins a new index."""

    committer: Identity
    _head: str | None = None
    _oldest: float = 0.0
    _seen: list[_Seen] = field(default_factory=list)
    _inside: dict[str, int] = field(default_factory=dict)
    """Every commit that was looked at, with its time."""

    def find(
        self, repository: pygit2.Repository, head: str, name: str, since: float
    ) -> Generator[None, None, Mapping[str, str]]:
        """Values of one trailer → the newest commit with it. A walk in steps: see `Objects.walk`."""
        if head != self._head or since < self._oldest:
            yield from self._extend(repository, head, since)
        return {seen.trailers[name]: seen.commit for seen in self._seen if name in seen.trailers and seen.at >= since}

    def _extend(self, repository: pygit2.Repository, head: str, since: float) -> Generator[None, None, None]:
        """Walk back from ``head`` to what is known, or to what is older than ``since``."""
        known = self._head if since >= self._oldest else None
        found, inside = yield from self._walk(repository, head, since, known)
        continued = known is not None and known in inside
        if not continued and known is not None:
            found, inside = yield from self._walk(repository, head, since, None)
        if continued:
            found = [*(seen for seen in self._seen if seen.at >= since), *found]
            inside |= {commit: at for commit, at in self._inside.items() if at >= since}
        self._oldest = since
        self._seen = sorted(found, key=lambda seen: seen.at)
        self._inside = inside
        self._head = head

    def _walk(
        self, repository: pygit2.Repository, head: str, since: float, known: str | None
    ) -> Generator[None, None, tuple[list[_Seen], dict[str, int]]]:
        """Our commits, older ones first along each line, and all that were looked at. What the index that ends at
        ``known`` has is not entered again."""
        found: list[_Seen] = []
        inside: dict[str, int] = {}
        ahead = [(head, _SLACK)]
        while ahead:
            commit, slack = ahead.pop()
            if commit in inside:
                continue
            step = commit_of(repository, commit)
            inside[commit] = time_of(step)
            if known is not None and commit in self._inside:
                continue
            slack = _SLACK if time_of(step) >= since else slack - 1
            if slack == 0:
                continue
            if time_of(step) >= since and (trailers := own_trailers(step, self.committer)):
                found.append(_Seen(commit, time_of(step), trailers))
            ahead.extend((str(parent), slack) for parent in reversed(step.parent_ids))
            yield
        found.reverse()
        return found, inside


def own_trailers(commit: pygit2.Commit, committer: Identity) -> dict[str, str]:
    """The trailers of a commit by this committer; none of anybody else's.

    The committers are compared as bytes: whoever pushes may name an encoding that does not exist, or another one than
    is used.
    """
    ours, theirs = signature_of(committer, 0), commit.committer
    return _trailers(commit) if (theirs.raw_name, theirs.raw_email) == (ours.raw_name, ours.raw_email) else {}


def _trailers(commit: pygit2.Commit) -> dict[str, str]:
    """The last paragraph, when every line of it is a trailer; never the subject."""
    message = commit.raw_message.decode("utf-8", "replace").rstrip("\n")
    _, blank, last = message.rpartition("\n\n")
    if not blank:
        return {}
    pairs = [line.partition(": ") for line in last.split("\n")]
    return {name: value for name, _, value in pairs} if all(colon for _, colon, _ in pairs) else {}
