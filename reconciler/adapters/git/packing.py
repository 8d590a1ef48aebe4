"""New objects, made in memory and written into the mirror together, as one pack (gitformat-pack(5)).

A batch of 32 commits is some 200 objects. One by one libgit2 writes a file for each, and looks for every new object in
all packs before; as one pack they are two files, and git pushes them as they lie there.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pygit2

from reconciler.adapters.git.objects import FOLDER, Entry, entries_of

_KINDS: Final = {"commit": 1, "tree": 2, "blob": 3}
_QUICK: Final = 1
"""zlib's level: these bytes are read once or twice before git packs them anew."""
_FAR: Final = 2**31
"""Offsets from here on would need another table; `Limits` keeps a batch far below."""


class NewObjects:
    """Objects on top of a repository's own. Nothing is in the repository before `write`."""

    def __init__(self, repository: pygit2.Repository) -> None:
        self._repository = repository
        self._made: dict[bytes, tuple[str, bytes]] = {}

    def blob(self, content: bytes) -> bytes:
        """The id of these bytes."""
        return self._add("blob", content)

    def tree(self, entries: Iterable[Entry]) -> bytes:
        """The id of a folder; entries in any order, each name once."""
        ordered = sorted(entries, key=_place)
        return self._add("tree", b"".join(b"%b %b\0%b" % entry for entry in ordered))

    def commit(self, raw: bytes) -> bytes:
        """The id of a commit of this text (git-commit-tree(1), "Commit Information")."""
        return self._add("commit", raw)

    def entries(self, tree: bytes) -> list[Entry]:
        """What lies in a folder, made here or not."""
        made = self._made.get(tree)
        if made is None:
            return entries_of(self._repository, pygit2.Oid(raw=tree))
        return list(_entries(made[1]))

    def write(self) -> None:
        """Write them all, whole or not at all. Raises `OSError`."""
        if not self._made:
            return
        body, index = self._pack()
        folder = Path(self._repository.path) / "objects" / "pack"
        name = f"pack-{body[-20:].hex()}"
        # Git knows a pack by its index: that comes last.
        for suffix, content in ((".pack", body), (".idx", index)):
            unfinished = folder / f"tmp_{name}{suffix}"
            unfinished.write_bytes(content)
            unfinished.chmod(0o444)
            unfinished.replace(folder / f"{name}{suffix}")
        self._made.clear()

    def _add(self, kind: str, raw: bytes) -> bytes:
        oid = hashlib.sha1(b"%b %d\0%b" % (kind.encode(), len(raw), raw), usedforsecurity=False).digest()
        self._made[oid] = (kind, raw)
        return oid

    def _pack(self) -> tuple[bytes, bytes]:
        """The pack and its index, version 2 of each."""
        parts = [b"PACK" + struct.pack(">II", 2, len(self._made))]
        found: list[tuple[bytes, int, int]] = []
        at = len(parts[0])
        for oid, (kind, raw) in self._made.items():
            packed = _header(_KINDS[kind], len(raw)) + zlib.compress(raw, _QUICK)
            found.append((oid, zlib.crc32(packed), at))
            parts.append(packed)
            at += len(packed)
        if at >= _FAR:
            raise OSError("a batch of commits of more than 2 GiB")
        body = b"".join(parts)
        body += hashlib.sha1(body, usedforsecurity=False).digest()
        return body, _index(sorted(found), body[-20:])


def _index(found: list[tuple[bytes, int, int]], trailer: bytes) -> bytes:
    counts = [0] * 256
    for oid, _, _ in found:
        counts[oid[0]] += 1
    fanout, total = [], 0
    for count in counts:
        total += count
        fanout.append(total)
    number = len(found)
    table = b"".join(
        (
            b"\xfftOc" + struct.pack(">I256I", 2, *fanout),
            b"".join(oid for oid, _, _ in found),
            struct.pack(f">{number}I", *(crc for _, crc, _ in found)),
            struct.pack(f">{number}I", *(at for _, _, at in found)),
            trailer,
        )
    )
    return table + hashlib.sha1(table, usedforsecurity=False).digest()


def _header(kind: int, size: int) -> bytes:
    """Kind and size: 4 bits of the size in the first byte, 7 in each other, the lowest first."""
    first, size = kind << 4 | size & 15, size >> 4
    header = bytearray()
    while size:
        header.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    header.append(first)
    return bytes(header)


def _place(entry: Entry) -> bytes:
    """Git sorts a folder as if its name ended with a slash."""
    mode, name, _ = entry
    return name + b"/" if mode == FOLDER else name


def _entries(raw: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(raw):
        end = raw.index(b"\0", at)
        mode, _, name = raw[at:end].partition(b" ")
        at = end + 21
        yield mode, name, raw[end + 1 : at]
