"""The trailers of the commits that regops made, remembered along the branch's first parents."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

import pygit2

from reconciler.adapters.git.objects import commit_of
from reconciler.core.ports import Identity


@dataclass(frozen=True, slots=True)
class _Seen:
    """One commit of ours: its time (seconds since the epoch) and trailers."""

    commit: str
    at: int
    trailers: Mapping[str, str]


@dataclass(slots=True)
class Trailers:
    """An index of one line of history; a head that does not continue it begins a new one."""

    committer: Identity
    _head: str | None = None
    _oldest: float = 0.0
    _seen: list[_Seen] = field(default_factory=list)

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
        found: list[_Seen] = []
        step: pygit2.Commit | None = commit_of(repository, head)
        while step is not None and str(step.id) != known and step.commit_time >= since:
            if (step.committer.name, step.committer.email) == (self.committer.name, self.committer.email):
                found.append(_Seen(str(step.id), step.commit_time, _trailers(step)))
            parent = next(iter(step.parent_ids), None)
            step = None if parent is None else commit_of(repository, str(parent))
            yield
        found.reverse()
        continued = step is not None and str(step.id) == known
        older = [seen for seen in self._seen if seen.at >= since] if continued else []
        self._oldest = since if not continued else max(self._oldest, min(since, self._oldest))
        self._seen = [*older, *found]
        self._head = head


def _trailers(commit: pygit2.Commit) -> dict[str, str]:
    """The last paragraph, when every line of it is a trailer; never the subject."""
    message = commit.raw_message.decode("utf-8", "replace").rstrip("\n")
    _, blank, last = message.rpartition("\n\n")
    if not blank:
        return {}
    pairs = [line.partition(": ") for line in last.split("\n")]
    return {name: value for name, _, value in pairs} if all(colon for _, colon, _ in pairs) else {}
