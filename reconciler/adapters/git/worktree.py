"""A folder, or any commit of a repository, as a small bare repository of its own: for ``regops check`` and ``plan``.

So that both go exactly the way that a pushed commit goes; nothing is written outside the folder that is passed in.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pygit2
from pygit2.enums import FileMode

from reconciler.core.errors import StalledError

_REFERENCE = "refs/heads/main"
_EMPTY = pygit2.Oid(hex="4b825dc642cb6eb9a060e54bf8d69288fbee4904")
_AUTHOR = pygit2.Signature("regops", "regops@localhost", 0, 0)


def commit_folder(folder: Path, path: str, into: Path) -> str:
    """Commit the files below ``folder/path`` as they lie there, exact bytes, into a new bare repository at ``into``.

    Returns the commit id. Raises `StalledError` when there is no such folder. Symbolic links stay links, a folder
    with a repository of its own counts as a submodule, unreadable files are an error that names them.
    """
    repository = pygit2.init_repository(str(into), bare=True)
    tree = _rooted(repository, folder, path)
    return str(repository.create_commit(_REFERENCE, _AUTHOR, _AUTHOR, "working tree", tree, []))


def _rooted(repository: pygit2.Repository, folder: Path, path: str) -> pygit2.Oid:
    """The tree of a repository that has the files below ``folder/path``, and nothing else."""
    start = folder / path
    if not start.is_dir():
        raise StalledError(
            f"{start} is no folder",
            reason="NoPolicies",
            remedy="Name the root of a policy repository, or its folder of policies with --path.",
        )
    tree = _tree(repository, start)
    for name in reversed(path.split("/")):
        builder = repository.TreeBuilder()
        builder.insert(name, tree, FileMode.TREE)
        tree = builder.write()
    return tree


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
    head, repository = commit.id, _borrowing(source, into)
    if source.is_shallow:
        head = _copy(repository, commit, [])
    repository.references.create(_REFERENCE, head)
    return str(head)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two states of a repository, one beside the other in a repository of their own: ``old`` and ``new`` are its
    commits, whose ids nobody else has. ``base`` is the commit that was compared with; ``head`` the other one, ``None``
    for the files as they lie there."""

    old: str
    new: str
    base: str
    head: str | None


def commit_pair(folder: Path, path: str, base: str, head: str | None, into: Path) -> Pair:
    """Put where ``head`` (``None``: the files in ``folder``) left ``base``, and ``head`` itself, into a new bare
    repository at ``into``, by reference. Nothing of the history is needed but where they meet.

    Raises `StalledError` when there is no repository, no such commit, or no commit that both come from, as in a
    shallow clone.
    """
    source = _around(folder)
    ours = _revision(source, head or "HEAD")
    theirs = _revision(source, base)
    meeting = source.merge_base(theirs.id, ours.id)
    if meeting is None:
        remedy = f"Compare commits of one history: {base!r} and {head or 'HEAD'!r} share none."
        if source.is_shallow:
            remedy = "Fetch the history: `git fetch --unshallow`; of GitHub's and Gitea's checkout, `fetch-depth: 0`."
        raise StalledError("there is no commit that both come from", reason="CommitNotFound", remedy=remedy)
    start = source[meeting].peel(pygit2.Commit)
    repository = _borrowing(source, into)
    old = _copy(repository, start, [])
    if head is not None:
        new = _copy(repository, ours, [old])
    else:
        new = repository.create_commit(None, _AUTHOR, _AUTHOR, "working tree", _rooted(repository, folder, path), [old])
    repository.references.create(_REFERENCE, new)
    return Pair(str(old), str(new), str(meeting), str(ours.id) if head is not None else None)


def write_tree(repository: Path, commit: str, path: str, into: Path) -> None:
    """Write the plain files below ``path`` of a commit below ``into``; links and submodules are left out."""
    opened = pygit2.Repository(str(repository))
    root = opened[commit].peel(pygit2.Commit).tree
    try:
        start = (root / path).peel(pygit2.Tree)
    except (KeyError, pygit2.GitError):
        return
    waiting = [(start, into)]
    while waiting:
        tree, folder = waiting.pop()
        folder.mkdir(parents=True, exist_ok=True)
        for entry in tree:
            target = folder / os.fsdecode(entry.raw_name or b"")
            if entry.filemode == FileMode.TREE:
                waiting.append((opened[entry.id].peel(pygit2.Tree), target))
            elif entry.filemode in {FileMode.BLOB, FileMode.BLOB_EXECUTABLE}:
                target.write_bytes(opened[entry.id].peel(pygit2.Blob).data)


def _around(folder: Path) -> pygit2.Repository:
    found = pygit2.discover_repository(str(folder))
    if found is None:
        remedy = "Run it in a clone of the policy repository, or name one."
        raise StalledError(f"{folder} is in no Git repository", reason="RepositoryNotFound", remedy=remedy)
    try:
        return pygit2.Repository(found)
    except pygit2.GitError as error:
        raise _no_commit("HEAD", found, error) from error


def _revision(source: pygit2.Repository, revision: str) -> pygit2.Commit:
    try:
        return source.revparse_single(revision).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise _no_commit(revision, source.path, error) from error


def _borrowing(source: pygit2.Repository, into: Path) -> pygit2.Repository:
    """A new bare repository that finds the objects of another one."""
    repository = pygit2.init_repository(str(into), bare=True)
    alternates = Path(repository.path, "objects", "info", "alternates")
    alternates.write_text(f"{_objects_of(source)}\n", encoding="utf-8")
    return pygit2.Repository(repository.path)


def _copy(repository: pygit2.Repository, commit: pygit2.Commit, parents: list[pygit2.Oid]) -> pygit2.Oid:
    """The same commit with other parents."""
    return repository.create_commit(None, commit.author, commit.committer, commit.message, commit.tree_id, parents)


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
            if mode == FileMode.TREE and oid == _EMPTY:
                continue  # Git has no empty folders: what is left of a deleted policy is none
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
