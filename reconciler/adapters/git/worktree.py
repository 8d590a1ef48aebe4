"""A folder, or any commit of a repository, as a small bare repository of its own: for ``regops check`` and ``plan``.

So that both go exactly the way that a pushed commit goes; nothing is written outside the folder that is passed in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pygit2
from pygit2.enums import FileMode, ObjectType

from reconciler.adapters.git.clones import borrowing, copied, opened, revision_of
from reconciler.core.errors import StalledError

REFERENCE: Final = "refs/heads/main"
"""The branch of such a repository."""
AUTHOR: Final = pygit2.Signature("regops", "regops@localhost", 0, 0)
_EMPTY: Final = pygit2.Oid(hex="4b825dc642cb6eb9a060e54bf8d69288fbee4904")

_Entry = tuple[bytes, pygit2.Oid, FileMode]


def commit_folder(folder: Path, path: str, into: Path) -> str:
    """Commit the files below ``folder/path`` as they lie there, exact bytes, into a new bare repository at ``into``.

    Returns the commit id. Raises `StalledError` when there is no such folder. Symbolic links stay links, a folder
    with a repository of its own counts as a submodule, unreadable files are an error that names them.
    """
    start = folder / path
    if not start.is_dir():
        raise no_folder(start)
    repository = pygit2.init_repository(str(into), bare=True)
    tree = rooted(repository, files_in(repository, start), path.split("/"))
    return str(repository.create_commit(REFERENCE, AUTHOR, AUTHOR, "working tree", tree, []))


def no_folder(start: Path) -> StalledError:
    """There are no files to take."""
    return StalledError(
        f"{start} is no folder",
        reason="NoPolicies",
        remedy="Name the root of a policy repository, or its folder of policies with --path.",
    )


def commit_of(folder: Path, revision: str, into: Path) -> str:
    """Make ``revision`` of the repository around ``folder`` the head of a new bare repository, by reference.

    Returns the commit id. In a shallow clone, as pull-request checks make them, the history is not there: the new head
    is then a commit of the same tree without parents, and with another id. Raises `StalledError` when there is no
    repository or no such commit.
    """
    source = opened(folder, "Leave --commit out for its files.")
    commit = revision_of(source, revision)
    head, repository = commit.id, borrowing(source, into)
    if source.is_shallow:
        head = copied(repository, commit, [])
    repository.references.create(REFERENCE, head)
    return str(head)


def rooted(repository: pygit2.Repository, tree: pygit2.Oid, names: Sequence[str]) -> pygit2.Oid:
    """A tree that has ``tree`` at the path ``names``, and nothing else; Git has no empty folders."""
    if tree == _EMPTY:
        return _tree_of(repository, [])
    for name in reversed(names):
        tree = _tree_of(repository, [(os.fsencode(name), tree, FileMode.TREE)])
    return tree


def files_in(repository: pygit2.Repository, folder: Path) -> pygit2.Oid:
    """The files below ``folder`` as a tree."""
    found: list[_Entry] = []
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name == b".git":
                continue
            oid, mode = _entry(repository, Path(os.fsdecode(entry.path)))
            if mode == FileMode.TREE and oid == _EMPTY:
                continue  # what is left of a deleted policy is none
            found.append((entry.name, oid, mode))
    return _tree_of(repository, found)


def _tree_of(repository: pygit2.Repository, entries: list[_Entry]) -> pygit2.Oid:
    """Written as Git does it, in its order: pygit2's builder takes no names but UTF-8."""
    entries.sort(key=lambda entry: entry[0] + (b"/" if entry[2] == FileMode.TREE else b""))
    return repository.write(
        ObjectType.TREE, b"".join(b"%o %b\0%b" % (mode, name, oid.raw) for name, oid, mode in entries)
    )


def _entry(repository: pygit2.Repository, path: Path) -> tuple[pygit2.Oid, FileMode]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return repository.create_blob(os.fsencode(path.readlink())), FileMode.LINK
    if stat.S_ISDIR(mode):
        if (path / ".git").exists():
            return pygit2.Oid(hex="0" * 39 + "1"), FileMode.COMMIT
        return files_in(repository, path), FileMode.TREE
    if not stat.S_ISREG(mode):
        raise StalledError(f"{path} is no plain file", reason="InvalidLayout", remedy="Git cannot hold it: remove it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StalledError(f"{path}: {error.strerror}", reason="InvalidLayout") from error
    executable = bool(mode & stat.S_IXUSR)
    return repository.create_blob(content), FileMode.BLOB_EXECUTABLE if executable else FileMode.BLOB
