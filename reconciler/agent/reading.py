"""Reads of the mirror: everything at one etcd revision, verified against the ETags that the writer left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from reconciler.agent.scope import Scope
from reconciler.agent.state import MirrorPolicy
from reconciler.aside import aside
from reconciler.core.errors import CompactedError, TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import Content, PolicyName, policy_name
from reconciler.core.ports import KeyValue, KeyValueStore, Range
from reconciler.core.records import Applied, Meta

POLICIES_PER_READ: Final = 16
"""A policy's keys share one transaction, of at most 2 MiB, so one answer stays below 32 MiB (and 128 operations)."""
SMALL_PER_READ: Final = 42
"""The same where all that were read so far are small: as many as 128 operations take."""
SMALL_BYTES: Final = 64 * 1024
READS_AT_ONCE: Final = 4
HASHED_AT_ONCE: Final = 64 * 1024
"""Bytes that are hashed on the event loop itself: a tenth of a millisecond."""

T = TypeVar("T")


class UnreadableError(TransientError):
    """The state cannot be read whole: a record is no record, or a hand edit's original is compacted. Keep the former
    state and look again later."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="Unreadable")


@dataclass(frozen=True, slots=True)
class Head:
    """``applied`` at one store revision. ``written_at`` is its mod_revision (0 when absent)."""

    revision: int
    applied: Applied | None = None
    written_at: int = 0
    applying: bool = False


def head_of(revision: int, applied: KeyValue | None, *, applying: bool = False) -> Head:
    """The head in what was read. `UnreadableError` when ``applied`` is no record."""
    if applied is None:
        return Head(revision, applying=applying)
    try:
        return Head(revision, Applied.decode(applied.value), applied.mod_revision, applying)
    except (ValueError, TypeError) as error:
        raise UnreadableError(f"{applied.key} is no record of an apply: {error}") from error


@dataclass(frozen=True, slots=True)
class _Stored:
    """One policy as it lies in etcd, not yet verified."""

    meta: Meta
    written_at: int
    content: Content | None

    def matches(self) -> bool:
        return self.content is not None and self.content.blob_ids().etag == self.meta.etag


class Reader:
    """Reads heads and policies of one scope. Every method raises the store's errors, and `UnreadableError`.

    What was read of a whole that then failed is kept for the next try: where an etcd is so busy that one of many reads
    comes too late, a fleet that began again each time would keep it busy.
    """

    def __init__(self, store: KeyValueStore, keyspace: Keyspace, scope: Scope) -> None:
        self._store = store
        self._keyspace = keyspace
        self._scope = scope
        self._begun: dict[PolicyName, MirrorPolicy] = {}
        self._largest = 0

    async def head(self) -> Head:
        """The newest ``applied``, and whether an apply is under way."""
        read = await self._store.read(Range(self._keyspace.applied), Range(self._keyspace.applying))
        (applied, applying) = read.ranges
        return head_of(read.revision, applied[0] if applied else None, applying=bool(applying))

    async def whole(
        self, revision: int, former: Mapping[PolicyName, MirrorPolicy]
    ) -> tuple[dict[PolicyName, MirrorPolicy], int]:
        """Every policy in scope at ``revision`` and how many were read; where the ETag is that of ``former``, its
        bytes are kept."""
        metas = await self._metas(revision)
        known = {**former, **self._begun}
        kept = {
            name: MirrorPolicy(known[name].content, meta)
            for name, meta in metas.items()
            if name in known and known[name].etag == meta.etag
        }
        missing = [name for name in metas if name not in kept]
        read = dict[PolicyName, MirrorPolicy | None]()
        try:
            await self._read(missing, revision, read)
        finally:
            self._begun.update((name, policy) for name, policy in read.items() if policy is not None)
        self._begun = {}
        return {name: policy for name in metas if (policy := kept.get(name) or read[name])}, len(missing)

    async def only(self, names: Iterable[PolicyName], revision: int) -> dict[PolicyName, MirrorPolicy | None]:
        """These policies at ``revision``; ``None`` for one that is not live there."""
        found: dict[PolicyName, MirrorPolicy | None] = {}
        await self._read(list(names), revision, found)
        return found

    async def _read(
        self, names: Sequence[PolicyName], revision: int, found: dict[PolicyName, MirrorPolicy | None]
    ) -> None:
        """Into ``found``, as it comes."""

        async def one(batch: Sequence[PolicyName]) -> None:
            found.update(await self._batch(batch, revision))

        at, size = 0, POLICIES_PER_READ
        while at < len(names):
            window = [names[place : place + size] for place in range(at, len(names), size)[:READS_AT_ONCE]]
            for result in await asyncio.gather(*(one(batch) for batch in window), return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
            at += sum(map(len, window))
            # Of small texts more come at once: each read costs as much as what it brings.
            size = SMALL_PER_READ if self._largest < SMALL_BYTES else POLICIES_PER_READ

    async def _metas(self, revision: int) -> dict[PolicyName, Meta]:
        listed = self._scope.listed()
        if listed is None:
            ranges = [Range(self._keyspace.metas, prefix=True)]
        else:
            ranges = [Range(self._keyspace.meta(name)) for name in listed]
        read = await self._store.read(*ranges, revision=revision)
        found = [kv for part in read.ranges for kv in part]
        return await aside(len(found), self._decoded, found)

    def _decoded(self, found: Iterable[KeyValue]) -> dict[PolicyName, Meta]:
        metas = {}
        for kv in found:
            name = _name(kv.key.removeprefix(self._keyspace.metas))
            if name is not None and self._scope.contains(name):
                metas[name] = _meta(kv)
        return metas

    async def _batch(self, names: Sequence[PolicyName], revision: int) -> dict[PolicyName, MirrorPolicy | None]:
        keys = self._keyspace
        ranges = [Range(key) for name in names for key in (keys.meta(name), keys.rego(name), keys.data(name))]
        read = await self._store.read(*ranges, revision=revision)
        self._largest = max([self._largest, *(len(kv.value) for kvs in read.ranges for kv in kvs)])
        stored = {name: _stored(read.ranges[3 * i : 3 * i + 3]) for i, name in enumerate(names)}
        size = sum(item.content.size for item in stored.values() if item and item.content)
        # A small policy is hashed sooner than a thread begins.
        edited = _mismatches(stored) if size <= HASHED_AT_ONCE else await asyncio.to_thread(_mismatches, stored)
        originals = {name: await self._original(name, stored[name]) for name in edited}
        return {name: originals.get(name) or _policy(item) for name, item in stored.items()}

    async def _original(self, name: PolicyName, edited: _Stored | None) -> MirrorPolicy:
        """What regops itself wrote where somebody else's bytes lie now: the keys at their meta's mod_revision."""
        if edited is None:
            raise UnreadableError(f"{name} vanished while it was read")
        ranges = [Range(self._keyspace.rego(name)), Range(self._keyspace.data(name))]
        try:
            rego, data = (await self._store.read(*ranges, revision=edited.written_at)).ranges
        except CompactedError as error:
            raise UnreadableError(f"{name} was edited by hand and its original is compacted") from error
        original = _Stored(edited.meta, edited.written_at, _content(rego, data))
        policy = _policy(original)
        if policy is None or not await asyncio.to_thread(original.matches):
            raise UnreadableError(f"{name} does not match its own record")
        return policy


def _stored(ranges: Sequence[Sequence[KeyValue]]) -> _Stored | None:
    meta, rego, data = ranges
    return _Stored(_meta(meta[0]), meta[0].mod_revision, _content(rego, data)) if meta else None


def _content(rego: Sequence[KeyValue], data: Sequence[KeyValue]) -> Content | None:
    return Content(rego[0].value, data[0].value if data else None) if rego else None


def _policy(stored: _Stored | None) -> MirrorPolicy | None:
    return None if stored is None or stored.content is None else MirrorPolicy(stored.content, stored.meta)


def _mismatches(stored: Mapping[PolicyName, _Stored | None]) -> list[PolicyName]:
    return [name for name, item in stored.items() if item is not None and not item.matches()]


def _meta(kv: KeyValue) -> Meta:
    try:
        return Meta.decode(kv.value)
    except (ValueError, TypeError) as error:
        raise UnreadableError(f"{kv.key} is no record of a policy: {error}") from error


def _name(text: str) -> PolicyName | None:
    try:
        return policy_name(text)
    except ValueError:
        return None


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
