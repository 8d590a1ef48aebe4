"""The fleet as the receipts tell it, followed event by event. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Event, KeyValue
from reconciler.core.records import Receipt

STATES: Final = ("current", "behind", "unknown")
"""What an OPA may be beside the applied commit; every agent is one of them."""
MARKS: Final = (*STATES, "stale", "errors")
OTHER: Final = "other"
_COMMITS: Final = 5
_DIGITS: Final = 12


@dataclass(slots=True)
class FleetState:
    """Receipts and signs of life by ``<datacentre>/<id>``."""

    keyspace: Keyspace
    receipts: dict[str, Receipt] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)

    def clear(self) -> None:
        """Nothing is known."""
        self.receipts.clear()
        self.alive.clear()

    def happened(self, event: Event) -> str:
        """Take an event in; the agent that it is about."""
        key = event.kv.key
        if key.startswith(self.keyspace.alives):
            agent = key.removeprefix(self.keyspace.alives)
            (self.alive.discard if event.deleted else self.alive.add)(agent)
            return agent
        agent = key.removeprefix(self.keyspace.receipts)
        receipt = None if event.deleted else _receipt(event.kv)
        if receipt is None:
            self.receipts.pop(agent, None)
        else:
            self.receipts[agent] = receipt
        return agent

    def proven(self, agent: str) -> tuple[str, str] | None:
        """What its OPA proves to enforce, and since when; ``None`` while nothing, or while it is silent."""
        receipt = self.receipts.get(agent)
        if receipt is None or receipt.enforced_revision is None or agent not in self.alive:
            return None
        return receipt.enforced_revision, receipt.since

    def counts(self, applied: str | None) -> Mapping[str, Counter[str]]:
        """`MARKS` by datacentre, beside the applied commit."""
        found: dict[str, Counter[str]] = {}
        for agent, receipt in self.receipts.items():
            marks = found.setdefault(receipt.datacentre, Counter())
            marks[self._state(agent, applied)] += 1
            marks["stale"] += receipt.stale or agent not in self.alive
            marks["errors"] += receipt.error is not None
        return found

    def _state(self, agent: str, applied: str | None) -> str:
        proven = self.proven(agent)
        if proven is None:
            return "unknown"
        return "current" if proven[0] == (applied or "none") else "behind"

    def commits(self) -> Mapping[str, int]:
        """How many OPAs prove which commit (its first digits): the `_COMMITS` most frequent, and `OTHER`."""
        proven = (self.proven(agent) for agent in self.receipts)
        counted = Counter(each[0][:_DIGITS] for each in proven if each is not None)
        most = dict(counted.most_common(_COMMITS))
        rest = counted.total() - sum(most.values())
        return most | ({OTHER: rest} if rest else {})


def _receipt(kv: KeyValue) -> Receipt | None:
    try:
        return Receipt.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        return None
