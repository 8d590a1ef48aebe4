"""A mirror as a repository of its own: what a lost remote is restored from."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from fixtures.git import SEED, Remote

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.export import Exported, export
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import Content, project_policy
from reconciler.core.ports import Edit, Identity, PushResult

ALPHA = "policies/projects/alpha/rego.rego"


def out(mirror: Path, into: Path, *, branch: str = "main", commit: str | None = None) -> Exported:
    return export(mirror, into, branch=branch, path="policies", commit=commit, say=lambda _: None)


def git(repository: Path, *words: str) -> str:
    done = subprocess.run(["git", f"--git-dir={repository}", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "file").write_text("mine")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Where the `source` fixture has its mirror."""
    return tmp_path / "mirror.git"


async def test_the_whole_branch_is_there_and_needs_the_mirror_no_more(
    remote: Remote, source: GitSource, mirror: Path, tmp_path: Path
) -> None:
    head = remote.commit({ALPHA: b"package projects.alpha\n"})
    await source.fetch()
    done = out(mirror, tmp_path / "out.git")
    assert (done.head.commit, done.commits, done.policies) == (head, 2, 3)
    await asyncio.to_thread(mirror.rename, tmp_path / "gone")
    assert git(tmp_path / "out.git", "fsck", "--full", "--strict") == ""
    assert git(tmp_path / "out.git", "rev-parse", "main") == head
    assert git(tmp_path / "out.git", "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(tmp_path / "out.git", "show", f"main:{ALPHA}") == "package projects.alpha"


async def test_the_folder_may_be_named_from_where_one_stands(
    source: GitSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git runs in a folder of its own; a person typed `policies.git`, and got "not a git repository"."""
    await source.fetch()
    monkeypatch.chdir(tmp_path)
    assert out(Path("mirror.git"), Path("policies.git")).commits == 1
    assert git(tmp_path / "policies.git", "fsck", "--full") == ""


async def test_a_push_that_no_fetch_has_seen_yet_is_in_it(source: GitSource, mirror: Path, tmp_path: Path) -> None:
    base = await source.fetch()
    edit = Edit(project_policy("new"), Content(b"package projects.new\n"), Identity("Ann", "ann@example.org"), "New")
    (tip,) = await source.commit(base, [edit])
    assert out(mirror, tmp_path / "before.git").head.commit == base, "what was not accepted is no head"
    assert (await source.push(base, tip)).result is PushResult.ACCEPTED
    assert out(mirror, tmp_path / "after.git").head.commit == tip


async def test_a_commit_that_a_force_push_has_lost_is_brought_back(
    remote: Remote, source: GitSource, mirror: Path, tmp_path: Path
) -> None:
    lost = remote.commit({ALPHA: b"package projects.alpha\n"})
    await source.fetch()
    new = remote.commit(SEED, on="")
    await source.fetch()
    assert out(mirror, tmp_path / "new.git").head.commit == new
    assert out(mirror, tmp_path / "lost.git", commit=lost[:10]).head.commit == lost


async def test_nothing_is_written_over_and_what_is_wrong_is_named(
    source: GitSource, mirror: Path, tmp_path: Path
) -> None:
    await source.fetch()
    await asyncio.to_thread(fill, tmp_path / "full")
    with pytest.raises(StalledError, match="is there already"):
        out(mirror, tmp_path / "full")
    with pytest.raises(StalledError, match="no mirror"):
        out(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(StalledError, match="no commit abcdef"):
        out(mirror, tmp_path / "out", commit="abcdef")
    with pytest.raises(StalledError, match="branch name"):
        out(mirror, tmp_path / "out", branch="no..branch")
    await asyncio.to_thread((tmp_path / "empty").mkdir)
    assert out(mirror, tmp_path / "empty").commits == 1
    assert sorted(names(tmp_path)) == ["empty", "full", "mirror.git", "remote.git"]


async def test_a_damaged_mirror_is_refused(remote: Remote, source: GitSource, mirror: Path, tmp_path: Path) -> None:
    remote.commit({"policies/projects/big/rego.rego": b"package projects.big\n" + b"#" * 5000})
    await source.fetch()
    damage(mirror)
    with pytest.raises((StalledError, TransientError)):
        out(mirror, tmp_path / "out.git")
    assert sorted(names(tmp_path)) == ["mirror.git", "remote.git"]


def damage(mirror: Path) -> None:
    """Flip a byte in every pack, cut every loose object."""
    for pack in mirror.glob("objects/pack/*.pack"):
        raw = bytearray(pack.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        pack.chmod(0o644)
        pack.write_bytes(raw)
    for loose in mirror.glob("objects/??/*"):
        loose.chmod(0o644)
        loose.write_bytes(loose.read_bytes()[:-5])


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]
