"""The digest of all that is live: equal for equal sets of policies, in every replica, and kept up to date at the cost
of what changed. Pure.

Two levels. A policy belongs to one of 256 buckets, by the CRC-32 of its name modulo 256. A bucket's digest is the
SHA-256 of its sorted lines, each name, space, ETag and line feed; the whole digest is the SHA-256 of the 256 bucket
digests, in order. So one change of 10,000 policies hashes forty lines anew.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from reconciler.core.model import PolicyName

BUCKETS: Final = 256


@dataclass(frozen=True, slots=True)
class LiveDigest:
    """A digest and what is needed to take it further: the names in each bucket, sorted, and each bucket's digest."""

    names: tuple[tuple[PolicyName, ...], ...]
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, etags: Mapping[PolicyName, str]) -> Self:
        """The digest of a whole set."""
        buckets: list[list[PolicyName]] = [[] for _ in range(BUCKETS)]
        for name in etags:
            buckets[_bucket(name)].append(name)
        names = tuple(tuple(sorted(bucket)) for bucket in buckets)
        return cls(names, tuple(_digest(bucket, etags.__getitem__) for bucket in names))

    def after(
        self, put: Iterable[PolicyName], gone: Iterable[PolicyName], etag_of: Callable[[PolicyName], str]
    ) -> LiveDigest:
        """The digest once these were put and those are gone; ``etag_of`` tells any policy's ETag of then."""
        touched: defaultdict[int, tuple[set[PolicyName], set[PolicyName]]] = defaultdict(lambda: (set(), set()))
        for name in put:
            touched[_bucket(name)][0].add(name)
        for name in gone:
            touched[_bucket(name)][1].add(name)
        names, digests = list(self.names), list(self.digests)
        for number, (more, less) in touched.items():
            names[number] = tuple(sorted((set(names[number]) | more) - less))
            digests[number] = _digest(names[number], etag_of)
        return LiveDigest(tuple(names), tuple(digests))

    @property
    def hex(self) -> str:
        """The whole digest, 64 hex digits."""
        return hashlib.sha256(b"".join(self.digests)).hexdigest()


def _bucket(name: PolicyName) -> int:
    return zlib.crc32(name.encode()) % BUCKETS


def _digest(names: Iterable[PolicyName], etag_of: Callable[[PolicyName], str]) -> bytes:
    return hashlib.sha256("".join(f"{name} {etag_of(name)}\n" for name in names).encode()).digest()
