"""A commit of the repository around a folder, as `regops check --commit` and `plan --commit` take it."""

import subprocess
from pathlib import Path

import pytest
from fixtures.git import Remote

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.worktree import commit_folder, commit_of
from reconciler.core.errors import StalledError


def _git(*words: str | Path) -> None:
    subprocess.run(["git", *words], check=True, capture_output=True)


async def _policies(folder: Path, scratch: Path) -> set[str]:
    commit_of(folder, "HEAD", scratch / "snapshot.git")
    source = GitSource(remote=str(scratch / "snapshot.git"), mirror=scratch / "mirror.git")
    try:
        tree = await source.tree(await source.fetch())
    finally:
        await source.aclose()
    return {str(name) for name in tree.policies}


SEEDED = {"platform", "projects/alpha", "projects/beta"}


async def test_a_commit_of_a_clone_is_taken(remote: Remote, tmp_path: Path) -> None:
    _git("clone", "-q", remote.url, tmp_path / "clone")
    assert await _policies(tmp_path / "clone" / "policies", tmp_path) == SEEDED


async def test_a_commit_of_a_linked_work_tree_is_taken(remote: Remote, tmp_path: Path) -> None:
    """`git worktree add` shares the objects of the first work tree; it ended in a traceback."""
    _git("clone", "-q", remote.url, tmp_path / "clone")
    _git("-C", tmp_path / "clone", "worktree", "add", "-q", tmp_path / "second")
    assert await _policies(tmp_path / "second", tmp_path) == SEEDED


async def test_the_commit_of_a_shallow_clone_is_taken_without_its_history(remote: Remote, tmp_path: Path) -> None:
    """Pull-request checks clone with depth 1, and git refuses to fetch from what lacks parents."""
    remote.commit({"README.md": b"more\n"})
    _git("clone", "-q", "--depth=1", remote.url, tmp_path / "clone")
    assert await _policies(tmp_path / "clone", tmp_path) == SEEDED


@pytest.mark.parametrize("revision", ["nowhere", "HEAD~5", "HEAD:policies"])
def test_what_is_no_commit_is_named(remote: Remote, tmp_path: Path, revision: str) -> None:
    _git("clone", "-q", remote.url, tmp_path / "clone")
    with pytest.raises(StalledError, match=f"'{revision}' is no commit of"):
        commit_of(tmp_path / "clone", revision, tmp_path / "snapshot.git")


def test_a_repository_in_another_object_format_is_named_as_such(tmp_path: Path) -> None:
    _git("init", "-q", "--object-format=sha256", tmp_path / "new")
    with pytest.raises(StalledError, match="not in SHA-1 format"):
        commit_of(tmp_path / "new", "HEAD", tmp_path / "snapshot.git")


def test_a_folder_outside_every_repository_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(StalledError, match="Leave --commit out"):
        commit_of(tmp_path, "HEAD", tmp_path / "snapshot.git")


async def test_a_folder_without_files_is_none_as_in_git(tmp_path: Path) -> None:
    """What a deleted policy leaves behind in a working tree was taken for a policy without its rego.rego."""
    (tmp_path / "files/policies/projects/gone").mkdir(parents=True)
    (tmp_path / "files/policies/platform").mkdir()
    (tmp_path / "files/policies/platform/rego.rego").write_text("package platform\n")
    commit = commit_folder(tmp_path / "files", "policies", tmp_path / "snapshot.git")
    source = GitSource(remote=str(tmp_path / "snapshot.git"), mirror=tmp_path / "mirror.git")
    try:
        await source.fetch()
        tree = await source.tree(commit)
    finally:
        await source.aclose()
    assert ({str(name) for name in tree.policies}, tree.invalid) == ({"platform"}, {})
