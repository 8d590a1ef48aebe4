"""The Rego unit tests beside the policies of a commit: they are in Git, and never published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import pygit2

from reconciler.adapters.git.objects import FOLDER, commit_of, entries_of
from reconciler.adapters.git.tree import Layout
from reconciler.core.model import PLATFORM, PolicyName, is_project_name, project_policy

_SUFFIX: Final = b"_test.rego"
_PLAIN: Final = frozenset({b"100644", b"100755"})


def unit_tests(repository: pygit2.Repository, layout: Layout, commit: str) -> dict[PolicyName, Mapping[str, bytes]]:
    """The plain files ``*_test.rego`` of each policy's folder, by name. Names that could lead elsewhere, once they are
    written to a disk, are left out: a tree may hold any bytes."""
    found: dict[PolicyName, Mapping[str, bytes]] = {}
    for policy, folder in _folders(repository, layout.folder_of(repository, commit_of(repository, commit))):
        files = {
            name.decode(): repository[pygit2.Oid(raw=oid)].peel(pygit2.Blob).data
            for mode, name, oid in entries_of(repository, folder)
            if mode in _PLAIN and _harmless(name)
        }
        if files:
            found[policy] = files
    return found


def _folders(repository: pygit2.Repository, top: pygit2.Oid | None) -> Iterator[tuple[PolicyName, pygit2.Oid]]:
    for mode, name, oid in entries_of(repository, top) if top is not None else ():
        if mode == FOLDER and name == b"platform":
            yield PLATFORM, pygit2.Oid(raw=oid)
        elif mode == FOLDER and name == b"projects":
            for kind, project, folder in entries_of(repository, pygit2.Oid(raw=oid)):
                if kind == FOLDER and project.isascii() and is_project_name(project.decode()):
                    yield project_policy(project.decode()), pygit2.Oid(raw=folder)


def _harmless(name: bytes) -> bool:
    """A plain name of a test: no way out of the folder, and text."""
    if not name.endswith(_SUFFIX) or b"/" in name or b"\\" in name:
        return False
    try:
        return name.decode().isprintable()
    except UnicodeDecodeError:
        return False
