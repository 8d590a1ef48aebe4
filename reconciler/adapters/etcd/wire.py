"""The port's words ↔ etcd's messages. Keys that are no UTF-8 survive as surrogates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reconciler.adapters.etcd._pb import etcd_pb2 as pb
from reconciler.core.keyspace import prefix_end
from reconciler.core.ports import Compare, Delete, Event, KeyValue, Put, Range, Read, Target, Transaction


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest that is known of the store: which cluster, and how far it is."""

    cluster: int = 0
    term: int = 0
    revision: int = 0

    @classmethod
    def of(cls, header: Any) -> Seen:
        """What an answer's header says."""
        return cls(header.cluster_id, header.raft_term, header.revision)

    def is_behind(self, other: Seen) -> bool:
        """Whether ``other``, asked later, shows another cluster or an older state. ``Seen()`` never is."""
        another = bool(self.cluster) and other.cluster != self.cluster
        return another or other.term < self.term or other.revision < self.revision

    def joined(self, other: Seen) -> Seen:
        """The newer of both, of one cluster; counters apart, since members learn of a term at different times."""
        if self.cluster and other.cluster != self.cluster:
            return self
        return Seen(other.cluster, max(self.term, other.term), max(self.revision, other.revision))


def key_bytes(key: str) -> bytes:
    """The key as etcd has it."""
    return key.encode("utf-8", "surrogateescape")


def bounds(each: Range) -> tuple[bytes, bytes]:
    """First key, and the key after the last."""
    end = prefix_end(each.key) if each.prefix else f"{each.key}\0"
    return key_bytes(each.key), key_bytes(end)


def key_value(kv: Any) -> KeyValue:
    """A key of etcd's."""
    key = kv.key.decode("utf-8", "surrogateescape")
    return KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def event(changed: Any) -> Event:
    """An event of a watch."""
    return Event(key_value(changed.kv), deleted=changed.type == changed.DELETE)


def reading(ranges: Sequence[Range], revision: int = 0) -> Any:
    """A transaction that only reads: linearizable, and all ranges at one revision."""
    return pb.TxnRequest(success=[pb.RequestOp(request_range=_range(each, revision)) for each in ranges])


def read(response: Any) -> Read:
    """The answer to `reading`."""
    parts = tuple(tuple(map(key_value, part.response_range.kvs)) for part in response.responses)
    return Read(response.header.revision, parts, response.header.raft_term)


def writing(transaction: Transaction) -> Any:
    """A transaction of the port."""
    compares = list(map(_compare, transaction.compares))
    return pb.TxnRequest(compare=compares, success=list(map(_operation, transaction.operations)))


def _range(each: Range, revision: int) -> Any:
    key, end = bounds(each)
    return pb.RangeRequest(key=key, range_end=end if each.prefix else b"", revision=revision, keys_only=each.keys_only)


def _compare(compare: Compare) -> Any:
    key, revision = key_bytes(compare.key), compare.revision
    if compare.target is Target.CREATE:
        return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key, create_revision=revision)
    return pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key, mod_revision=revision)


def _operation(operation: Put | Delete) -> Any:
    key = key_bytes(operation.key)
    if isinstance(operation, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=key, value=operation.value, lease=operation.lease))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
