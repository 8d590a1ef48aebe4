"""What each commit of a first-parent history made of the policies."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from typing import Final

import pygit2

from reconciler.adapters.git.difference import RawTrees
from reconciler.adapters.git.history import first_parent, info_of, printable
from reconciler.adapters.git.objects import FOLDER, CommitNotFoundError, commit_of
from reconciler.adapters.git.places import Place, Trees, places
from reconciler.adapters.git.trailers import own_trailers
from reconciler.adapters.git.tree import Layout, read_folder
from reconciler.core.model import DATA_FILE, REGO_FILE, BlobIds, Content, PolicyName
from reconciler.core.ports import BranchCommit, Identity, PolicyChange

_PUBLISHED: Final = frozenset({REGO_FILE.encode(), DATA_FILE.encode()})

_State = tuple[PolicyChange, frozenset[tuple[bytes, bytes, bytes]]]
"""A policy in one commit: what it is, and the published files that make it so, whatever they are."""
_NOTHING: Final[_State] = (PolicyChange(None), frozenset())


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
    repository: pygit2.Repository,
    layout: Layout,
    commits: Sequence[str],
    only: PolicyName | None,
    regops: Identity,
    kept: RawTrees,
) -> Generator[None, None, dict[str, BranchCommit]]:
    """See `Source.branch_commits`."""
    found: dict[str, BranchCommit] = {}
    trees = Trees(repository, kept)
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
    known: dict[str, bytes] = {}
    size = 0
    for blobs in wanted:
        content = None if blobs is None else _content(repository, blobs, limit, known)
        found.append(content)
        size += 0 if content is None else content.size
        if size >= budget:
            break
        yield
    return found


def _content(repository: pygit2.Repository, blobs: BlobIds, limit: int, known: dict[str, bytes]) -> Content | None:
    """The texts, unless they are too large. ``known``: what was read before; many policies have the same data."""
    texts: list[bytes] = []
    for blob in (blobs.rego, blobs.data):
        if blob is None:
            continue
        if blob not in known:
            oid = pygit2.Oid(hex=blob)
            if repository.odb.read_header(oid)[1] > limit:
                return None
            known[blob] = repository.odb.read(oid)[1]
        texts.append(known[blob])
    if sum(map(len, texts)) > limit:
        return None
    rego, *data = texts
    return Content(rego, data[0] if data else None)


def _changes(
    trees: Trees, layout: Layout, commit: pygit2.Commit, only: PolicyName | None
) -> dict[PolicyName, PolicyChange]:
    old, new = trees.folders(layout, commit)
    if new == old:
        return {}
    found = places(trees, old, new) if only is None else [(only, _place(trees, old, only), _place(trees, new, only))]
    changes: dict[PolicyName, PolicyChange] = {}
    for policy, before, after in found:
        if before == after:
            continue
        now = _state(trees, after)
        if now != _state(trees, before):
            changes[policy] = now[0]
    return changes


def _place(trees: Trees, root: pygit2.Oid | None, policy: PolicyName) -> Place:
    """The place of one policy below the folder of all policies."""
    found: Place = None
    tree = None if root is None else root.raw
    for name in policy.encode().split(b"/"):
        if tree is None:
            return None
        found = next((entry for entry in trees.entries(tree) if entry[1] == name), None)
        if found is None or found[0] != FOLDER:
            return found
        tree = found[2]
    return found


def _state(trees: Trees, place: Place) -> _State:
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
