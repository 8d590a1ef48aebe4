"""Where policies lie in two commits, found without reading most of either tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, TypeGuard

import pygit2

from reconciler.adapters.git.difference import Pair, RawTrees
from reconciler.adapters.git.objects import FOLDER, Entry, commit_of, entries_in
from reconciler.adapters.git.tree import Layout
from reconciler.core.model import PLATFORM, PolicyName, project_policy

Place = Entry | None
"""Where a policy lies: its folder's entry, or that of what stands in its way; ``None``: nowhere."""

_PROJECTS: Final = b"projects"


class Trees:
    """Trees of the commits of a history, one after the other."""

    def __init__(self, repository: pygit2.Repository, kept: RawTrees | None = None) -> None:
        """``kept`` outlives this: for walks that are made in many steps, each perhaps on a repository opened anew."""
        self.repository = repository
        self._kept = kept or RawTrees()
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
        return self._kept.read(self.repository, tree)

    def differing(self, old: bytes, new: bytes) -> dict[bytes, Pair]:
        """How two trees differ."""
        return self._kept.differing(self.repository, old, new)

    def entries(self, tree: bytes) -> list[Entry]:
        """Its entries, as `entries_of` gives them."""
        return entries_in(self.raw(tree))


def places(trees: Trees, old: pygit2.Oid | None, new: pygit2.Oid | None) -> Iterator[tuple[PolicyName, Place, Place]]:
    """Policies whose folder may differ, with both places."""
    before, after = _top(trees, old), _top(trees, new)
    yield PLATFORM, before.get(PLATFORM.encode()), after.get(PLATFORM.encode())
    for name, pair in _projects(trees, before.get(_PROJECTS), after.get(_PROJECTS)).items():
        try:
            policy = project_policy(name.decode())
        except ValueError:  # an impossible name, also by its bytes
            continue
        yield policy, *pair


def _projects(trees: Trees, before: Place, after: Place) -> Mapping[bytes, tuple[Place, Place]]:
    """The projects that differ. What is in the way of their folder is in the way of each."""
    if before == after:
        return {}
    if _is_folder(before) and _is_folder(after):
        return trees.differing(before[2], after[2])
    if _is_folder(before):
        return {entry[1]: (entry, after) for entry in trees.entries(before[2])}
    if _is_folder(after):
        return {entry[1]: (before, entry) for entry in trees.entries(after[2])}
    return {}


def _top(trees: Trees, root: pygit2.Oid | None) -> dict[bytes, Entry]:
    return {} if root is None else {entry[1]: entry for entry in trees.entries(root.raw)}


def _is_folder(place: Place) -> TypeGuard[Entry]:
    return place is not None and place[0] == FOLDER
