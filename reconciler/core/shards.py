"""Which shard answers for a project: a function of the project's name and the number of shards, and of nothing else.

Rendezvous hashing (highest random weight): the weight of shard ``i`` (1 to ``n``) for a project is the first 6 bytes of
SHA-256 of the ASCII text ``<project>/<i>``, read as a big-endian number; the shard with the greatest weight answers, of
equal ones the lowest. So a shard more takes its part from all others, and moves nothing between them.

The function is a format: agents, gateways and servers of any version must agree, and docs/operations.md tells it in a
line of shell. Six bytes, because a gateway's numbers may be doubles, which are exact up to 53 bits.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

WEIGHT_BYTES: Final = 6
"""How much of the digest is the weight."""
MOST: Final = 1000
"""Shards at most: a gateway computes one weight for each."""
SHARD_RULE: Final = f"write i/n, shard i of n, with 1 ≤ i ≤ n ≤ {MOST}, such as 2/8"

_TEXT = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard ``index`` of ``count``, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """``2/8``; `ValueError` with the rule for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None or not int(match[1]) <= int(match[2]) <= MOST:
            raise ValueError(f"{text!r} is no shard: {SHARD_RULE}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def answers_for(self, project: str) -> bool:
        """Whether this shard is `shard_of`. Cheaper than that: it ends at the first shard that weighs more."""
        own = weight(project, self.index)
        return all(weight(project, i) < own for i in range(1, self.index)) and all(
            weight(project, i) <= own for i in range(self.index + 1, self.count + 1)
        )


@lru_cache(131_072)
def shard_of(project: str, count: int) -> int:
    """The shard, 1 to ``count``, that answers for the project. Remembered: each look at a fleet asks for all again."""
    return max(range(1, count + 1), key=lambda index: (weight(project, index), -index))


def weight(project: str, index: int) -> int:
    """How much shard ``index`` wants the project."""
    return int.from_bytes(hashlib.sha256(f"{project}/{index}".encode()).digest()[:WEIGHT_BYTES], "big")
