"""Questions to the first-parent history of a branch. Long walks are generators that yield between commits."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import Final

import pygit2

from reconciler.adapters.git.difference import RawTrees
from reconciler.adapters.git.failures import clean
from reconciler.adapters.git.objects import FOLDER, CommitNotFoundError, commit_of, entries_of
from reconciler.adapters.git.places import Place, Trees, places
from reconciler.adapters.git.tree import Layout, read_folder, subfolder
from reconciler.core.errors import StalledError
from reconciler.core.model import DATA_FILE, REGO_FILE, BlobIds, CommitInfo, PolicyName
from reconciler.core.ports import PastVersion

PAST_LIMIT: Final = 100
_INDEXES: Final = 4
_DIGITS: Final = re.compile(r"[0-9a-f]{4,40}")
_LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999. Git takes any date that its author's clock had."""
_KIND_BITS: Final = 0o170000
_FILES: Final = frozenset({REGO_FILE.encode(), DATA_FILE.encode()})


def info_of(commit: pygit2.Commit) -> CommitInfo:
    """What regops needs to know about a commit, safe to print."""
    subject = commit.raw_message.decode("utf-8", "replace").strip().partition("\n")[0]
    at = datetime.fromtimestamp(min(_LAST_SECOND, max(0, time_of(commit))), UTC)
    return CommitInfo(str(commit.id), printable(commit.author), f"{at:%Y-%m-%dT%H:%M:%S}Z", clean(subject).strip())


def printable(who: pygit2.Signature) -> str:
    """``Name <email>``, safe to print."""
    name, email = (clean(raw.decode("utf-8", "replace")) for raw in (who.raw_name, who.raw_email))
    return f"{name} <{email}>"


def time_of(commit: pygit2.Commit) -> int:
    """Seconds since 1970, also of a commit whose date no clock can have shown."""
    try:
        return commit.commit_time
    except OSError:  # beyond what libgit2's caller can hold
        return _LAST_SECOND


def contains(repository: pygit2.Repository, commit: str, ancestor: str) -> bool:
    """Whether ``ancestor`` is ``commit`` or reachable from it."""
    try:
        head, base = commit_of(repository, commit), commit_of(repository, ancestor)
    except CommitNotFoundError:
        return False
    return head.id == base.id or repository.descendant_of(head.id, base.id)


def find(repository: pygit2.Repository, text: str) -> str | None:
    """See `Source.find`."""
    if not _DIGITS.fullmatch(text):
        return None
    try:
        return str(repository[text].peel(pygit2.Commit).id)
    except (KeyError, ValueError, pygit2.GitError):
        return None


class Heights:
    """Counts reachable commits; the first time all of them, then only what two commits do not share."""

    def __init__(self) -> None:
        self._last: tuple[pygit2.Oid, int] | None = None

    def height(self, repository: pygit2.Repository, commit: str) -> int:
        """Number of commits reachable from ``commit``, itself included."""
        head = commit_of(repository, commit).id
        if self._last is None:
            count = sum(1 for _ in repository.walk(head))
        else:
            known, count = self._last
            ahead, behind = repository.ahead_behind(head, known)
            count += ahead - behind
        self._last = (head, count)
        return count


def past_versions(
    repository: pygit2.Repository, layout: Layout, commit: str, policy: PolicyName
) -> Generator[None, None, list[PastVersion]]:
    """Distinct versions before that of ``commit``, newest first, each with the commit that brought it."""
    where = (*layout.path, *policy.split("/"))
    head = commit_of(repository, commit)
    step: pygit2.Commit | None = head
    current = _blobs_at(repository, head, where)
    seen = {current}
    versions: list[PastVersion] = []
    while step is not None and len(versions) < PAST_LIMIT:
        parent = first_parent(repository, step)
        before = None if parent is None else _blobs_at(repository, parent, where)
        if current != before:
            if current is not None and current not in seen:
                versions.append(PastVersion(str(step.id), current))
            seen.add(current)
        step, current = parent, before
        yield
    return versions


class Changes:
    """Finds the last change of any policy, from one walk along the history that goes no further than it was asked.

    A walk for each policy would open the whole history once for each of 10,000 policies. A change is one of the
    published files' ids or kinds: a new README or test changes no policy.
    """

    def __init__(self, layout: Layout, trees: RawTrees) -> None:
        self._layout = layout
        self._indexes: list[_Index] = []
        self._trees = trees

    def last_changes(
        self, repository: pygit2.Repository, commit: str, policies: Sequence[PolicyName]
    ) -> Generator[None, None, dict[PolicyName, CommitInfo]]:
        """The newest commit that changed each policy. One walk at a time. `StalledError` when none ever did."""
        head = commit_of(repository, commit)
        index = yield from self._index_at(repository, head)
        trees = Trees(repository, self._trees)
        infos: dict[str, CommitInfo] = {}
        changes: dict[PolicyName, CommitInfo] = {}
        for policy in policies:
            while (found := index.last.get(policy)) is None and index.frontier is not None:
                step = commit_of(repository, str(index.frontier))
                _fill(index.last, changed_by(trees, self._layout, step), str(step.id))
                index.frontier = next(iter(step.parent_ids), None)
                yield
            if found is None:
                message = f"No commit up to {commit} has the policy {policy}"
                raise StalledError(message, reason="PolicyNotFound")
            if found not in infos:
                infos[found] = info_of(commit_of(repository, found))
                yield
            changes[policy] = infos[found]
        return changes

    def _index_at(self, repository: pygit2.Repository, head: pygit2.Commit) -> Generator[None, None, _Index]:
        """An index that begins at ``head``: one that is known, one moved forward to it, or a new one."""
        for index in self._indexes:
            if index.head == head.id or (yield from self._move(repository, index, head)):
                break
        else:
            index = _Index(head.id)
            self._indexes.insert(0, index)
            del self._indexes[_INDEXES:]
        return index

    def _move(self, repository: pygit2.Repository, index: _Index, head: pygit2.Commit) -> Generator[None, None, bool]:
        """Move an index forward along the first parents; false when its head does not lie on that line."""
        ahead, behind = repository.ahead_behind(head.id, index.head)
        trees = Trees(repository, self._trees)
        newer: dict[PolicyName, str] = {}
        step: pygit2.Commit | None = head
        for _ in range(0 if behind else ahead):
            if step is None or step.id == index.head:
                break
            _fill(newer, changed_by(trees, self._layout, step), str(step.id))
            step = first_parent(repository, step)
            yield
        if behind or step is None or step.id != index.head:
            return False
        index.head = head.id
        index.last.update(newer)
        return True


class _Index:
    """The last changes seen between ``head`` and ``frontier``, the next commit to look at."""

    def __init__(self, head: pygit2.Oid) -> None:
        self.head = head
        self.frontier: pygit2.Oid | None = head
        self.last: dict[PolicyName, str] = {}


def changed_by(trees: Trees, layout: Layout, commit: pygit2.Commit) -> set[PolicyName]:
    """The policies whose published files differ between a commit and its first parent."""
    old, new = trees.folders(layout, commit)
    if new == old:
        return set()
    return {
        policy
        for policy, before, after in places(trees, old, new)
        if before != after and _published(trees, before) != _published(trees, after)
    }


def _published(trees: Trees, place: Place) -> set[tuple[bytes, int, bytes]]:
    """Name, kind and id of each published file that is there, of whatever kind."""
    if place is None or place[0] != FOLDER:
        return set()
    return {
        (name, int(mode, 8) & _KIND_BITS, oid)
        for mode, name, oid in trees.entries(place[2])
        if name in _FILES and mode != FOLDER
    }


def _blobs_at(repository: pygit2.Repository, commit: pygit2.Commit, where: tuple[str, ...]) -> BlobIds | None:
    folder = subfolder(repository, commit.tree_id, where)
    return None if folder is None else read_folder(entries_of(repository, folder)).blobs


def first_parent(repository: pygit2.Repository, commit: pygit2.Commit) -> pygit2.Commit | None:
    """The commit that this one was put on; ``None`` for the first of a history."""
    ids = commit.parent_ids
    return commit_of(repository, str(ids[0])) if ids else None


def _fill(last: dict[PolicyName, str], policies: set[PolicyName], commit: str) -> None:
    for policy in policies:
        last.setdefault(policy, commit)
