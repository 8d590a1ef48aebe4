"""What is written into the mirror as one pack is what git reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pygit2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pygit2.enums import ObjectType

from reconciler.adapters.git.packing import NewObjects

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in {b".", b".."} and b"git" not in name.lower()
)
"""Names that git takes: `fsck --strict` refuses `.git` in all its spellings, and looks into `.gitmodules`."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pygit2.Repository:
    return pygit2.init_repository(str(tmp_path_factory.mktemp("packs")), bare=True)


def git(repository: pygit2.Repository, *words: str) -> str:
    done = subprocess.run(["git", "-C", repository.path, *words], capture_output=True, text=True, check=True)
    return done.stdout


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=5),
    st.dictionaries(NAMES, st.sampled_from([b"100644", b"100755", b"40000"]), max_size=8),
)
def test_git_finds_every_object_as_it_was_made(
    repository: pygit2.Repository, blobs: list[bytes], names: dict[bytes, bytes]
) -> None:
    objects = NewObjects(repository)
    made = {objects.blob(content): content for content in blobs}
    below = objects.tree([(b"100644", b"x", objects.blob(b"x"))])
    tree = objects.tree((mode, name, below if mode == b"40000" else objects.blob(name)) for name, mode in names.items())
    signed = b"A <a@b> 1 +0000"
    commit = objects.commit(b"tree %b\nauthor %b\ncommitter %b\n\nx\n" % (tree.hex().encode(), signed, signed))
    listed = sorted(objects.entries(tree))
    objects.write()
    found = pygit2.Repository(repository.path)
    assert {oid: found.odb.read(pygit2.Oid(raw=oid)) for oid in made} == {
        oid: (ObjectType.BLOB, content) for oid, content in made.items()
    }
    assert sorted(NewObjects(found).entries(tree)) == listed
    subprocess.run(["git", "-C", found.path, "fsck", "--strict", commit.hex()], check=True, capture_output=True)
    subprocess.run(["git", "-C", found.path, "rev-parse", f"{commit.hex()}^{{tree}}"], check=True, capture_output=True)


@pytest.mark.parametrize("size", [0, 15, 16, 127, 2047, 2048, 70_000, 3_000_000])
def test_any_size_is_kept(repository: pygit2.Repository, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    objects = NewObjects(repository)
    oid = objects.blob(content[:size])
    objects.write()
    assert git(repository, "cat-file", "-s", oid.hex()).strip() == str(size)
    assert pygit2.Repository(repository.path).odb.read(pygit2.Oid(raw=oid))[1] == content[:size]


def test_git_verifies_each_pack_and_nothing_unfinished_is_left(tmp_path: Path) -> None:
    repository = pygit2.init_repository(str(tmp_path), bare=True)
    objects = NewObjects(repository)
    objects.write()
    assert not list(tmp_path.glob("objects/pack/*"))
    objects.tree([(b"100644", b"a", objects.blob(b"a")), (b"100644", b"b", objects.blob(b"b"))])
    objects.write()
    (index,) = tmp_path.glob("objects/pack/*.idx")
    assert sorted(file.suffix for file in tmp_path.glob("objects/pack/*")) == [".idx", ".pack"]
    assert "ok" in git(repository, "verify-pack", "-v", str(index)).splitlines()[-1]
