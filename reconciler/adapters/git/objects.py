"""Git's objects through pygit2: one thread, one open repository, damage noticed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import pygit2
from pygit2.enums import ObjectType

from reconciler.adapters.git.failures import MirrorDamagedError, disk_failure
from reconciler.core.errors import COMMIT_NOT_FOUND, TransientError

T = TypeVar("T")

Entry = tuple[bytes, bytes, bytes]
"""Mode (octal digits), name and 20-byte id of one tree entry."""

FOLDER: Final = b"40000"

_ENTRY: Final = re.compile(rb"0*([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
_OBJECT_ID: Final = re.compile(r"[0-9a-f]{40}")
_READ_TIMEOUT: Final = 60.0
_SLICE: Final = 0.05
_BLAME_AGAIN: Final = 600.0
_BLAMED_LIMIT: Final = 256


class CommitNotFoundError(TransientError):
    """The mirror does not have this commit (yet)."""

    def __init__(self, commit: str) -> None:
        super().__init__(f"The mirror has no commit {commit[:80]!r}", reason=COMMIT_NOT_FOUND)


class Objects:
    """The mirror's objects. pygit2's repository is not thread-safe, so that everything runs in one thread of its own.

    ``damaged`` is set once an object that must be there is missing or unreadable. The same complaint sets it only once
    in ten minutes: an object that a fresh clone does not bring back was asked for in error, and no cause to clone on.
    """

    def __init__(self, path: Path) -> None:
        self.damaged = False
        self._closed = False
        self._path = path
        self._repository: pygit2.Repository | None = None
        self._blamed: dict[str, float] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="git-objects")

    async def run(self, read: Callable[[pygit2.Repository], T]) -> T:
        """Call ``read`` in the thread. Raises `MirrorDamagedError` for what pygit2 cannot read.

        A read that fails is made again with the repository opened anew: git may have rearranged its packs meanwhile.
        """
        try:
            return await self._submit(lambda: self._read(read))
        except MirrorDamagedError:
            return await self._submit(lambda: self._read(read, blame=True))

    async def walk(self, steps: Callable[[pygit2.Repository], Generator[None, None, T]]) -> T:
        """Run a long walk to its end, in slices of 50 ms, so that other reads get their turn. Repeated like `run`."""
        try:
            return await self._walk(steps)
        except MirrorDamagedError:
            return await self._walk(steps, blame=True)

    async def files(self, change: Callable[[], T]) -> T:
        """Call ``change``, which handles the mirror's files, in the same thread: nothing reads meanwhile."""
        return await self._submit(lambda: self._handle(change))

    async def replace(self, change: Callable[[], None]) -> None:
        """Call ``change``, which replaces the mirror, with the repository closed."""

        def closed() -> None:
            self._close()
            change()
            self.damaged = False

        await self.files(closed)

    async def refresh(self) -> None:
        """Open the repository anew for the next read. libgit2 keeps every pack open that it has seen, also one that git
        has replaced since; a walk under way finds it open again."""
        await self._submit(self._close)

    async def aclose(self) -> None:
        """Let the current read end, close the repository and the thread. May be called again."""
        if not self._closed:
            await self._submit(self._close)
            self._closed = True
            await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def _walk(self, steps: Callable[[pygit2.Repository], Generator[None, None, T]], *, blame: bool = False) -> T:
        walk = await self._submit(lambda: self._read(steps))
        while not (end := await self._submit(lambda: self._read(lambda _repository: _advance(walk), blame=blame))):
            pass
        return end[0]

    async def _submit(self, job: Callable[[], T]) -> T:
        if self._closed:
            raise TransientError(f"The mirror {self._path} is closed", reason="FetchFailed")
        try:
            async with asyncio.timeout(_READ_TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._thread, job)
        except TimeoutError as error:
            raise TransientError(
                f"Reading the mirror took longer than {_READ_TIMEOUT:g} s",
                reason="FetchTimeout",
                remedy="Look at the disk below git.mirror.",
            ) from error

    def _handle(self, change: Callable[[], T]) -> T:
        try:
            return change()
        except OSError as error:
            raise disk_failure(error, str(self._path)) from error

    def _read(self, read: Callable[[pygit2.Repository], T], *, blame: bool = False) -> T:
        try:
            if self._repository is None:
                self._repository = pygit2.Repository(str(self._path))
            return read(self._repository)
        except (KeyError, OSError, pygit2.GitError) as error:
            self._close()
            if blame:
                self._blame(str(error))
            raise MirrorDamagedError(f"The mirror {self._path} cannot be read: {error}") from error

    def _blame(self, complaint: str) -> None:
        now = time.monotonic()
        if now - self._blamed.get(complaint, -_BLAME_AGAIN) < _BLAME_AGAIN:
            return
        if len(self._blamed) >= _BLAMED_LIMIT:
            self._blamed.clear()
        self._blamed[complaint] = now
        self.damaged = True

    def _close(self) -> None:
        if self._repository is not None:
            self._repository.free()
            self._repository = None


def entries_of(repository: pygit2.Repository, tree: pygit2.Oid) -> list[Entry]:
    """The raw entries of one tree: names as the bytes that they are, exact modes, nothing else opened.

    Some ten times faster than pygit2's tree objects, which make an object for every entry.
    """
    return entries_in(raw_tree(repository, tree.raw))


def raw_tree(repository: pygit2.Repository, tree: bytes) -> bytes:
    """The bytes of the tree with this 20-byte id."""
    kind, raw = repository.odb.read(pygit2.Oid(raw=tree))
    if kind != ObjectType.TREE:
        raise KeyError(f"{tree.hex()} is no tree")
    return raw


def entries_in(raw: bytes) -> list[Entry]:
    """The entries in a raw tree."""
    return _ENTRY.findall(raw)


def commit_of(repository: pygit2.Repository, commit: str) -> pygit2.Commit:
    """The commit with this full id; `CommitNotFoundError` when there is none."""
    found = repository.get(pygit2.Oid(hex=commit)) if _OBJECT_ID.fullmatch(commit) else None
    if not isinstance(found, pygit2.Commit):
        raise CommitNotFoundError(commit)
    return found


def _advance(walk: Generator[None, None, T]) -> tuple[T] | None:
    """Go on for one slice; the result in a tuple once there is one."""
    until = time.monotonic() + _SLICE
    while time.monotonic() < until:
        try:
            next(walk)
        except StopIteration as end:
            return (end.value,)
    return None
