"""A person's words to whichever replica leads: written into etcd, or given to a server's API, and what came of them."""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from reconciler.core.conditions import READY, Condition, StatusRecord
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValue, KeyValueStore, Range
from reconciler.core.records import Applied, Record, Suspended
from reconciler.operations import Operations
from regops import compose
from regops.commands.target import Target, get_status, post

RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of the leader's work. ``applied`` and ``attempted`` are commits."""

    handled: str | None
    ready: Condition | None
    attempted: str | None
    applied: str | None
    suspended: Suspended | None
    blocked_deletions: tuple[str, ...]
    foreign_keys: tuple[str, ...]
    led: bool


class Words(Protocol):
    """What can be said to the leader. Every method may raise `RegopsError`."""

    async def sync(self, *, remove_foreign: bool) -> str:
        """Look now; the token that shows when it was done."""
        ...

    async def confirm(self, commit: str) -> tuple[str, ...]:
        """The deletions that are blocked for this commit are meant; which ones."""
        ...

    async def suspend(self, reason: str) -> bool:
        """Stop; ``False`` when it was so already."""
        ...

    async def resume(self) -> bool:
        """Go on; ``False`` when it was so already."""
        ...

    async def look(self) -> Seen:
        """What came of it so far."""
        ...


@contextlib.asynccontextmanager
async def open_words(target: Target) -> AsyncIterator[Words]:
    """By the API where a server is named, else through etcd."""
    if target.server:
        yield _ByServer(target)
        return
    settings = target.settings()
    async with compose.open_store(settings.etcd) as store:
        yield _ByEtcd(store, compose.keyspace(settings.etcd))


def who() -> str:
    """``user@host``, as etcd keeps it and the status shows it; the host alone where the user has no name."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()


class _ByEtcd:
    def __init__(self, store: KeyValueStore, keys: Keyspace) -> None:
        self._store = store
        self._keys = keys
        self._operations = Operations(store, keys)

    async def sync(self, *, remove_foreign: bool) -> str:
        return await self._operations.sync(who(), remove_foreign=remove_foreign)

    async def confirm(self, commit: str) -> tuple[str, ...]:
        return (await self._operations.confirm(who(), commit)).deletions

    async def suspend(self, reason: str) -> bool:
        return await self._operations.suspend(who(), reason)

    async def resume(self) -> bool:
        return await self._operations.resume()

    async def look(self) -> Seen:
        keys = self._keys
        read = await self._store.read(
            Range(keys.status), Range(keys.applied), Range(keys.suspended), Range(keys.leader, keys_only=True)
        )
        status, applied = _decoded(StatusRecord, read.ranges[0]), _decoded(Applied, read.ranges[1])
        conditions = status.conditions if status else ()
        return Seen(
            handled=status.last_handled_reconcile_at if status else None,
            ready=next((condition for condition in conditions if condition.type == READY), None),
            attempted=status.last_attempted_revision if status else None,
            applied=applied.commit if applied else None,
            suspended=_decoded(Suspended, read.ranges[2]),
            blocked_deletions=tuple(status.blocked_deletions) if status else (),
            foreign_keys=tuple(status.foreign_keys) if status else (),
            led=bool(read.ranges[3]),
        )


class _ByServer:
    def __init__(self, target: Target) -> None:
        self._target = target

    async def sync(self, *, remove_foreign: bool) -> str:
        return str((await post(self._target, "/admin/sync", {"remove_foreign": remove_foreign}))["token"])

    async def confirm(self, commit: str) -> tuple[str, ...]:
        return tuple((await post(self._target, "/admin/confirm", {"commit": commit}))["deletions"])

    async def suspend(self, reason: str) -> bool:
        return bool((await post(self._target, "/admin/suspend", {"reason": reason}))["changed"])

    async def resume(self) -> bool:
        return bool((await post(self._target, "/admin/resume", {}))["changed"])

    async def look(self) -> Seen:
        document = await get_status(self._target)
        ready = next((c for c in document["conditions"] if c["type"] == READY), None)
        return Seen(
            handled=document["last_handled_reconcile_at"],
            ready=_condition(ready) if ready else None,
            attempted=_commit(document["last_attempted_revision"]),
            applied=_commit(document["last_applied_revision"]),
            suspended=_suspended(document),
            blocked_deletions=tuple(document["blocked_deletions"]),
            foreign_keys=tuple(document.get("foreign_keys", ())),
            led=document.get("leader") is not None,
        )


def _suspended(document: dict[str, Any]) -> Suspended | None:
    """Also where the server does not tell who did it and why."""
    told = document.get("suspension") or {}
    words = {name: told.get(name) or "" for name in ("by", "reason", "at")}
    return Suspended(**words) if document["suspended"] else None


def _condition(document: dict[str, Any]) -> Condition:
    names = ("type", "status", "reason", "message", "last_transition_time")
    return Condition(*(document[name] for name in names))


def _commit(revision: str | None) -> str | None:
    return revision.rpartition(":")[2] if revision else None


def _decoded(kind: type[RecordT], kvs: tuple[KeyValue, ...]) -> RecordT | None:
    try:
        return kind.decode(kvs[0].value) if kvs else None
    except (ValueError, TypeError, KeyError) as error:
        raise RegopsError(f"{kvs[0].key} in etcd cannot be read", reason="InvalidRecord") from error
