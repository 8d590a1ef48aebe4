"""The mirror's folder on disk: made whole or not at all, swept of what a killed git left, replaced by a fresh clone.

A mirror belongs to one process. It carries the digest of the remote that it mirrors (never the URL, which may hold
credentials); one of another remote counts as none.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import pygit2

_MARKER: Final = "regops-remote"
_SAMPLE: Final = "objects/17"
"""Object ids are evenly spread, so that one of 256 folders tells how many loose objects there are (as git-gc does)."""
_LOOSE_LIMIT: Final = 2048
_LEFTOVERS: Final = ("objects/pack/tmp_*", "objects/pack/.tmp-*", "objects/??/tmp_obj_*", "objects/tmp_objdir-*")
_LOCKS: Final = ("*.lock", "objects/*.lock", "objects/info/*.lock")


class MirrorFolder:
    """Where one remote's objects are kept. All methods block, and all may raise `OSError`.

    Above ``pack_limit`` packs (every fetch brings one), or so many loose objects that reading slows down,
    `needs_packing` says so.
    """

    def __init__(self, path: Path, remote: str, *, pack_limit: int = 32) -> None:
        self.path = path.absolute()
        self._key = hashlib.sha256(remote.encode()).hexdigest()
        self._pack_limit = pack_limit
        self._loose_kept = 0
        self._swept = False

    def usable(self) -> bool:
        """Whether there is a mirror of this remote; what an earlier process left half done is swept first."""
        try:
            marker = (self.path / _MARKER).read_text("ascii", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return False
        if marker != self._key:
            return False
        if not self._swept:
            self.sweep()
        return True

    def sweep(self) -> None:
        """Delete locks and half-written files. Only while no git of ours runs in the mirror."""
        locks = (self.path / "refs").rglob("*.lock")
        for leftover in chain(locks, self._matching(*_LOCKS, *_LEFTOVERS)):
            _delete(leftover)
        for other in (self._spare, self._old):
            _delete(other)
        self._swept = True

    def spare(self) -> Path:
        """A new empty repository beside the mirror, to clone into."""
        _delete(self._spare)
        self._spare.parent.mkdir(parents=True, exist_ok=True)
        try:
            pygit2.init_repository(str(self._spare), bare=True)
        except pygit2.GitError as error:
            raise OSError(None, f"cannot make a repository: {error}", str(self._spare)) from error
        return self._spare

    def adopt(self) -> None:
        """The spare repository becomes the mirror; what was there is deleted. Nobody may have the old one open."""
        (self._spare / _MARKER).write_text(self._key, "ascii")
        _delete(self._old)
        if self.path.exists() or self.path.is_symlink():
            self.path.rename(self._old)
        self._spare.rename(self.path)
        _delete(self._old)
        self._swept = True
        self._loose_kept = 0

    def discard_spare(self) -> None:
        """Give the room of a broken-off clone back."""
        _delete(self._spare)

    def needs_packing(self) -> bool:
        """Whether packs or loose objects have gathered."""
        packs = sum(1 for _ in self._matching("objects/pack/*.pack"))
        return packs > self._pack_limit or self._loose() > self._loose_kept + _LOOSE_LIMIT

    def packed(self) -> None:
        """Packing is done: what is loose still (unreachable since a rewritten history) is not counted again."""
        self._loose_kept = self._loose()

    def _loose(self) -> int:
        return 256 * len(list(self._matching(f"{_SAMPLE}/*")))

    def _matching(self, *patterns: str) -> Iterator[Path]:
        return chain.from_iterable(self.path.glob(pattern) for pattern in patterns)

    @property
    def _spare(self) -> Path:
        return self.path.with_name(f"{self.path.name}.new")

    @property
    def _old(self) -> Path:
        return self.path.with_name(f"{self.path.name}.old")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
