"""Where the OPAs of each shard are: from the command line, a file, or the receipts of a fleet."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from reconciler.core.shards import MOST, Shard

_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_PREFIX = "shard:"


@dataclass(frozen=True, slots=True)
class Backends:
    """``shards[i - 1]``: the ``host:port`` of the OPAs of shard i; the first answers, the others stand in for it."""

    shards: Sequence[Sequence[str]]

    @classmethod
    def of(cls, given: Mapping[int, Sequence[str]]) -> Self:
        """Every shard from 1 to the highest. `ValueError` says which is missing or what is no address."""
        count = max(given, default=0)
        if not 1 <= count <= MOST or min(given) < 1:
            raise ValueError(f"shards are counted from 1 to {MOST} at most")
        for index in range(1, count + 1):
            if not given.get(index):
                raise ValueError(f"shard {index} of {count} has no OPA")
            for address in given[index]:
                if not is_address(address):
                    raise ValueError(f"{address!r} is no host:port")
        return cls([list(dict.fromkeys(given[index])) for index in range(1, count + 1)])

    @classmethod
    def of_words(cls, words: Iterable[str]) -> Self:
        """``1=host:port,host:port`` for each shard. `ValueError` for anything else."""
        given: dict[int, list[str]] = {}
        for word in words:
            index, _, addresses = word.partition("=")
            if not index.isascii() or not index.isdigit():
                raise ValueError(f"{word!r}: write 1=host:port,host:port")
            given.setdefault(int(index), []).extend(addresses.split(","))
        return cls.of(given)

    @classmethod
    def of_fleet(cls, agents: Iterable[Mapping[str, Any]], count: int | None, nearest: str | None) -> Self:
        """Of the ``agents`` of ``GET /fleet``: those of ``count`` shards, or of the only number that there is. The OPAs
        of the datacentre ``nearest`` come first. `ValueError` where that is not enough to go by."""
        known = [(Shard.parse(agent["scope"].removeprefix(_PREFIX)), agent) for agent in agents if _of_shard(agent)]
        counts = sorted({shard.count for shard, _ in known})
        if count is None and len(counts) != 1:
            raise ValueError(f"the fleet has agents of {', '.join(map(str, counts)) or 'no'} shards; choose by --of N")
        chosen = [(shard.index, agent) for shard, agent in known if shard.count == (count or counts[0])]
        chosen.sort(key=lambda pair: (pair[1]["datacentre"] != nearest, pair[1]["datacentre"], pair[1]["id"]))
        given: dict[int, list[str]] = {index: [] for index in range(1, (count or counts[0]) + 1)}
        for index, agent in chosen:
            given[index].append(_address(agent))
        return cls.of(given)

    @property
    def count(self) -> int:
        """How many shards."""
        return len(self.shards)

    def all(self) -> list[str]:
        """Every OPA, once."""
        return list(dict.fromkeys(address for shard in self.shards for address in shard))


def is_address(text: str) -> bool:
    """Whether it is ``host:port``, with IPv6 addresses in brackets: nothing else may get into a configuration."""
    match = _ADDRESS.fullmatch(text)
    return match is not None and 1 <= int(match[1]) <= 65535  # noqa: PLR2004 the highest port


def _of_shard(agent: Mapping[str, Any]) -> bool:
    try:
        Shard.parse(agent["scope"].removeprefix(_PREFIX))
    except ValueError:
        return False
    return bool(agent["scope"].startswith(_PREFIX))


def _address(agent: Mapping[str, Any]) -> str:
    if not agent.get("opa"):
        raise ValueError(f"agent {agent['id']} does not tell where its OPA is: set agent.opa there")
    parts = urlsplit(agent["opa"])
    if parts.scheme != "http" or not parts.netloc:
        raise ValueError(f"the OPA of agent {agent['id']} is at {agent['opa']}: only http:// can be written here")
    return parts.netloc if parts.port else f"{parts.netloc}:80"
