"""The fleet as the receipts tell it, followed event by event. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Event, KeyValue
from reconciler.core.records import Applied, Receipt
from reconciler.core.silence import FORGET_AFTER, forgotten

STATES: Final = ("current", "behind", "unknown")
"""What an OPA may be beside the applied commit; every agent is one of them."""
MARKS: Final = (*STATES, "stale", "errors")
OTHER: Final = "other"
_COMMITS: Final = 5
_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class _Proof:
    """From which revision of the store on an OPA proves what it proves now (0: longer than is known), and at which one
    it last ceased to prove something (0: never, as far as is known)."""

    began: int = 0
    ended: int = 0


@dataclass(slots=True)
class FleetState:
    """Receipts and signs of life by ``<datacentre>/<id>``."""

    keyspace: Keyspace
    receipts: dict[str, Receipt] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    _proofs: dict[str, _Proof] = field(default_factory=dict)

    def clear(self) -> None:
        """Nothing is known."""
        self.receipts.clear()
        self.alive.clear()
        self._proofs.clear()

    def found(self, kv: KeyValue) -> str:
        """Take in what was there already; the agent that it is about."""
        agent = self.happened(Event(kv))
        receipt = self.receipts.get(agent)
        if receipt is not None and kv.key.startswith(self.keyspace.receipts):
            # How long it has said so is not told. What proves nothing may have proven something until then.
            self._proofs[agent] = _Proof(ended=kv.mod_revision if receipt.enforced_revision is None else 0)
        return agent

    def happened(self, event: Event) -> str:
        """Take an event in; the agent that it is about."""
        key = event.kv.key
        if key.startswith(self.keyspace.alives):
            agent = key.removeprefix(self.keyspace.alives)
            (self.alive.discard if event.deleted else self.alive.add)(agent)
            return agent
        agent = key.removeprefix(self.keyspace.receipts)
        receipt = None if event.deleted else _receipt(event.kv)
        before = self.receipts.pop(agent, None)
        if receipt is None:
            self._proofs.pop(agent, None)
            return agent
        self.receipts[agent] = receipt
        former = before.enforced_revision if before else None
        if former != receipt.enforced_revision:
            known, now = self._proofs.get(agent, _Proof()), event.kv.mod_revision
            self._proofs[agent] = _Proof(now, known.ended if former is None else now)
        return agent

    def proved_at(self, agent: str, revision: int) -> bool:
        """Whether its OPA proved something at this revision of the store, as far as is known; also where it has ceased
        since, to activate something else, or proves that already."""
        receipt, proof = self.receipts.get(agent), self._proofs.get(agent, _Proof())
        proves = receipt is not None and receipt.enforced_revision is not None
        return proof.ended > revision or (proves and proof.began <= revision)

    def proven(self, agent: str) -> Receipt | None:
        """The receipt of what its OPA proves to enforce; ``None`` while that is nothing, or while it is silent."""
        receipt = self.receipts.get(agent)
        if receipt is None or receipt.enforced_revision is None or agent not in self.alive:
            return None
        return receipt

    def counts(
        self, applied: Applied | None, now: datetime, forget_after: timedelta = FORGET_AFTER
    ) -> Mapping[str, Counter[str]]:
        """`MARKS` by datacentre, beside what is applied, of those that are not `forgotten`. Goes through all."""
        found: dict[str, Counter[str]] = {}
        for agent, receipt in self.receipts.items():
            if agent not in self.alive and forgotten(receipt, now, forget_after):
                continue
            marks = found.setdefault(receipt.datacentre, Counter())
            marks[self._state(agent, applied)] += 1
            marks["stale"] += receipt.stale or agent not in self.alive
            marks["errors"] += receipt.error is not None
        return found

    def _state(self, agent: str, applied: Applied | None) -> str:
        proven = self.proven(agent)
        if proven is None:
            return "unknown"
        wanted = (applied.commit, applied.digest) if applied else (None, None)
        return "current" if proven.proves(*wanted) else "behind"

    def commits(self) -> Mapping[str, int]:
        """How many OPAs prove which commit (its first digits): the `_COMMITS` most frequent, and `OTHER`."""
        proven = (self.proven(agent) for agent in self.receipts)
        counted = Counter((each.enforced_revision or "")[:_DIGITS] for each in proven if each is not None)
        most = dict(counted.most_common(_COMMITS))
        rest = counted.total() - sum(most.values())
        return most | ({OTHER: rest} if rest else {})


def _receipt(kv: KeyValue) -> Receipt | None:
    try:
        return Receipt.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        return None
