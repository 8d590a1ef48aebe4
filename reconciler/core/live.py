"""The live state: what etcd holds, decoded from one read at one store revision. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from immutables import Map

from reconciler.core.keyspace import Keyspace
from reconciler.core.model import DATA_FILE, REGO_FILE, BlobIds, PolicyName, policy_name
from reconciler.core.ports import KeyValue, Range, Read
from reconciler.core.records import Applied, Applying, Confirmed, Held, Meta, Record, Requested, Suspended

RecordT = TypeVar("RecordT", bound=Record)


@dataclass(frozen=True, slots=True)
class LivePolicy:
    """One policy in etcd. ``files`` has the mod_revision of each key that exists; ``meta_revision`` that of its meta.

    regops writes all keys of a policy and its meta in one transaction, so their mod_revisions are equal unless
    somebody edited by hand.
    """

    meta: Meta | None
    meta_revision: int
    files: Mapping[str, int]

    @property
    def etag(self) -> str | None:
        """ETag of the version that regops put live; ``None`` for keys that it never wrote."""
        return self.meta.etag if self.meta else None

    @property
    def blobs(self) -> BlobIds | None:
        """Blob ids of that version."""
        return BlobIds(self.meta.rego, self.meta.data) if self.meta and self.meta.rego else None

    def intact(self, blobs: BlobIds) -> bool:
        """Whether the keys are as regops wrote them for ``blobs``: nothing edited, missing or added by hand."""
        files, revision = self.files, self.meta_revision
        return (
            self.etag == blobs.etag
            and len(files) == (1 if blobs.data is None else 2)
            and files.get(REGO_FILE) == revision
            and (blobs.data is None or files.get(DATA_FILE) == revision)
        )


ABSENT = LivePolicy(meta=None, meta_revision=0, files={})


@dataclass(frozen=True, slots=True)
class LiveState:
    """Everything a pass needs to know of etcd, as of store revision ``revision``.

    ``policies`` has the policies that regops wrote, and those keys of well-formed names that it did not write (without
    meta; they are named in ``unwritten``); ``foreign`` the keys below the policies' prefix that are neither.
    ``held_revisions`` and ``*_revision`` are mod_revisions, 0 for absent keys.
    """

    revision: int = 0
    policies: Mapping[PolicyName, LivePolicy] = field(default_factory=dict)
    unwritten: frozenset[PolicyName] = frozenset()
    foreign: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)
    held_revisions: Mapping[str, int] = field(default_factory=dict)
    applied: Applied | None = None
    applied_revision: int = 0
    applying: Applying | None = None
    applying_revision: int = 0
    suspended: Suspended | None = None
    requested: Requested | None = None
    requested_revision: int = 0
    confirmed: Confirmed | None = None
    confirmed_revision: int = 0

    @property
    def count(self) -> int:
        """How many policies regops put live."""
        return len(self.policies) - len(self.unwritten)

    def written(self) -> dict[PolicyName, LivePolicy]:
        """The policies that regops put live."""
        return {name: policy for name, policy in self.policies.items() if policy.meta is not None}

    def after(self, changes: Mapping[PolicyName, LivePolicy | None], applied: Applied, revision: int) -> LiveState:
        """The state after an apply that changed these policies (``None``: deleted) and wrote ``applied`` last, at
        ``revision``. Costs what changed: the rest is shared with this state."""
        policies = (self.policies if isinstance(self.policies, Map) else Map(self.policies)).mutate()
        for name, policy in changes.items():
            if policy is not None:
                policies[name] = policy
            else:
                policies.pop(name, None)
        return replace(
            self,
            revision=revision,
            policies=policies.finish(),
            unwritten=self.unwritten.difference(changes),
            applied=applied,
            applied_revision=revision,
            applying=None,
            applying_revision=0,
        )


def live_ranges(keyspace: Keyspace) -> tuple[Range, ...]:
    """What to read, in the order that `decode_live` expects."""
    return (
        Range(keyspace.policies, prefix=True, keys_only=True),
        Range(keyspace.metas, prefix=True),
        Range(keyspace.helds, prefix=True),
        Range(keyspace.applied),
        Range(keyspace.applying),
        Range(keyspace.suspended),
        Range(keyspace.requested),
        Range(keyspace.confirmed),
    )


def decode_live(keyspace: Keyspace, read: Read) -> LiveState:
    """The state in the answer to `live_ranges`. A record that cannot be read counts as absent (and is overwritten)."""
    files, metas, helds, applied, applying, suspended, requested, confirmed = read.ranges
    policies, foreign = _policies(keyspace, files, metas)
    held = {kv.key.removeprefix(keyspace.helds): _decode(Held, kv) for kv in helds}
    return LiveState(
        revision=read.revision,
        policies=Map(policies),
        unwritten=frozenset(name for name, policy in policies.items() if policy.meta is None),
        foreign=foreign,
        held={name: record for name, record in held.items() if record is not None},
        held_revisions={kv.key.removeprefix(keyspace.helds): kv.mod_revision for kv in helds},
        applied=_first(Applied, applied),
        applied_revision=_revision(applied),
        applying=_first(Applying, applying) or (Applying("", "") if applying else None),
        applying_revision=_revision(applying),
        suspended=_first(Suspended, suspended) or (Suspended("", "", "") if suspended else None),
        requested=_first(Requested, requested),
        requested_revision=_revision(requested),
        confirmed=_first(Confirmed, confirmed),
        confirmed_revision=_revision(confirmed),
    )


def _policies(
    keyspace: Keyspace, files: Iterable[KeyValue], metas: Iterable[KeyValue]
) -> tuple[dict[PolicyName, LivePolicy], dict[str, int]]:
    foreign: dict[str, int] = {}
    found: dict[PolicyName, dict[str, int]] = {}
    for kv in files:
        place = keyspace.policy_of(kv.key)
        if place is None:
            foreign[kv.key] = kv.mod_revision
        else:
            found.setdefault(place[0], {})[place[1]] = kv.mod_revision
    policies = {name: LivePolicy(None, 0, revisions) for name, revisions in found.items()}
    for kv in metas:
        try:
            name = policy_name(kv.key.removeprefix(keyspace.metas))
        except ValueError:
            continue
        policies[name] = LivePolicy(_decode(Meta, kv), kv.mod_revision, found.get(name, {}))
    return policies, foreign


def _first(kind: type[RecordT], kvs: tuple[KeyValue, ...]) -> RecordT | None:
    return _decode(kind, kvs[0]) if kvs else None


def _decode(kind: type[RecordT], kv: KeyValue) -> RecordT | None:
    try:
        return kind.decode(kv.value)
    except (ValueError, TypeError, KeyError):
        return None


def _revision(kvs: tuple[KeyValue, ...]) -> int:
    return kvs[0].mod_revision if kvs else 0
