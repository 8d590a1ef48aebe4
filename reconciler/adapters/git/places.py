"""Where policies lie in two commits, found without reading most of either tree."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import pygit2

from reconciler.adapters.git.difference import differing
from reconciler.adapters.git.objects import FOLDER, Entry, commit_of, entries_in, raw_tree
from reconciler.adapters.git.tree import Layout
from reconciler.core.model import PLATFORM, PolicyName, project_policy

Place = Entry | None
"""Where a policy lies: its folder's entry, or that of what stands in its way; ``None``: nowhere."""
RawTrees = OrderedDict[bytes, bytes]
"""Raw trees by their 20-byte ids, the one used last at the end."""

_PROJECTS: Final = b"projects"
_TREES_KEPT: Final = 8


class Trees:
    """Raw trees; the last ones are remembered, since a commit's are its successor's former ones: a large one is a chain
    of deltas, and most of what a history costs to read."""

    def __init__(self, repository: pygit2.Repository, kept: RawTrees | None = None) -> None:
        """``kept`` outlives this: for walks that are made in many steps, each perhaps on a repository opened anew."""
        self.repository = repository
        self._last: RawTrees = OrderedDict() if kept is None else kept
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
        raw = self._last[tree] = raw_tree(self.repository, tree)
        if len(self._last) > _TREES_KEPT:
            self._last.popitem(last=False)
        return raw

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


def _projects(trees: Trees, before: Place, after: Place) -> dict[bytes, tuple[Place, Place]]:
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


def _top(trees: Trees, root: pygit2.Oid | None) -> dict[bytes, Entry]:
    return {} if root is None else {entry[1]: entry for entry in trees.entries(root.raw)}


def _is_folder(place: Place) -> bool:
    return place is not None and place[0] == FOLDER


def _raw(trees: Trees, place: Place) -> bytes:
    return b"" if place is None else trees.raw(place[2])
