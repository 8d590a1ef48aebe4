"""What each commit of a first-parent history made of the policies."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from typing import Final

import pygit2
from pygit2.enums import FileMode

from reconciler.adapters.git.history import diff_of, first_parent, info_of
from reconciler.adapters.git.objects import CommitNotFoundError, commit_of, entries_of
from reconciler.adapters.git.tree import Layout, read_folder
from reconciler.core.model import DATA_FILE, REGO_FILE, PolicyName, policy_name
from reconciler.core.ports import BranchCommit, PolicyChange

_PUBLISHED: Final = frozenset({REGO_FILE.encode(), DATA_FILE.encode()})
_ABSENT: Final = PolicyChange(None)

_State = tuple[PolicyChange, frozenset[tuple[str, str, str]]]
"""A policy in one commit: what it is, and the published files that make it so, whatever they are."""
_NOTHING: Final[_State] = (_ABSENT, frozenset())


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
    repository: pygit2.Repository, layout: Layout, commits: Sequence[str], only: PolicyName | None
) -> Generator[None, None, dict[str, BranchCommit]]:
    """See `Source.branch_commits`."""
    found: dict[str, BranchCommit] = {}
    for name in commits:
        try:
            commit = commit_of(repository, name)
        except CommitNotFoundError:
            continue
        changes = _changes(repository, layout, commit, only)
        found[name] = BranchCommit(info_of(commit), changes)
        yield
    return found


def _changes(
    repository: pygit2.Repository, layout: Layout, commit: pygit2.Commit, only: PolicyName | None
) -> dict[PolicyName, PolicyChange]:
    parent = first_parent(repository, commit)
    new = layout.folder_of(repository, commit)
    old = None if parent is None else layout.folder_of(repository, parent)
    if new == old:
        return {}
    touched = {only} if only else _touched(repository, old, new)
    changes: dict[PolicyName, PolicyChange] = {}
    for policy in touched:
        after = _state(repository, new, policy)
        if after != _state(repository, old, policy):
            changes[policy] = after[0]
    return changes


def _touched(repository: pygit2.Repository, old: pygit2.Oid | None, new: pygit2.Oid | None) -> set[PolicyName]:
    """Policies with any file in their folder that differs: also a README may be what keeps a folder there."""
    touched: set[PolicyName] = set()
    for delta in diff_of(repository, old, new).deltas:
        for path in (delta.old_file.raw_path, delta.new_file.raw_path):
            folder = path.decode("utf-8", "backslashreplace").split("/")
            parts = folder[:1] if folder[0] == "platform" else folder[:2]
            try:
                touched.add(policy_name("/".join(parts)))
            except ValueError:
                continue
    return touched


def _state(repository: pygit2.Repository, root: pygit2.Oid | None, policy: PolicyName) -> _State:
    """A policy below the folder of all policies."""
    if root is None:
        return _NOTHING
    folder = repository[root]
    for name in policy.split("/"):
        if not isinstance(folder, pygit2.Tree) or name not in folder:
            return _NOTHING
        found = folder[name]
        if found.filemode != FileMode.TREE:
            fault = f"{name} is no folder; put a folder with a {REGO_FILE} in its place"
            return PolicyChange(None, fault), frozenset({(str(int(found.filemode)), name, str(found.id))})
        folder = repository[found.id]
    entries = entries_of(repository, folder.id)
    read = read_folder(entries)
    if read.blobs is not None:  # of a policy only the ids count: a file that became executable is no new version
        return PolicyChange(read.blobs), frozenset({("", "rego", read.blobs.rego), ("", "data", read.blobs.data or "")})
    published = frozenset(
        (mode.decode(), name.decode(), oid.hex()) for mode, name, oid in entries if name in _PUBLISHED
    )
    return PolicyChange(None, "; ".join(f"{file} {what}" for file, what in read.faults)), published
