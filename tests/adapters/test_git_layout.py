"""Odd layouts that only the real Git can hold, and the incremental reading of large ones."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pygit2
import pytest
from fixtures.git import SEED, File, Remote, Special, executable, link, submodule

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.tree import Layout
from reconciler.core.model import PLATFORM, Content, Tree, project_policy

ALPHA = project_policy("alpha")
SEEDED = {PLATFORM, ALPHA, project_policy("beta")}


async def _tree(source: GitSource, remote: Remote, files: Mapping[str, File] | Mapping[bytes, File]) -> Tree:
    head = remote.commit(files)
    await source.fetch()
    return await source.tree(head)


@pytest.mark.parametrize(
    ("path", "file", "kind"),
    [
        ("policies/projects/alpha/rego.rego", link("../beta/rego.rego"), "a symbolic link"),
        ("policies/projects/alpha/data.json", link("/etc/passwd"), "a symbolic link"),
        ("policies/projects/alpha/rego.rego", submodule(), "a submodule"),
        ("policies/projects/alpha/data.json", submodule(), "a submodule"),
        ("policies/projects/alpha/data.json/x", b"{}", "a folder"),
        ("policies/projects/alpha/rego.rego/x", b"", "a folder"),
        ("policies/projects/alpha/rego.rego", Special(b"100664", b"package projects.alpha\n"), "a file of mode 100664"),
        ("policies/projects/alpha", link("beta"), "a symbolic link"),
        ("policies/projects/alpha", submodule(), "a submodule"),
        ("policies/projects/alpha", b"a file", "a file"),
        ("policies/platform", link("projects/beta"), "a symbolic link"),
        ("policies/platform/rego.rego", link("x"), "a symbolic link"),
        ("policies/projects", link("elsewhere"), "a symbolic link"),
    ],
)
async def test_what_is_no_plain_file_makes_its_policy_invalid_and_no_other(
    remote: Remote, source: GitSource, path: str, file: File, kind: str
) -> None:
    tree = await _tree(source, remote, {path: file})
    place = "/".join(path.split("/")[1:4])
    [(policy, errors)] = tree.invalid.items()
    assert place.startswith(policy)
    assert errors[0].file == place
    assert kind in errors[0].message
    assert set(tree.policies) == {name for name in SEEDED if not name.startswith(policy)}


async def test_both_bad_files_of_a_policy_are_named(remote: Remote, source: GitSource) -> None:
    tree = await _tree(
        source,
        remote,
        {"policies/projects/alpha/rego.rego": submodule(), "policies/projects/alpha/data.json": link("x")},
    )
    assert [error.file for error in tree.invalid[ALPHA]] == [
        "projects/alpha/data.json",
        "projects/alpha/rego.rego",
    ]


async def test_an_executable_file_is_a_plain_file(remote: Remote, source: GitSource) -> None:
    tree = await _tree(source, remote, {"policies/projects/alpha/rego.rego": executable(b"package projects.alpha\n")})
    assert ALPHA in tree.policies


async def test_making_a_file_executable_changes_no_policy(remote: Remote, source: GitSource) -> None:
    seed = remote.head
    rego = "policies/projects/alpha/rego.rego"
    tree = await _tree(source, remote, {rego: executable(SEED[rego])})
    assert tree.policies == (await source.tree(seed)).policies
    assert (await source.last_change(tree.commit, ALPHA)).commit == seed


async def test_links_and_submodules_elsewhere_are_reported_only(remote: Remote, source: GitSource) -> None:
    files: dict[str, File] = {
        "policies/projects/alpha/shared": link("../beta"),
        "policies/projects/alpha/vendor": submodule(),
        "policies/projects/Notes.txt": b"",
        "policies/projects/README.md": b"",
        "policies/projects/.keep": b"",
        "policies/projects/.hidden/rego.rego": b"",
        "policies/Library": submodule(),
    }
    tree = await _tree(source, remote, files)
    assert tree.ignored == ("Library", "projects/Notes.txt", "projects/alpha/shared", "projects/alpha/vendor")
    assert not tree.invalid


async def test_a_name_that_is_no_utf_8_is_shown_with_its_bytes(remote: Remote, source: GitSource) -> None:
    tree = await _tree(
        source, remote, {b"policies/projects/caf\xe9/rego.rego": b"", b"policies/projects/alpha/\xff.txt": b""}
    )
    assert list(tree.invalid) == ["projects/caf\\xe9"]
    assert tree.ignored == ("projects/alpha/\\xff.txt",)


async def test_without_a_platform_folder_there_is_no_platform_policy(remote: Remote, source: GitSource) -> None:
    tree = await _tree(source, remote, {"policies/platform": None})
    assert PLATFORM not in tree.policies
    assert not tree.invalid


async def test_a_link_in_place_of_the_policies_folder_is_not_found(remote: Remote, source: GitSource) -> None:
    assert not (await _tree(source, remote, {"policies": link("elsewhere")})).found


async def test_bytes_are_passed_on_as_git_has_them(remote: Remote, source: GitSource) -> None:
    """Line ends, byte order marks and the pointers of Git LFS: no filter and no attribute takes part."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    rego = b"\xef\xbb\xbfpackage projects.alpha\r\n\x00\r\n"
    tree = await _tree(
        source,
        remote,
        {
            ".gitattributes": b"* text=auto eol=lf\n*.json filter=lfs\n",
            "policies/projects/alpha/rego.rego": rego,
            "policies/projects/alpha/data.json": pointer,
        },
    )
    assert await source.read(tree.policies[ALPHA]) == Content(rego, pointer)


async def test_two_thousand_policies_are_all_there(remote: Remote, source: GitSource) -> None:
    many: dict[str, File] = {
        f"policies/projects/p{n:04}/rego.rego": b"package projects.p%04d\n" % n for n in range(2000)
    }
    tree = await _tree(source, remote, many)
    assert len(tree.policies) == 2003
    changed = await _tree(source, remote, {"policies/projects/p1234/rego.rego": b"package projects.p1234 # new\n"})
    different = {policy for policy, blobs in changed.policies.items() if tree.policies[policy] != blobs}
    assert different == {project_policy("p1234")}


def test_a_tree_read_after_others_equals_the_same_tree_read_alone(remote: Remote) -> None:
    """Reading reuses what earlier commits said; nothing of them may shine through, in whatever order they come."""
    rng = random.Random(7)
    files: tuple[File, ...] = (b"1", b"2", link("x"), submodule(), None)
    places = [f"policies/projects/{name}" for name in ("a", "b", "Bad", "d/rego.rego", "e/rego.rego", "e/x", "f/sub/y")]
    places += ["policies/platform/rego.rego", "policies/platform/data.json", "policies/projects/d/data.json"]
    commits = [remote.commit({rng.choice(places): rng.choice(files)}) for _ in range(60)]
    repository = pygit2.Repository(str(remote.path))
    shared = Layout("policies")
    for commit in [*commits, *rng.choices(commits, k=60)]:
        assert shared.read(repository, commit) == Layout("policies").read(repository, commit)


@pytest.mark.parametrize("path", ["policies", "policies/", "deep/in/here"])
def test_the_policies_folder_may_lie_anywhere(remote: Remote, path: str) -> None:
    head = remote.commit({f"deep/in/here/{name.removeprefix('policies/')}": content for name, content in SEED.items()})
    repository = pygit2.Repository(str(remote.path))
    assert set(Layout(path).read(repository, head).policies) == SEEDED


async def test_a_file_in_the_place_of_all_projects_is_a_change_of_each(tmp_path: Path) -> None:
    """And so is its end: no version of a project is lost or made up by it."""
    remote = Remote(tmp_path / "remote.git")
    remote.commit(SEED)
    away = remote.commit({"policies/projects": None})
    file = remote.commit({"policies/projects": b"oops"})
    other = remote.commit({"policies/projects": b"again"})
    back = remote.commit({"policies/projects": None, **SEED})
    straight = remote.commit({"policies/projects": link("nowhere")})
    source = GitSource(remote=remote.url, mirror=tmp_path / "mirror.git")
    await source.fetch()
    found = await source.branch_commits([away, file, other, back, straight])
    told = [{name: change.deleted for name, change in found[c].changes.items()} for c in (away, file, other, back)]
    both = ["projects/alpha", "projects/beta"]
    assert told == [dict.fromkeys(both, True), {}, {}, dict.fromkeys(both, False)]
    assert {name: change.fault != "" for name, change in found[straight].changes.items()} == dict.fromkeys(both, True)
    assert (await source.branch_commits([straight], project_policy("beta")))[straight].changes.keys() == {
        "projects/beta"
    }
    await source.aclose()
