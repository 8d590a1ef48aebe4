from pathlib import Path

import pytest

from reconciler.agent.bundle import Bundle
from reconciler.agent.disk import Disk, Saved
from reconciler.agent.scope import ALL, Scope

SAVED = Saved(Bundle('"e"', "1" * 40, b"\x1f\x8b\n\x00bytes\n"), "2" * 40, (1, 7), Scope.of_projects(["a"]), "digest")


def test_what_was_saved_is_loaded_after_a_restart(tmp_path: Path) -> None:
    Disk(tmp_path / "new" / "folder").save(SAVED)
    assert Disk(tmp_path / "new" / "folder").load() == SAVED


def test_the_last_one_replaces_the_former(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.save(SAVED)
    newer = Saved(Bundle('"f"', "none", b""), "none", None, ALL)
    disk.save(newer)
    assert disk.load() == newer
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_without_a_copy_there_is_nothing(tmp_path: Path) -> None:
    assert Disk(tmp_path / "missing").load() is None


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_damaged_copy_is_refused(tmp_path: Path, keep: int) -> None:
    Disk(tmp_path).save(SAVED)
    whole = (tmp_path / "bundle").read_bytes()
    (tmp_path / "bundle").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"."):
        Disk(tmp_path).load()


def test_a_write_that_was_cut_off_leaves_the_former_copy(tmp_path: Path) -> None:
    Disk(tmp_path).save(SAVED)
    (tmp_path / "bundle.tmp").write_bytes(b"half")
    assert Disk(tmp_path).load() == SAVED
