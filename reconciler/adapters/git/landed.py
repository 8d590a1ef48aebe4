"""What each commit of a first-parent history made of the policies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Generator, Iterator, Sequence
from typing import Final

import pygit2
from pygit2.enums import ObjectType

from reconciler.adapters.git.difference import differing
from reconciler.adapters.git.history import first_parent, info_of, printable
from reconciler.adapters.git.objects import FOLDER, CommitNotFoundError, Entry, commit_of, entries_in
from reconciler.adapters.git.trailers import own_trailers
from reconciler.adapters.git.tree import Layout, read_folder
from reconciler.core.model import DATA_FILE, PLATFORM, REGO_FILE, BlobIds, Content, PolicyName, project_policy
from reconciler.core.ports import BranchCommit, Identity, PolicyChange

_PUBLISHED: Final = frozenset({REGO_FILE.encode(), DATA_FILE.encode()})
_PROJECTS: Final = b"projects"

_TREES_KEPT: Final = 8

_State = tuple[PolicyChange, frozenset[tuple[bytes, bytes, bytes]]]
"""A policy in one commit: what it is, and the published files that make it so, whatever they are."""
_NOTHING: Final[_State] = (PolicyChange(None), frozenset())

_Place = Entry | None
"""Where a policy lies: its folder's entry, or that of what stands in its way; ``None``: nowhere."""


def line(repository: pygit2.Repository, commit: str, known: Container[str]) -> Generator[None, None, list[str]]:
    """See `Source.line`."""
    found: list[str] = []
    step: pygit2.Commit | None = commit_of(repository, commit)
    while step is not None and (name := str(step.id)) not in known:
        found.append(name)
        step = first_parent(repository, step)
        yield
    found.reverse()
    return found


def branch_commits(
    repository: pygit2.Repository, layout: Layout, commits: Sequence[str], only: PolicyName | None, regops: Identity
) -> Generator[None, None, dict[str, BranchCommit]]:
    """See `Source.branch_commits`."""
    found: dict[str, BranchCommit] = {}
    trees = _Trees(repository)
    for name in commits:
        try:
            commit = commit_of(repository, name)
        except CommitNotFoundError:
            continue
        changes = _changes(trees, layout, commit, only)
        found[name] = BranchCommit(info_of(commit), changes, own_trailers(commit, regops), printable(commit.committer))
        yield
    return found


def contents(
    repository: pygit2.Repository, wanted: Sequence[BlobIds | None], limit: int, budget: int
) -> Generator[None, None, list[Content | None]]:
    """See `Source.contents`."""
    found: list[Content | None] = []
    size = 0
    for blobs in wanted:
        content = None if blobs is None else _content(repository, blobs, limit)
        found.append(content)
        size += 0 if content is None else content.size
        if size >= budget:
            break
        yield
    return found


def _content(repository: pygit2.Repository, blobs: BlobIds, limit: int) -> Content | None:
    ids = [pygit2.Oid(hex=blob) for blob in (blobs.rego, blobs.data) if blob is not None]
    if sum(repository.odb.read_header(oid)[1] for oid in ids) > limit:
        return None
    rego, *data = [repository.odb.read(oid)[1] for oid in ids]
    return Content(rego, data[0] if data else None)


class _Trees:
    """Raw trees; the last ones are remembered, since a commit's are its successor's former ones: a large one is a chain
    of deltas, and most of what a history costs to read."""

    def __init__(self, repository: pygit2.Repository) -> None:
        self.repository = repository
        self._last: OrderedDict[bytes, bytes] = OrderedDict()
        self._former: tuple[pygit2.Oid | None, pygit2.Oid | None] = (None, None)

    def folder(self, layout: Layout, commit: pygit2.Commit) -> pygit2.Oid | None:
        """The folder of all policies in a commit."""
        return layout.folder_of(self.repository, commit)

    def folders(self, layout: Layout, commit: pygit2.Commit) -> tuple[pygit2.Oid | None, pygit2.Oid | None]:
        """That of its first parent, which in a history is the one asked for last, and its own."""
        ids, (former, old) = commit.parent_ids, self._former
        if not ids:
            old = None
        elif ids[0] != former:
            old = self.folder(layout, commit_of(self.repository, str(ids[0])))
        new = self.folder(layout, commit)
        self._former = commit.id, new
        return old, new

    def raw(self, tree: bytes) -> bytes:
        """The tree with this 20-byte id."""
        found = self._last.get(tree)
        if found is not None:
            self._last.move_to_end(tree)
            return found
        kind, raw = self.repository.odb.read(pygit2.Oid(raw=tree))
        if kind != ObjectType.TREE:
            raise KeyError(f"{tree.hex()} is no tree")
        self._last[tree] = raw
        if len(self._last) > _TREES_KEPT:
            self._last.popitem(last=False)
        return raw

    def entries(self, tree: bytes) -> list[Entry]:
        """Its entries, as `entries_of` gives them."""
        return entries_in(self.raw(tree))


def _changes(
    trees: _Trees, layout: Layout, commit: pygit2.Commit, only: PolicyName | None
) -> dict[PolicyName, PolicyChange]:
    old, new = trees.folders(layout, commit)
    if new == old:
        return {}
    places = _places(trees, old, new) if only is None else [(only, _place(trees, old, only), _place(trees, new, only))]
    changes: dict[PolicyName, PolicyChange] = {}
    for policy, before, after in places:
        if before == after:
            continue
        now = _state(trees, after)
        if now != _state(trees, before):
            changes[policy] = now[0]
    return changes


def _places(
    trees: _Trees, old: pygit2.Oid | None, new: pygit2.Oid | None
) -> Iterator[tuple[PolicyName, _Place, _Place]]:
    """Policies whose folder may differ, with both places."""
    before, after = _top(trees, old), _top(trees, new)
    yield PLATFORM, before.get(PLATFORM.encode()), after.get(PLATFORM.encode())
    for name, pair in _projects(trees, before.get(_PROJECTS), after.get(_PROJECTS)).items():
        try:
            policy = project_policy(name.decode())
        except ValueError:  # an impossible name, also by its bytes
            continue
        yield policy, *pair


def _projects(trees: _Trees, before: _Place, after: _Place) -> dict[bytes, tuple[_Place, _Place]]:
    """The projects that differ. What is in the way of their folder is in the way of each."""
    if before == after:
        return {}
    if _is_folder(before) and _is_folder(after):
        return differing(_raw(trees, before), _raw(trees, after))
    if _is_folder(before):
        return {name: (entry, after) for name, (entry, _) in differing(_raw(trees, before), b"").items()}
    if _is_folder(after):
        return {name: (before, entry) for name, (_, entry) in differing(b"", _raw(trees, after)).items()}
    return {}


def _place(trees: _Trees, root: pygit2.Oid | None, policy: PolicyName) -> _Place:
    """The place of one policy below the folder of all policies."""
    found: _Place = None
    tree = None if root is None else root.raw
    for name in policy.encode().split(b"/"):
        if tree is None:
            return None
        found = next((entry for entry in trees.entries(tree) if entry[1] == name), None)
        if found is None or found[0] != FOLDER:
            return found
        tree = found[2]
    return found


def _state(trees: _Trees, place: _Place) -> _State:
    if place is None:
        return _NOTHING
    if place[0] != FOLDER:
        fault = f"{place[1].decode(errors='replace')} is no folder; put a folder with a {REGO_FILE} in its place"
        return PolicyChange(None, fault), frozenset({place})
    entries = trees.entries(place[2])
    folder = read_folder(entries)
    blobs = folder.blobs
    if blobs is not None:  # of a policy only the ids count: a file that became executable is no new version
        ids = {(b"", b"rego", blobs.rego.encode()), (b"", b"data", (blobs.data or "").encode())}
        return PolicyChange(blobs), frozenset(ids)
    fault = "; ".join(f"{file} {what}" for file, what in folder.faults)
    return PolicyChange(None, fault), frozenset(entry for entry in entries if entry[1] in _PUBLISHED)


def _top(trees: _Trees, root: pygit2.Oid | None) -> dict[bytes, Entry]:
    return {} if root is None else {entry[1]: entry for entry in trees.entries(root.raw)}


def _is_folder(place: _Place) -> bool:
    return place is not None and place[0] == FOLDER


def _raw(trees: _Trees, place: _Place) -> bytes:
    return b"" if place is None else trees.raw(place[2])
