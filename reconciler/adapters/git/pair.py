"""What is live now and what would be after a merge, as two commits of a small bare repository: for ``check --base``.

left ───────▶ old     the tip of the branch that the change goes to: what production has comes of its history
  ╲              ╲
   ▶ changed ────▶ new     the change on top of it, merged in memory; where nothing came meanwhile, the change itself
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pygit2

from reconciler.adapters.git.clones import WHOLE_HISTORY, borrowing, copied, is_partial, opened, revision_of
from reconciler.adapters.git.tree import subfolder
from reconciler.adapters.git.worktree import AUTHOR, REFERENCE, files_in, no_folder, rooted
from reconciler.core.errors import StalledError


@dataclass(frozen=True, slots=True)
class Pair:
    """The commits in the new repository, whose ids may be known nowhere else: see above. What the change itself does is
    the difference of ``left`` and ``changed``.

    ``base`` is the commit where the change left the branch, ``head`` the change's own (``None``: the files), ``tip``
    what the branch has since: ``None`` for nothing, or where it is left out since ``conflicts``, names below ``path``,
    keep the two from being merged. ``path`` is the folder of the policies below the repository's root. ``whole``: the
    history is there; ``partial``: objects may be missing.
    """

    left: str
    changed: str
    old: str
    new: str
    base: str
    head: str | None
    tip: str | None
    path: str
    conflicts: tuple[str, ...]
    whole: bool
    partial: bool


def commit_pair(folder: Path, path: str, base: str, head: str | None, into: Path) -> Pair:
    """Put a change and what it goes to into a new bare repository at ``into``, by reference. The change is what
    ``head``, or the files below ``folder/path``, have since they left ``base``.

    ``path`` is taken from ``folder``, which may lie below the root of its repository; with ``head`` also from that
    root, where the commit has it only there. In a shallow clone the commits have no history. Raises `StalledError` when
    there is no repository, no such commit, or no commit that both come from.
    """
    source = opened(folder, "Run it in a clone of the policy repository, or name one.")
    ours, tip = revision_of(source, head or "HEAD"), revision_of(source, base)
    left = _meeting(source, ours, tip, (base, head or "HEAD"))
    try:
        return _laid_out(source, folder, path, head, (left, ours, tip), borrowing(source, into))
    except (KeyError, pygit2.GitError) as error:
        raise incomplete(source.path, partial=is_partial(source)) from error


def incomplete(repository: str, *, partial: bool) -> StalledError:
    """Objects that must be there are not."""
    if partial:
        return StalledError(
            f"{repository} is a partial clone, and lacks what is to be compared",
            reason="CommitNotFound",
            remedy="Fetch it: `git fetch --refetch --no-filter`; or clone without --filter.",
        )
    return StalledError(f"{repository} lacks objects", reason="CommitNotFound", remedy="Ask `git fsck`; clone it anew.")


def _laid_out(
    source: pygit2.Repository,
    folder: Path,
    path: str,
    head: str | None,
    commits: tuple[pygit2.Commit, pygit2.Commit, pygit2.Commit],
    repository: pygit2.Repository,
) -> Pair:
    left, ours, tip = commits
    names = _place(source, folder, path, [ours, left] if head is not None else [])

    def known(commit: pygit2.Commit) -> pygit2.Oid:
        return commit.id if not source.is_shallow else copied(repository, commit, [])

    start = known(left)
    if head is not None:
        changed = copied(repository, ours, [start])
    else:
        tree = _files(repository, folder / path, names, [left, tip])
        changed = repository.create_commit(None, AUTHOR, AUTHOR, "working tree", tree, [start])
    old, new = start, changed
    conflicts: tuple[str, ...] = ()
    if tip.id != left.id:
        trees = [_folder(repository, each, names) for each in (left.id, tip.id, changed)]
        merged, conflicts = _merged(repository, trees)
        if merged is not None:
            old, tree = known(tip), rooted(repository, merged, names)
            new = repository.create_commit(None, AUTHOR, AUTHOR, "merged", tree, [old, changed])
    repository.references.create(REFERENCE, new)
    return Pair(
        left=str(start),
        changed=str(changed),
        old=str(old),
        new=str(new),
        base=str(left.id),
        head=str(ours.id) if head is not None else None,
        tip=str(tip.id) if old != start else None,
        path="/".join(names),
        conflicts=conflicts,
        whole=not source.is_shallow,
        partial=is_partial(source),
    )


def _meeting(
    source: pygit2.Repository, ours: pygit2.Commit, tip: pygit2.Commit, said: tuple[str, str]
) -> pygit2.Commit:
    try:
        found = source.merge_base(tip.id, ours.id)
    except pygit2.GitError:  # a parent that is not there
        found = None
    if found is not None:
        return source[found].peel(pygit2.Commit)
    remedy = f"Compare commits of one history: {said[0]!r} and {said[1]!r} share none."
    if source.is_shallow:
        remedy = WHOLE_HISTORY
    raise StalledError("there is no commit that both come from", reason="CommitNotFound", remedy=remedy)


def _place(source: pygit2.Repository, folder: Path, path: str, commits: list[pygit2.Commit]) -> tuple[str, ...]:
    """The folder of the policies, from the repository's root."""
    names = tuple(path.split("/"))
    try:
        below = folder.resolve().relative_to(Path(source.workdir or "").resolve()).parts if source.workdir else ()
    except ValueError:
        below = ()
    there = any(subfolder(source, commit.tree_id, (*below, *names)) is not None for commit in commits)
    if commits and not there and any(subfolder(source, commit.tree_id, names) is not None for commit in commits):
        return names
    return (*below, *names)


def _files(
    repository: pygit2.Repository, start: Path, names: tuple[str, ...], others: list[pygit2.Commit]
) -> pygit2.Oid:
    """The files as a tree; an empty one where there is no folder any more."""
    if start.is_dir():
        return rooted(repository, files_in(repository, start), names)
    if all(subfolder(repository, commit.tree_id, names) is None for commit in others):
        raise no_folder(start)
    return _nothing(repository)


def _folder(repository: pygit2.Repository, commit: pygit2.Oid, names: tuple[str, ...]) -> pygit2.Oid:
    return subfolder(repository, repository[commit].peel(pygit2.Commit).tree_id, names) or _nothing(repository)


def _nothing(repository: pygit2.Repository) -> pygit2.Oid:
    return repository.TreeBuilder().write()


def _merged(repository: pygit2.Repository, trees: list[pygit2.Oid]) -> tuple[pygit2.Oid | None, tuple[str, ...]]:
    """The folder of the policies as a merge would leave it, or what is in conflict. Beyond it nothing counts here."""
    ancestor, ours, theirs = trees
    index = repository.merge_trees(ancestor, ours, theirs)
    if index.conflicts is None:
        return index.write_tree(repository), ()
    names = {entry.path for sides in index.conflicts for entry in sides if entry is not None}
    return None, tuple(sorted(names))
