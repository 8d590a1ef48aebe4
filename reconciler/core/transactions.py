"""From a plan to etcd transactions. Pure: what is compared, what is written, and how much fits into one transaction.

A policy's keys always share one transaction. etcd takes at most 128 operations and 128 compares in one, and
``--max-request-bytes`` bytes (regops asks for 2 MiB, since 512 KiB of Rego and 1 MiB of data exceed the default).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reconciler.core.keyspace import Keyspace
from reconciler.core.live import LiveState
from reconciler.core.model import DATA_FILE, REGO_FILE, Content
from reconciler.core.plan import Change, Operation
from reconciler.core.ports import Compare, Delete, Fence, Put, Target, Transaction
from reconciler.core.records import Applied, Applying, Held, Meta

MAX_OPERATIONS = 128 - 8
"""Operations (and compares) of policies in one transaction: etcd's limit less what the frame adds."""
MAX_BYTES = 2 * 1024 * 1024 - 64 * 1024
"""Bytes of keys and values in one transaction: the request limit less what the frame and the encoding add."""


@dataclass(frozen=True, slots=True)
class Step:
    """Compares and operations that must not be torn apart."""

    compares: tuple[Compare, ...] = ()
    operations: tuple[Put | Delete, ...] = ()
    removes: bool = False
    """Whether it takes a policy out of etcd: that comes last, when all else has succeeded."""

    @property
    def size(self) -> int:
        """Estimated bytes on the wire."""
        size = 24 * (len(self.compares) + len(self.operations))
        for compare in self.compares:
            size += len(compare.key)
        for operation in self.operations:
            size += len(operation.key) + (len(operation.value) if isinstance(operation, Put) else 0)
        return size


def change_step(keyspace: Keyspace, change: Change, content: Content | None, meta: Meta | None) -> Step:
    """What one change compares and writes; ``content`` and ``meta`` are the target's, ``None`` for a deletion."""
    keys = {REGO_FILE: keyspace.rego(change.policy), DATA_FILE: keyspace.data(change.policy)}
    live = change.live
    compares = [Compare(key, Target.MOD, live.files.get(file, 0)) for file, key in keys.items()]
    compares.append(Compare(keyspace.meta(change.policy), Target.MOD, live.meta_revision))
    if change.operation is Operation.DELETE:
        gone: list[Put | Delete] = [Delete(keys[file]) for file in live.files]
        return Step(tuple(compares), (*gone, Delete(keyspace.meta(change.policy))), removes=True)
    if content is None or meta is None:
        raise ValueError(f"{change.policy}: a {change.operation} needs content and meta")
    operations: list[Put | Delete] = [Put(keys[REGO_FILE], content.rego)]
    if content.data is not None:
        operations.append(Put(keys[DATA_FILE], content.data))
    elif DATA_FILE in live.files:
        operations.append(Delete(keys[DATA_FILE]))
    return Step(tuple(compares), (*operations, Put(keyspace.meta(change.policy), meta.encode())))


def held_steps(keyspace: Keyspace, held: Mapping[str, Held], live: LiveState) -> list[Step]:
    """The steps that make the ``held/`` records equal to ``held``; none where they are already."""
    steps = []
    for name in sorted(held.keys() | live.held_revisions.keys()):
        wanted, found = held.get(name), live.held.get(name)
        if wanted is not None and wanted == found:
            continue
        key = keyspace.held(name)
        write: Put | Delete = Delete(key) if wanted is None else Put(key, wanted.encode())
        steps.append(Step((Compare(key, Target.MOD, live.held_revisions.get(name, 0)),), (write,)))
    return steps


class Packer:
    """Cuts steps, in their order, into as few transactions as the limits allow, while they come."""

    def __init__(self, *, max_operations: int = MAX_OPERATIONS, max_bytes: int = MAX_BYTES) -> None:
        self._max_operations = max_operations
        self._max_bytes = max_bytes
        self._batch: list[Step] = []
        self._operations = self._size = 0

    def add(self, step: Step) -> tuple[Step, ...] | None:
        """The batch that is full without this step, if it is."""
        width, size, full = max(len(step.compares), len(step.operations)), step.size, None
        if self._batch and (self._operations + width > self._max_operations or self._size + size > self._max_bytes):
            full = self.rest()
        self._batch.append(step)
        self._operations += width
        self._size += size
        return full

    def rest(self) -> tuple[Step, ...]:
        """What is left, and the packer is empty."""
        batch = tuple(self._batch)
        self._batch, self._operations, self._size = [], 0, 0
        return batch


def pack(
    steps: Iterable[Step], *, max_operations: int = MAX_OPERATIONS, max_bytes: int = MAX_BYTES
) -> list[tuple[Step, ...]]:
    """All steps in as few transactions as the limits allow; one empty one for no steps."""
    packer = Packer(max_operations=max_operations, max_bytes=max_bytes)
    batches = [batch for step in steps if (batch := packer.add(step))]
    return [*batches, packer.rest()]


def join(steps: Iterable[Step]) -> Step:
    """All steps as one."""
    steps = tuple(steps)
    return Step(
        tuple(compare for step in steps for compare in step.compares),
        tuple(operation for step in steps for operation in step.operations),
        any(step.removes for step in steps),
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """What every transaction of one apply has in common: it fails for a deposed leader, an older plan, a suspension."""

    keyspace: Keyspace
    fence: Fence
    applied: Applied
    applied_revision: int
    applying_revision: int

    def only(self, step: Step) -> Transaction:
        """The whole apply in one transaction."""
        return self._transaction(step, self.applying_revision, [self._put_applied(), *self._end()])

    def first(self, step: Step) -> Transaction:
        """The first of several: says that an apply is under way."""
        marker = Applying(self.applied.commit, self.applied.at)
        return self._transaction(step, self.applying_revision, [Put(self.keyspace.applying, marker.encode())])

    def middle(self, step: Step, applying_revision: int) -> Transaction:
        """One between; ``applying_revision`` is that of the marker that `first` wrote."""
        return self._transaction(step, applying_revision, [])

    def last(self, step: Step, applying_revision: int) -> Transaction:
        """The last of several: the apply is whole."""
        end = Delete(self.keyspace.applying)
        return self._transaction(step, applying_revision, [self._put_applied(), end])

    def _transaction(self, step: Step, applying_revision: int, more: list[Put | Delete]) -> Transaction:
        compares = (
            self.fence.compare(),
            Compare(self.keyspace.applied, Target.MOD, self.applied_revision),
            Compare(self.keyspace.suspended, Target.CREATE, 0),
            Compare(self.keyspace.applying, Target.MOD, applying_revision),
        )
        return Transaction(compares + step.compares, (*step.operations, *more))

    def _put_applied(self) -> Put:
        return Put(self.keyspace.applied, self.applied.encode())

    def _end(self) -> list[Put | Delete]:
        return [Delete(self.keyspace.applying)] if self.applying_revision else []
