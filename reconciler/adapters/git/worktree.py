"""A folder, or any commit of a repository, as a small bare repository of its own: for ``regops check`` and ``plan``.

So that both go exactly the way that a pushed commit goes; nothing is written outside the folder that is passed in.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

from reconciler.core.errors import StalledError

_REFERENCE = "refs/heads/main"
_AUTHOR = pygit2.Signature("regops", "regops@localhost", 0, 0)


def commit_folder(folder: Path, path: str, into: Path) -> str:
    """Commit the files below ``folder/path`` as they lie there, exact bytes, into a new bare repository at ``into``.

    Returns the commit id. Raises `StalledError` when there is no such folder. Symbolic links stay links, a folder
    with a repository of its own counts as a submodule, unreadable files are an error that names them.
    """
    start = folder / path
    if not start.is_dir():
        raise StalledError(
            f"{start} is no folder",
            reason="NoPolicies",
            remedy="Name the root of a policy repository, or its folder of policies with --path.",
        )
    repository = pygit2.init_repository(str(into), bare=True)
    tree = _tree(repository, start)
    for name in reversed(path.split("/")):
        builder = repository.TreeBuilder()
        builder.insert(name, tree, FileMode.TREE)
        tree = builder.write()
    return str(repository.create_commit(_REFERENCE, _AUTHOR, _AUTHOR, "working tree", tree, []))


def commit_of(folder: Path, revision: str, into: Path) -> str:
    """Make ``revision`` of the repository around ``folder`` the head of a new bare repository, by reference.

    Returns the commit id. In a shallow clone, as pull-request checks make them, the history is not there: the new head
    is then a commit of the same tree without parents, and with another id. Raises `StalledError` when there is no
    repository or no such commit.
    """
    found = pygit2.discover_repository(str(folder))
    if found is None:
        raise StalledError(
            f"{folder} is in no Git repository", reason="RepositoryNotFound", remedy="Leave --commit out for its files."
        )
    try:
        source = pygit2.Repository(found)
        commit = source.revparse_single(revision).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise _no_commit(revision, found, error) from error
    repository = pygit2.init_repository(str(into), bare=True)
    alternates = Path(repository.path, "objects", "info", "alternates")
    alternates.write_text(f"{_objects_of(source)}\n", encoding="utf-8")
    head, repository = commit.id, pygit2.Repository(repository.path)
    if source.is_shallow:
        head = repository.create_commit(None, commit.author, commit.committer, commit.message, commit.tree_id, [])
    repository.references.create(_REFERENCE, head)
    return str(head)


def _no_commit(revision: str, found: str, error: Exception) -> StalledError:
    if "object format" in str(error):
        return StalledError(
            f"{found} is not in SHA-1 format",
            reason="UnsupportedObjectFormat",
            remedy="Use a repository with Git's default object format.",
        )
    return StalledError(
        f"{revision!r} is no commit of {found}",
        reason="CommitNotFound",
        remedy="Give a branch, a tag or a commit id that `git rev-parse` knows.",
    )


def _objects_of(repository: pygit2.Repository) -> Path:
    """The folder of its objects: a linked work tree shares that of the repository it belongs to."""
    common = Path(repository.path, "commondir")
    shared = common.read_text(encoding="utf-8").strip() if common.is_file() else "."
    return Path(repository.path, shared, "objects").resolve()


def _tree(repository: pygit2.Repository, folder: Path) -> pygit2.Oid:
    builder = repository.TreeBuilder()
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name == b".git":
                continue
            oid, mode = _entry(repository, Path(os.fsdecode(entry.path)))
            builder.insert(os.fsdecode(entry.name), oid, mode)
    return builder.write()


def _entry(repository: pygit2.Repository, path: Path) -> tuple[pygit2.Oid, FileMode]:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return repository.create_blob(os.fsencode(path.readlink())), FileMode.LINK
    if stat.S_ISDIR(mode):
        if (path / ".git").exists():
            return pygit2.Oid(hex="0" * 39 + "1"), FileMode.COMMIT
        return _tree(repository, path), FileMode.TREE
    if not stat.S_ISREG(mode):
        raise StalledError(f"{path} is no plain file", reason="InvalidLayout", remedy="Git cannot hold it: remove it.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StalledError(f"{path}: {error.strerror}", reason="InvalidLayout") from error
    executable = bool(mode & stat.S_IXUSR)
    return repository.create_blob(content), FileMode.BLOB_EXECUTABLE if executable else FileMode.BLOB
