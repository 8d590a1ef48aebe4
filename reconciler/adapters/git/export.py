"""A whole repository out of a mirror: what a lost remote is restored from. Needs neither remote nor etcd."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pygit2

from reconciler.adapters.git.access import Access, unset_inherited
from reconciler.adapters.git.history import info_of
from reconciler.adapters.git.mirror import PUSHED_REF
from reconciler.adapters.git.process import Completed, GitProcess
from reconciler.adapters.git.transport import HEAD_REF
from reconciler.adapters.git.tree import Layout
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import CommitInfo

_TIMEOUT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Exported:
    """What the new repository has: its branch's head, how many commits it takes to get there, and policies in it."""

    head: CommitInfo
    commits: int
    policies: int


def export(
    mirror: Path, into: Path, *, branch: str, path: str, commit: str | None, say: Callable[[str], None]
) -> Exported:
    """Write a bare repository ``into`` a folder that is not there yet or empty, whole or not at all.

    ``branch`` points to ``commit``, any that the mirror has, else to the last head that it knows. ``say`` is told of
    each step. Every object is verified. Raises `StalledError` for what a person must change, `TransientError` when git
    could not do its work. The mirror is only read, also while a server uses it.
    """
    into = into.absolute()  # git runs in another folder
    source = _opened(mirror)
    head = _found(source, commit) if commit else _newest(source, mirror)
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise StalledError(
            f"{into} is there already", reason="TargetExists", remedy="Name a folder that does not exist."
        )
    if not pygit2.reference_is_valid_name(f"refs/heads/{branch}"):
        raise StalledError(
            f"{branch!r} is no possible branch name", reason="BranchNotFound", remedy="Correct --branch."
        )
    into.parent.mkdir(parents=True, exist_ok=True)
    spare = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
    try:
        target = pygit2.init_repository(str(spare), bare=True, initial_head=branch)
        alternates = spare / "objects" / "info" / "alternates"
        alternates.write_text(f"{mirror.absolute() / 'objects'}\n")
        target = pygit2.Repository(str(spare))
        target.references.create(f"refs/heads/{branch}", head.id)
        say("copying every object of the branch")
        _git(spare, ["repack", "-a", "-d", "-q"])
        alternates.unlink()
        say("verifying every object")
        _git(spare, ["fsck", "--full", "--no-dangling", "--no-progress"])
        commits = int(_git(spare, ["rev-list", "--count", str(head.id)]).output)
        policies = len(Layout(path).read(pygit2.Repository(str(spare)), str(head.id)).policies)
        spare.chmod(0o755 & ~_umask())
        if into.exists():
            into.rmdir()
        spare.replace(into)
    except BaseException:
        shutil.rmtree(spare, ignore_errors=True)
        raise
    return Exported(info_of(head), commits, policies)


def _opened(mirror: Path) -> pygit2.Repository:
    try:
        return pygit2.Repository(str(mirror))
    except pygit2.GitError as error:
        raise StalledError(
            f"there is no mirror in {mirror}",
            reason="NoMirror",
            remedy="Name the settings of a server that has fetched once with --config, or its folder with --mirror.",
        ) from error


def _newest(source: pygit2.Repository, mirror: Path) -> pygit2.Commit:
    """The last head that was fetched, or the last one that was pushed from here where that is newer."""
    heads = [
        source.references[name].peel(pygit2.Commit) for name in (HEAD_REF, PUSHED_REF) if name in source.references
    ]
    if not heads:
        raise StalledError(
            f"the mirror in {mirror} is empty",
            reason="NoMirror",
            remedy="Its server has never reached the remote: take another replica's.",
        )
    newer = len(heads) > 1 and source.descendant_of(heads[1].id, heads[0].id)
    return heads[1] if newer else heads[0]


def _found(source: pygit2.Repository, commit: str) -> pygit2.Commit:
    try:
        return source.revparse_single(commit).peel(pygit2.Commit)
    except (KeyError, ValueError, pygit2.GitError) as error:
        raise StalledError(
            f"the mirror has no commit {commit}",
            reason="CommitNotFound",
            remedy="Give its id, or the first digits of it; another replica's mirror may have it.",
        ) from error


def _git(repository: Path, arguments: Sequence[str]) -> Completed:
    process = GitProcess(
        [*unset_inherited(), "git", f"--git-dir={repository}", *arguments],
        folder=repository,
        environment=Access().environment(),
        timeout=_TIMEOUT,
    )
    done = process.run()
    if done.status:
        said = done.errors.strip().splitlines() or [f"exit status {done.status}"]
        raise TransientError(
            f"git {arguments[0]}: {said[-1]}",
            reason="ExportFailed",
            remedy="Is there room? Else take another replica's.",
        )
    return done


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
