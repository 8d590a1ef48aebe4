"""A mirror that was damaged, locked, half written or is in the way is put right by the next fetch, unasked."""

from __future__ import annotations

import asyncio
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.git import SEED, Remote

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.folder import MirrorFolder
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.model import Content, project_policy

ALPHA = project_policy("alpha")
REGO = "policies/projects/alpha/rego.rego"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror.git"


@pytest.fixture
async def restart(remote: Remote, mirror: Path) -> AsyncIterator[Callable[[], GitSource]]:
    """Sources over the same mirror, as if the process had been started anew."""
    opened: list[GitSource] = []

    def make() -> GitSource:
        opened.append(GitSource(remote=remote.url, mirror=mirror))
        return opened[-1]

    yield make
    for source in opened:
        await source.aclose()


def _packed(mirror: Path) -> None:
    subprocess.run(["git", f"--git-dir={mirror}", "repack", "-adq"], check=True)


def _unpack(mirror: Path) -> None:
    """Let every object lie in a file of its own."""
    pack = _pack(mirror)
    content = pack.read_bytes()
    for file in pack.parent.iterdir():
        file.unlink()
    subprocess.run(["git", f"--git-dir={mirror}", "unpack-objects", "-q"], input=content, check=True)


def _files(mirror: Path, pattern: str) -> list[Path]:
    return list(mirror.glob(pattern))


def _flip(file: Path, *places: int) -> None:
    content = bytearray(file.read_bytes())
    for place in places:
        content[place] ^= 0xFF
    file.chmod(0o644)
    file.write_bytes(content)


def _pack(mirror: Path, kind: str = "pack") -> Path:
    _packed(mirror)
    [pack] = (mirror / "objects/pack").glob(f"*.{kind}")
    return pack


def _no_objects(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects")
    (mirror / "objects").mkdir()


def _empty_objects(mirror: Path) -> None:
    _unpack(mirror)
    for loose in mirror.glob("objects/??/*"):
        loose.chmod(0o644)
        loose.write_bytes(b"")


def _flipped_loose(mirror: Path) -> None:
    _unpack(mirror)
    for loose in mirror.glob("objects/??/*"):
        _flip(loose, -1)


def _flipped_pack(mirror: Path) -> None:
    pack = _pack(mirror)
    _flip(pack, *range(20, pack.stat().st_size - 20, 7))


def _truncated_pack(mirror: Path) -> None:
    pack = _pack(mirror)
    content = pack.read_bytes()
    pack.unlink()
    pack.write_bytes(content[: len(content) // 2])


def _folder_for_ref(mirror: Path) -> None:
    (mirror / "refs/regops/head").unlink()
    (mirror / "refs/regops/head/x").mkdir(parents=True)


def _file_for_mirror(mirror: Path) -> None:
    shutil.rmtree(mirror)
    mirror.write_text("?")


def _overwritten(file: str, content: bytes) -> Callable[[Path], None]:
    def overwrite(mirror: Path) -> None:
        (mirror / file).write_bytes(content)

    return overwrite


def _deleted(file: str) -> Callable[[Path], None]:
    def delete(mirror: Path) -> None:
        (mirror / file).unlink()

    return delete


DAMAGE: dict[str, Callable[[Path], None]] = {
    "all objects deleted": _no_objects,
    "objects emptied": _empty_objects,
    "loose objects flipped": _flipped_loose,
    "pack flipped": _flipped_pack,
    "pack truncated": _truncated_pack,
    "pack deleted": lambda mirror: _pack(mirror).unlink(),
    "index of the pack deleted": lambda mirror: _pack(mirror, "idx").unlink(),
    "index of the pack flipped": lambda mirror: _flip(_pack(mirror, "idx"), *range(8, 1000, 5)),
    "HEAD deleted": _deleted("HEAD"),
    "HEAD garbage": _overwritten("HEAD", b"\0\xff"),
    "config garbage": _overwritten("config", b"[core\n\0"),
    "config of the future": _overwritten("config", b"[core]\n\trepositoryformatversion = 9\n"),
    "ref garbage": _overwritten("refs/regops/head", b"garbage\n"),
    "ref to nothing": _overwritten("refs/regops/head", b"1" * 40 + b"\n"),
    "ref deleted": _deleted("refs/regops/head"),
    "ref is a folder": _folder_for_ref,
    "refs deleted": lambda mirror: shutil.rmtree(mirror / "refs"),
    "marker deleted": _deleted("regops-remote"),
    "whole mirror deleted": shutil.rmtree,
    "a file in its place": _file_for_mirror,
}


@pytest.mark.parametrize("again", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_mirror_is_cloned_again(
    remote: Remote, mirror: Path, restart: Callable[[], GitSource], damage: str, *, again: bool
) -> None:
    """At once where the fetch notices it, otherwise by the first fetch after a read that did."""
    source = restart()
    head = await source.fetch()
    tree = await source.tree(head)
    DAMAGE[damage](mirror)
    if again:
        source = restart()
    assert await source.fetch() == head
    try:
        assert await source.read(tree.policies[ALPHA]) == Content(SEED[REGO], b'{"owners": ["ann"]}\n')
    except TransientError:
        assert await source.fetch() == head
    assert await source.tree(head) == tree
    assert await source.read(tree.policies[ALPHA]) == Content(SEED[REGO], b'{"owners": ["ann"]}\n')
    assert await source.height(head) == 1
    later = remote.commit({REGO: b"package projects.alpha\n"})
    assert await source.fetch() == later


async def test_one_missing_object_is_noticed_by_the_read_and_healed_by_the_next_fetch(
    remote: Remote, mirror: Path, restart: Callable[[], GitSource]
) -> None:
    """A fetch that brings nothing looks at refs and commits only, so that the hole shows when somebody reads."""
    await restart().fetch()
    blobs = Content(SEED[REGO], SEED["policies/projects/alpha/data.json"]).blob_ids()
    _unpack(mirror)
    (mirror / "objects" / blobs.rego[:2] / blobs.rego[2:]).unlink()
    source = restart()
    await source.fetch()
    with pytest.raises(TransientError) as damaged:
        await source.read(blobs)
    assert "cloned again" in damaged.value.remedy
    assert await source.fetch() == remote.head
    assert (await source.read(blobs)).rego == SEED[REGO]


async def test_an_object_that_never_was_costs_one_clone_and_not_one_for_each_question(
    mirror: Path, source: GitSource
) -> None:
    await source.fetch()
    made = []
    for _ in range(3):
        with pytest.raises(TransientError):
            await source.read(Content(b"never committed").blob_ids())
        await source.fetch()
        made.append((mirror / "regops-remote").stat().st_ino)
    assert made[1] == made[2]


async def test_a_damaged_mirror_stays_while_the_remote_is_away(remote: Remote, mirror: Path, source: GitSource) -> None:
    """What can still be read is worth more than an empty folder."""
    head = await source.fetch()
    tree = await source.tree(head)
    (mirror / "refs/regops/head").write_text("garbage\n")
    away = remote.path.rename(remote.path.with_name("away"))
    with pytest.raises(Exception, match=r"no such repository|cannot|failed"):
        await source.fetch()
    assert (await source.read(tree.policies[ALPHA])).rego == SEED[REGO]
    away.rename(remote.path)
    assert await source.fetch() == head


@pytest.mark.parametrize(
    "lock", ["refs/regops/head.lock", "packed-refs.lock", "HEAD.lock", "config.lock", "shallow.lock"]
)
async def test_a_stale_lock_is_swept(remote: Remote, mirror: Path, restart: Callable[[], GitSource], lock: str) -> None:
    await restart().fetch()
    (mirror / lock).touch()
    head = remote.commit({REGO: b"package projects.alpha\n"})
    source = restart()
    assert await source.fetch() == head
    assert not (mirror / lock).exists()
    (mirror / "refs/regops/head.lock").touch()
    assert await source.fetch() == head
    head = remote.commit({REGO: b"package projects.alpha # 2\n"})
    assert await source.fetch() == head


async def test_what_a_killed_git_left_half_written_is_swept_at_the_start(
    mirror: Path, restart: Callable[[], GitSource]
) -> None:
    await restart().fetch()
    leftovers = [
        mirror / "objects/pack/tmp_pack_a1b2c3",
        mirror / "objects/pack/tmp_idx_a1b2c3",
        mirror / "objects/17/tmp_obj_x",
        mirror.with_name("mirror.git.new") / "half",
        mirror.with_name("mirror.git.old") / "half",
    ]
    for leftover in leftovers:
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_bytes(b"half")
    await restart().fetch()
    assert not [leftover for leftover in leftovers if leftover.exists()]


@contextmanager
def _small_files(limit: int) -> Iterator[None]:
    """Files of at most so many bytes: the nearest thing to a full disk that needs no disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("first", [True, False], ids=["clone", "update"])
async def test_no_room_is_said_and_passes(remote: Remote, mirror: Path, source: GitSource, *, first: bool) -> None:
    if not first:
        await source.fetch()
    noise = b"".join(hex(n * 7919 % 1_000_003).encode() for n in range(60_000))
    head = remote.commit({"policies/projects/alpha/data.json": noise})
    with _small_files(20_000), pytest.raises(TransientError) as full:
        await source.fetch()
    assert full.value.reason == "DiskFull"
    assert not _files(mirror.parent, "mirror.git*/objects/pack/tmp_*")
    assert await source.fetch() == head


async def test_many_small_fetches_leave_few_files(remote: Remote, mirror: Path, source: GitSource) -> None:
    source._folder = MirrorFolder(mirror, remote.url, pack_limit=4)
    first = await source.fetch()
    for n in range(12):
        lost = remote.commit({REGO: b"package projects.alpha # %d\n" % n})
        await source.fetch()
    remote.force_push(first)
    remote.commit({REGO: b"package projects.alpha\n"})
    for n in range(12):
        remote.commit({REGO: b"package projects.alpha # new %d\n" % n})
        head = await source.fetch()
    assert len(_files(mirror, "objects/pack/*.pack")) <= 5
    assert await source.height(head) == 14
    assert await source.contains(lost, first)


async def test_many_readers_and_fetches_at_once_get_on(remote: Remote, source: GitSource) -> None:
    head = await source.fetch()
    tree = await source.tree(head)

    async def read() -> None:
        for _ in range(20):
            assert (await source.read(tree.policies[ALPHA])).rego == SEED[REGO]
            assert (await source.last_change(head, ALPHA)).commit == head
            assert await source.height(head) == 1

    async def fetch() -> None:
        for n in range(5):
            remote.commit({REGO: b"package projects.alpha # %d\n" % n})
            await source.fetch()

    await asyncio.gather(read(), read(), fetch(), fetch())
    assert await source.fetch() == remote.head
    assert await source.height(remote.head) == 11


class _Counted(GitSource):
    """Counts what is really fetched; each time takes a moment."""

    fetches = 0

    async def _bring(self, *, told: bool) -> str:
        self.fetches += 1
        await asyncio.sleep(0.05)
        return await super()._bring(told=told)


async def test_however_many_ask_at_once_each_waits_for_two_fetches_at_most(remote: Remote, mirror: Path) -> None:
    """Each made a fetch of its own, one after the other: readers of `?ref=head` kept every writer waiting."""
    source = _Counted(remote=remote.url, mirror=mirror)
    try:
        first = asyncio.ensure_future(source.fetch())
        await asyncio.sleep(0.02)
        head = remote.commit({REGO: b"package projects.alpha # newer\n"})
        assert await asyncio.gather(*(source.fetch() for _ in range(50))) == [head] * 50
        assert await first in {head, remote.head}
        assert source.fetches == 2
    finally:
        await source.aclose()


async def test_a_failure_is_shared_too_and_is_not_kept(remote: Remote, mirror: Path, tmp_path: Path) -> None:
    """A remote that hangs let the last of many callers wait for all their time-outs, one after the other."""
    source = _Counted(remote=remote.url, mirror=mirror)
    try:
        head = await source.fetch()
        remote.path.rename(tmp_path / "away")
        asked = [asyncio.ensure_future(source.fetch()) for _ in range(20)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(outcome, RegopsError) for outcome in outcomes)
        assert source.fetches == 3
        (tmp_path / "away").rename(remote.path)
        assert await source.fetch() == head
    finally:
        await source.aclose()
