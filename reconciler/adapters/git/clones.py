"""A person's or a pipeline's clone, opened for its commits; what hinders that is said with the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pygit2

from reconciler.core.errors import StalledError

WHOLE_HISTORY = "Fetch the history: `git fetch --unshallow`; of GitHub's and Gitea's checkout, `fetch-depth: 0`."
"""What to do about a shallow clone."""


def opened(folder: Path, remedy: str) -> pygit2.Repository:
    """The repository around ``folder``. Raises `StalledError` when there is none that can be opened."""
    found = pygit2.discover_repository(str(folder))
    if found is None:
        raise StalledError(f"{folder} is in no Git repository", reason="RepositoryNotFound", remedy=remedy)
    try:
        return pygit2.Repository(found)
    except pygit2.GitError as error:
        if "not owned by" in str(error):  # git's CVE-2022-24765: another user's configuration is not obeyed
            place = Path(found).parent if Path(found).name == ".git" else Path(found)
            raise StalledError(
                f"{place} belongs to another user, so that Git's rules forbid its use",
                reason="RepositoryNotFound",
                remedy=f"Where you trust it: git config --global --add safe.directory {place}",
            ) from error
        raise _no_commit("HEAD", found, error) from error


def revision_of(source: pygit2.Repository, revision: str) -> pygit2.Commit:
    """The commit that ``revision`` names. Raises `StalledError` when there is none."""
    try:
        return source.revparse_single(revision).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise _no_commit(revision, source.path, error, shallow=source.is_shallow) from error


def borrowing(source: pygit2.Repository, into: Path) -> pygit2.Repository:
    """A new bare repository that finds the objects of another one."""
    repository = pygit2.init_repository(str(into), bare=True)
    alternates = Path(repository.path, "objects", "info", "alternates")
    alternates.write_bytes(os.fsencode(_objects_of(source)) + b"\n")
    return pygit2.Repository(repository.path)


def copied(repository: pygit2.Repository, commit: pygit2.Commit, parents: list[pygit2.Oid]) -> pygit2.Oid:
    """The same commit with other parents."""
    return repository.create_commit(None, commit.author, commit.committer, commit.message, commit.tree_id, parents)


def is_partial(source: pygit2.Repository) -> bool:
    """Whether it was cloned with ``--filter``: what is missing is fetched by git when asked for, and by nobody else."""
    return any(entry.name.endswith((".promisor", ".partialclonefilter")) for entry in source.config)


def _no_commit(revision: str, found: str, error: Exception, *, shallow: bool = False) -> StalledError:
    if "object format" in str(error):
        return StalledError(
            f"{found} is not in SHA-1 format",
            reason="UnsupportedObjectFormat",
            remedy="Use a repository with Git's default object format.",
        )
    remedy = "Give a branch, a tag or a commit id that `git rev-parse` knows."
    if shallow:
        remedy = f"The clone is shallow. {WHOLE_HISTORY}"
    return StalledError(f"{revision!r} is no commit of {found}", reason="CommitNotFound", remedy=remedy)


def _objects_of(repository: pygit2.Repository) -> Path:
    """The folder of its objects: a linked work tree shares that of the repository it belongs to."""
    common = Path(repository.path, "commondir")
    shared = common.read_text(encoding="utf-8").strip() if common.is_file() else "."
    return Path(repository.path, shared, "objects").resolve()
