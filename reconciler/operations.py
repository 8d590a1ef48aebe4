"""A person's words to the leader, written into etcd: look now, stop, go on, these deletions are meant."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Final

from reconciler.core.conditions import StatusRecord
from reconciler.core.errors import RefusalError, RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Compare, Delete, KeyValueStore, Put, Range, Target, Transaction
from reconciler.core.records import Confirmed, Requested, Suspended
from reconciler.core.times import rfc3339

_SHORTEST: Final = 7


class NothingToConfirmError(RefusalError):
    """No deletion is blocked, or not for that commit; says which one it is."""


class Operations:
    """What operators ask of whichever replica leads. Every method may raise `TransientError`."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace) -> None:
        self._store = store
        self._keys = keyspace

    async def sync(self, by: str, *, remove_foreign: bool = False) -> str:
        """Ask for a look; the token shows up as ``last_handled_reconcile_at`` once it was taken."""
        token = f"{_now()}-{secrets.token_hex(3)}"
        record = Requested(token=token, by=by, remove_foreign=remove_foreign)
        await self._store.commit(Transaction((), (Put(self._keys.requested, record.encode()),)))
        return token

    async def confirm(self, by: str, commit: str) -> Confirmed:
        """The deletions that are blocked for this commit are meant. Raises `NothingToConfirmError`."""
        status = await self.status()
        head = ((status.last_attempted_revision if status else None) or "").rpartition(":")[2]
        if status is None or not status.blocked_deletions:
            raise NothingToConfirmError("no deletions are blocked: there is nothing to confirm")
        if len(commit) < _SHORTEST or not head.startswith(commit.lower()):
            raise NothingToConfirmError(
                f"deletions are blocked for commit {head}, not {commit}: look again, then confirm"
            )
        confirmed = Confirmed(head, status.blocked_deletions, by, _now())
        await self._store.commit(Transaction((), (Put(self._keys.confirmed, confirmed.encode()),)))
        return confirmed

    async def suspend(self, by: str, reason: str) -> bool:
        """Stop applying; ``False`` when somebody had done so already (whose words stay)."""
        key = self._keys.suspended
        put = Put(key, Suspended(by=by, reason=reason, at=_now()).encode())
        return (await self._store.commit(Transaction((Compare(key, Target.CREATE, 0),), (put,)))).succeeded

    async def resume(self) -> bool:
        """Go on applying; ``False`` when it was not suspended."""
        key = self._keys.suspended
        kvs = (await self._store.read(Range(key))).ranges[0]
        if not kvs:
            return False
        compare = Compare(key, Target.MOD, kvs[0].mod_revision)
        return (await self._store.commit(Transaction((compare,), (Delete(key),)))).succeeded

    async def status(self) -> StatusRecord | None:
        """The leader's status; `RegopsError` when the record cannot be read."""
        kvs = (await self._store.read(Range(self._keys.status))).ranges[0]
        try:
            return StatusRecord.decode(kvs[0].value) if kvs else None
        except (ValueError, TypeError, KeyError) as error:
            raise RegopsError("the status in etcd cannot be read", reason="InvalidRecord") from error


def _now() -> str:
    return rfc3339(datetime.now(UTC))
