"""Who enforces what: the agents' receipts, followed in etcd."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from api.followed import Followed
from reconciler.agent.scope import Scope
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PolicyName
from reconciler.core.ports import KeyValue, KeyValueStore, Range
from reconciler.core.records import Receipt
from reconciler.core.silence import FORGET_AFTER, forgotten


class Fleet(Followed[Receipt | None]):
    """The last receipt of every agent (``None`` under the keys that say that one is alive)."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace, *, forget_after: timedelta = FORGET_AFTER) -> None:
        self._forget_after = forget_after
        self._keyspace = keyspace
        ranges = Range(keyspace.receipts, prefix=True), Range(keyspace.alives, prefix=True, keys_only=True)
        super().__init__(store, *ranges, decode=self._receipt)

    def answering_for(self, policy: PolicyName) -> Mapping[str, Receipt | None]:
        """Every agent whose OPA answers for the policy: its receipt, ``None`` while it is silent."""
        now = datetime.now(UTC)
        found: dict[str, Receipt | None] = {}
        for key, receipt in self.values.items():
            if receipt is None or not _covers(receipt, policy):
                continue
            name = key.removeprefix(self._keyspace.receipts)
            alive = f"{self._keyspace.alives}{name}" in self.values
            if alive or not forgotten(receipt, now, self._forget_after):
                found[name] = receipt if alive else None
        return found

    def _receipt(self, kv: KeyValue) -> Receipt | None:
        return None if kv.key.startswith(self._keyspace.alives) else Receipt.decode(kv.value)


def _covers(receipt: Receipt, policy: PolicyName) -> bool:
    """A scope of a newer kind counts, so that nothing is called active on doubt."""
    try:
        return Scope.parse(receipt.scope).contains(policy)
    except ValueError:
        return True
