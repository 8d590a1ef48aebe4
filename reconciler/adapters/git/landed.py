"""What each commit of a first-parent history made of the policies."""

from __future__ import annotations

from collections.abc import Container, Generator, Iterator, Sequence
from typing import Final

import pygit2
from pygit2.enums import ObjectType

from reconciler.adapters.git.difference import differing
from reconciler.adapters.git.history import first_parent, info_of, printable
from reconciler.adapters.git.objects import FOLDER, CommitNotFoundError, Entry, commit_of, entries_of
from reconciler.adapters.git.trailers import own_trailers
from reconciler.adapters.git.tree import Layout, read_folder
from reconciler.core.model import DATA_FILE, PLATFORM, REGO_FILE, PolicyName, project_policy
from reconciler.core.ports import BranchCommit, Identity, PolicyChange

_PUBLISHED: Final = frozenset({REGO_FILE.encode(), DATA_FILE.encode()})
_PROJECTS: Final = b"projects"

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
    for name in commits:
        try:
            commit = commit_of(repository, name)
        except CommitNotFoundError:
            continue
        changes = _changes(repository, layout, commit, only)
        found[name] = BranchCommit(info_of(commit), changes, own_trailers(commit, regops), printable(commit.committer))
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
    places = (
        _places(repository, old, new)
        if only is None
        else [(only, _place(repository, old, only), _place(repository, new, only))]
    )
    changes: dict[PolicyName, PolicyChange] = {}
    for policy, before, after in places:
        if before == after:
            continue
        now = _state(repository, after)
        if now != _state(repository, before):
            changes[policy] = now[0]
    return changes


def _places(
    repository: pygit2.Repository, old: pygit2.Oid | None, new: pygit2.Oid | None
) -> Iterator[tuple[PolicyName, _Place, _Place]]:
    """Policies whose folder may differ, with both places."""
    before, after = _top(repository, old), _top(repository, new)
    yield PLATFORM, before.get(PLATFORM.encode()), after.get(PLATFORM.encode())
    for name, pair in _projects(repository, before.get(_PROJECTS), after.get(_PROJECTS)).items():
        try:
            policy = project_policy(name.decode())
        except ValueError:  # an impossible name, also by its bytes
            continue
        yield policy, *pair


def _projects(repository: pygit2.Repository, before: _Place, after: _Place) -> dict[bytes, tuple[_Place, _Place]]:
    """The projects that differ. What is in the way of their folder is in the way of each."""
    if before == after:
        return {}
    if _is_folder(before) and _is_folder(after):
        return differing(_raw(repository, before), _raw(repository, after))
    if _is_folder(before):
        return {name: (entry, after) for name, (entry, _) in differing(_raw(repository, before), b"").items()}
    if _is_folder(after):
        return {name: (before, entry) for name, (_, entry) in differing(b"", _raw(repository, after)).items()}
    return {}


def _place(repository: pygit2.Repository, root: pygit2.Oid | None, policy: PolicyName) -> _Place:
    """The place of one policy below the folder of all policies."""
    found: _Place = None
    tree = root
    for name in policy.encode().split(b"/"):
        if tree is None:
            return None
        found = next((entry for entry in entries_of(repository, tree) if entry[1] == name), None)
        if found is None or found[0] != FOLDER:
            return found
        tree = pygit2.Oid(raw=found[2])
    return found


def _state(repository: pygit2.Repository, place: _Place) -> _State:
    if place is None:
        return _NOTHING
    if place[0] != FOLDER:
        fault = f"{place[1].decode(errors='replace')} is no folder; put a folder with a {REGO_FILE} in its place"
        return PolicyChange(None, fault), frozenset({place})
    entries = entries_of(repository, pygit2.Oid(raw=place[2]))
    folder = read_folder(entries)
    blobs = folder.blobs
    if blobs is not None:  # of a policy only the ids count: a file that became executable is no new version
        ids = {(b"", b"rego", blobs.rego.encode()), (b"", b"data", (blobs.data or "").encode())}
        return PolicyChange(blobs), frozenset(ids)
    fault = "; ".join(f"{file} {what}" for file, what in folder.faults)
    return PolicyChange(None, fault), frozenset(entry for entry in entries if entry[1] in _PUBLISHED)


def _top(repository: pygit2.Repository, root: pygit2.Oid | None) -> dict[bytes, Entry]:
    return {} if root is None else {entry[1]: entry for entry in entries_of(repository, root)}


def _is_folder(place: _Place) -> bool:
    return place is not None and place[0] == FOLDER


def _raw(repository: pygit2.Repository, place: _Place) -> bytes:
    if place is None:
        return b""
    kind, raw = repository.odb.read(pygit2.Oid(raw=place[2]))
    if kind != ObjectType.TREE:
        raise KeyError(f"{place[2].hex()} is no tree")
    return raw
