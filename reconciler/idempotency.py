"""The same idempotency key gives the same answer: claims and answers in etcd, shared by all replicas.

A claim hangs on its replica's short lease, so that a replica that dies frees it; an answer lives for a day and is
stored only over the very claim it belongs to. What etcd has lost is found in the branch (`reconciler.edits.KeyHash`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any, ClassVar, Final, NoReturn

from reconciler.core.errors import RefusalError, RegopsError, TransientError, UnknownOutcomeError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Compare, Delete, KeyValue, KeyValueStore, Range, Target, Transaction
from reconciler.core.records import Record
from reconciler.edits import KeyHash, KeyReusedError
from reconciler.leases import LEASE_SECONDS, Leases

log = logging.getLogger(__name__)

ANSWER_BYTES: Final = 4096
"""The largest answer that is kept."""
KEYS_PER_CALLER: Final = 10_000
TIDY_SECONDS: Final = 1.0
"""How often a claim is looked for that could not be given back."""
_COUNT_LIFE: Final = 60.0
_POLL_SECONDS: Final = 0.05


class TooManyKeysError(RefusalError):
    """The caller has used up the idempotency keys of a day."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is given again: status, body and the headers that belong to it."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slot(Record):
    """``idempotency/<caller>/<key>``: who asks what; without ``answer`` it is still running."""

    optional: ClassVar[frozenset[str]] = frozenset({"answer"})

    request: str
    replica: str
    answer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a request; ends with `Ledger.finish` or `Ledger.abandon`."""

    key: str
    revision: int
    request: str


@dataclass(frozen=True, slots=True)
class KeyOf:
    """An idempotency key of a caller, for one method and path, and the request that it stands for."""

    caller: str
    hash: KeyHash

    @classmethod
    def of(cls, caller: str, key: str, method: str, path: str, request: bytes) -> KeyOf:
        """Nothing of the key, the caller or the request can be read from the hashes."""
        scope = _digest(caller, key, method, path)[:40]
        return cls(_digest(caller)[:32], KeyHash(scope, hashlib.sha256(request).hexdigest()[:24]))


class Ledger:
    """Claims and answers. Run `run` as a task: it keeps this replica's lease alive."""

    def __init__(
        self, store: KeyValueStore, keyspace: Keyspace, replica: str, *, clock: Callable[[], float] = time
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._replica = replica
        self._leases = Leases(store, clock=clock)
        self._counts: dict[str, tuple[float, int]] = {}
        self._under_way: Counter[str] = Counter()
        self._loose: dict[str, float] = {}

    async def run(self) -> NoReturn:
        """Renew the lease until cancelled. A lost one is replaced when the next claim asks for it."""
        renewed = monotonic()
        try:
            while True:
                await asyncio.sleep(TIDY_SECONDS)
                await self._tidy()
                if monotonic() - renewed >= LEASE_SECONDS / 3:
                    renewed = monotonic()
                    await self._leases.renew()
        finally:
            await self._leases.revoke()

    async def begin(self, key: KeyOf, *, patience: float) -> Claim | Answer:
        """The right to run, or the answer that was given; waits up to ``patience`` seconds for one under way.

        Raises `KeyReusedError` for another request, `TooManyKeysError`, and `TransientError` when etcd is away or the
        first one is still running.
        """
        name = self._keyspace.idempotency(key.caller, key.hash.scope)
        deadline = monotonic() + patience
        while True:
            kvs = (await self._store.read(Range(name))).ranges[0]
            slot = _slot(kvs[0]) if kvs else None
            if slot is None:
                claim = await self._claim(key, name, kvs[0].mod_revision if kvs else 0)
                if claim is not None:
                    return claim
            elif slot.request != key.hash.request:
                raise KeyReusedError("this idempotency key stands for another request: use a new one")
            elif slot.answer is not None:
                return Answer(**slot.answer)
            elif monotonic() >= deadline:
                raise TransientError("the first request with this key is still running", reason="StillRunning")
            else:
                await asyncio.sleep(_POLL_SECONDS)

    async def finish(self, claim: Claim, answer: Answer) -> bool:
        """Keep the answer for a day. ``False`` when it could not be kept: the branch's trailers answer then."""
        document = {"status": answer.status, "body": answer.body, "headers": dict(answer.headers)}
        value = Slot(claim.request, self._replica, document).encode()
        compare = Compare(claim.key, Target.MOD, claim.revision)
        try:
            kept = (await self._leases.put_answer(compare, value)).succeeded
        except RegopsError as error:
            log.warning("answer not kept", extra={"reason": error.reason})
            return False
        if kept:
            self._ended(claim.key)
        return kept

    async def abandon(self, claim: Claim) -> None:
        """Free the key: the next request with it runs. Where etcd is away, soon after it is back."""
        compare = Compare(claim.key, Target.MOD, claim.revision)
        try:
            await self._store.commit(Transaction((compare,), (Delete(claim.key),)))
        except RegopsError as error:
            log.warning("claim not given back yet", extra={"reason": error.reason})
            self._loosen(claim.key)
        finally:
            self._ended(claim.key)

    async def _claim(self, key: KeyOf, name: str, revision: int) -> Claim | None:
        await self._count(key.caller)
        compare = Compare(name, Target.MOD, revision)
        self._under_way[name] += 1
        outcome = None
        try:
            outcome = await self._leases.put_claim(compare, Slot(key.hash.request, self._replica).encode())
        except (UnknownOutcomeError, asyncio.CancelledError):
            self._loosen(name)
            raise
        finally:
            if outcome is None or not outcome.succeeded:
                self._ended(name)
        return Claim(name, outcome.revision, key.hash.request) if outcome.succeeded else None

    def _ended(self, name: str) -> None:
        self._under_way -= Counter((name,))

    def _loosen(self, name: str) -> None:
        """A claim may be there that nobody runs for, on a lease that this replica keeps alive."""
        self._loose[name] = monotonic() + LEASE_SECONDS

    async def _tidy(self) -> None:
        """Give such claims back. Each is looked for until it surely cannot appear any more."""
        for name, until in list(self._loose.items()):
            if self._under_way[name]:
                continue
            try:
                await self._give_back(name)
            except RegopsError as error:
                log.info("claim not given back yet", extra={"reason": error.reason})
                return
            if monotonic() >= until:
                del self._loose[name]

    async def _give_back(self, name: str) -> None:
        kvs = (await self._store.read(Range(name))).ranges[0]
        slot = _slot(kvs[0]) if kvs else None
        if slot is not None and slot.answer is None and slot.replica == self._replica and not self._under_way[name]:
            compare = Compare(name, Target.MOD, kvs[0].mod_revision)
            await self._store.commit(Transaction((compare,), (Delete(name),)))

    async def _count(self, caller: str) -> None:
        """Refuse a caller with too many keys. Counted in etcd once a minute, and here in between."""
        counted_at, count = self._counts.get(caller, (-_COUNT_LIFE, 0))
        if monotonic() - counted_at >= _COUNT_LIFE:
            prefix = Range(self._keyspace.idempotency(caller), prefix=True, keys_only=True)
            counted_at, count = monotonic(), len((await self._store.read(prefix)).ranges[0])
            self._counts = {c: n for c, n in self._counts.items() if counted_at - n[0] < _COUNT_LIFE}
        if count >= KEYS_PER_CALLER:
            raise TooManyKeysError(f"this caller has used {KEYS_PER_CALLER} idempotency keys within a day")
        self._counts[caller] = (counted_at, count + 1)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def _slot(kv: KeyValue) -> Slot | None:
    try:
        return Slot.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        return None
