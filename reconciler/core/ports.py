"""What the engine needs from the outside, in its own words. Adapters implement these; fakes in ``tests/fakes`` too,
and one contract suite (``tests/contract``) runs over both.

Every method may raise `TransientError` (and only its subclasses where noted) when the other side is away, and
`StalledError` when trying again cannot help. No method retries a write. Every wait has a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from reconciler.core.model import BlobIds, CommitInfo, Content, PolicyName, Tree, Verdict

# --- Git -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PastVersion:
    """One version of one policy in the branch's first-parent history (newest first when listed)."""

    commit: str
    blobs: BlobIds


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """What one commit made of one policy: its new blobs, or ``None`` where it deleted the policy, or left something in
    its place that is no policy; ``fault`` says then what is wrong with it."""

    blobs: BlobIds | None
    fault: str = ""

    @property
    def deleted(self) -> bool:
        """Whether the policy is no more."""
        return self.blobs is None and not self.fault

    @property
    def etag(self) -> str | None:
        """The ETag that it has since; ``None`` where there is no policy."""
        return None if self.blobs is None else self.blobs.etag


@dataclass(frozen=True, slots=True)
class BranchCommit:
    """One commit of a first-parent history, and what it changed against its first parent: a merge counts once."""

    info: CommitInfo
    changes: Mapping[PolicyName, PolicyChange]
    trailers: Mapping[str, str] = field(default_factory=dict)
    """Those that regops wrote; empty in anybody else's commit, whatever its message says."""
    committer: str = ""
    """``Name <email>``."""


class Source(Protocol):
    """A branch of a Git repository, read from a bare mirror."""

    async def fetch(self, *, told: bool = True) -> str:
        """Bring the branch's head into the mirror and return its commit id (40 hex). ``told``: somebody says that it
        has moved, so that looking first whether it has would only take longer.

        Raises `TransientError` (reasons ``FetchFailed``, ``FetchTimeout``, ``DiskFull``) or `StalledError` (reasons
        ``NoCommit`` for a repository without a commit, ``BranchNotFound``, ``AuthenticationFailed``,
        ``RepositoryNotFound``, ``UnsupportedObjectFormat``). A corrupt mirror is thrown away and cloned again.
        """
        ...

    async def tree(self, commit: str, since: str | None = None) -> Tree:
        """The desired state of one commit: names, modes and ids only. ``since``: another commit, from whose state it is
        to tell what changed, if that can be told without reading everything (see `Tree`)."""
        ...

    async def read(self, blobs: BlobIds) -> Content:
        """The bytes behind two blob ids. `StalledError` when a blob exceeds the size limit is *not* raised here:
        see `sizes`."""
        ...

    async def sizes(self, blobs: BlobIds) -> tuple[int, int]:
        """Bytes of rego and data (0 where there is none), without reading them."""
        ...

    async def contents(self, wanted: Sequence[BlobIds | None], *, limit: int, budget: int) -> Sequence[Content | None]:
        """The bytes behind the first of these, at least one, at once: as many as reach ``budget`` bytes. ``None`` where
        ``None`` stands, or what has more than ``limit`` bytes."""
        ...

    async def info(self, commit: str) -> CommitInfo:
        """Author, time and subject."""
        ...

    async def parent(self, commit: str) -> str | None:
        """The first parent, ``None`` for the first commit of the history."""
        ...

    async def last_change(self, commit: str, policy: PolicyName) -> CommitInfo:
        """The newest commit in the first-parent history of ``commit`` that changed the policy."""
        ...

    async def last_changes(self, commit: str, policies: Sequence[PolicyName]) -> Mapping[PolicyName, CommitInfo]:
        """`last_change` of each of these, found in one walk."""
        ...

    async def height(self, commit: str) -> int:
        """Number of commits reachable from ``commit``, itself included."""
        ...

    async def contains(self, commit: str, ancestor: str) -> bool:
        """Whether ``ancestor`` is ``commit`` or reachable from it; ``False`` also when it is not in the mirror."""
        ...

    async def find(self, text: str) -> str | None:
        """The whole id of the commit in the mirror that ``text``, 4 to 40 hex digits, begins; ``None`` where none does,
        or several do."""
        ...

    async def past_versions(self, commit: str, policy: PolicyName) -> Sequence[PastVersion]:
        """Distinct earlier versions of a policy along the first-parent history, newest first, bounded (100)."""
        ...

    async def line(self, commit: str, known: Container[str] = ()) -> Sequence[str]:
        """The first-parent history of ``commit``, oldest first, as far back as the newest commit that is ``known``,
        without that; the whole history when none is."""
        ...

    async def branch_commits(
        self, commits: Sequence[str], policy: PolicyName | None = None
    ) -> Mapping[str, BranchCommit]:
        """Each of these commits, with what it changed (of one policy only, where one is named). A commit that the
        mirror does not have is left out: the branch may have been rewritten since it was named."""
        ...


# --- Git, writing ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """An author of a commit."""

    name: str
    email: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One commit to make: one policy's files replaced, or its folder removed (``content`` is ``None``).

    Files of the folder that are not published (tests, a README) stay as they are when it is replaced. ``trailers``
    are written at the end of the message as ``Name: value`` lines, in this order; their values have no line breaks.
    """

    policy: PolicyName
    content: Content | None
    author: Identity
    subject: str
    trailers: tuple[tuple[str, str], ...] = ()


class PushResult(StrEnum):
    """What became of a push; only `UNKNOWN` leaves a doubt."""

    ACCEPTED = "accepted"
    """The branch is at the tip."""
    MOVED = "moved"
    """Nothing was pushed: the branch was not at the base any more."""
    DECLINED = "declined"
    """Nothing was pushed: the remote's rules or hooks refused it; ``message`` has its words."""
    UNKNOWN = "unknown"
    """It was sent and the answer did not come in time."""


@dataclass(frozen=True, slots=True)
class Push:
    """The outcome of a push, and what the remote said (cleaned of control characters and credentials)."""

    result: PushResult
    message: str = ""


class Branch(Protocol):
    """The write side of the branch that a `Source` reads, on the same mirror: commits made here can be read there
    before anybody else has them."""

    async def head(self) -> str | None:
        """The branch's head as far as this mirror knows it, without asking the remote: the last one that was fetched
        or accepted in a push. ``None`` when nothing was ever fetched."""
        ...

    async def commit(self, parent: str, edits: Sequence[Edit]) -> tuple[str, ...]:
        """Make a commit of each edit, the first on ``parent``, each other on the one before, in the mirror only, and
        return their ids. No reference moves.

        The committer is regops. Raises `StalledError` (``NothingToCommit``) when a tree would not change.
        """
        ...

    async def push(self, base: str, tip: str) -> Push:
        """Move the remote branch from exactly ``base`` to ``tip``, a descendant of it, or do nothing.

        Never repeated here. Pushing the same pair again is safe: it is `ACCEPTED` when ``tip`` is there already.
        Raises `TransientError` when it surely was not sent (reasons ``PushFailed``, ``DiskFull``) and `StalledError`
        (``AuthenticationFailed``, ``RepositoryNotFound``, ``PushNotPermitted``) when trying again cannot help.
        """
        ...

    async def trailers(self, head: str, name: str, *, since: float) -> Mapping[str, str]:
        """The values of one trailer → the newest commit that carries it, along the first-parent history of ``head``,
        as far back as commits younger than ``since`` (seconds since the epoch). Only commits whose committer is regops
        count: what others write into a message proves nothing."""
        ...


# --- OPA as the compiler ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy to be judged: its name and exact bytes."""

    policy: PolicyName
    content: Content


class Compiler(Protocol):
    """A private OPA that says whether policies would load, and whether they keep to their namespace."""

    async def check(self) -> None:
        """Raise `StalledError` or `TransientError` when this OPA cannot be used: missing, too old, or no OPA."""
        ...

    async def version(self) -> str:
        """The OPA's version, as it says it (``1.22.2``)."""
        ...

    async def validate(
        self, candidates: Sequence[Candidate], platform: Candidate | None
    ) -> Mapping[PolicyName, Verdict]:
        """Judge each candidate *with* the platform that will be live (``None`` when there is none), independently of
        every other candidate. Covers grammar, limits, JSON, Rego (v1, else v0), data clashes, namespace and refused
        builtins. A platform is judged by passing it as a candidate with ``platform=None``.

        Raises `TransientError` (reason ``CompilerUnavailable``) when the OPA is away; never for a bad policy.
        """
        ...

    async def together(self, candidates: Sequence[Candidate]) -> Mapping[PolicyName, Verdict]:
        """Judge all as the one set that they would be live as: references between them resolve. Those that are left
        when every invalid one is taken out compile together. Raises the same."""
        ...


# --- etcd ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one store revision. A deleted key in a watch event has ``value=b""`` and ``create_revision=0``."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """A key, or every key below a prefix. ``keys_only`` leaves the values out (``b""``)."""

    key: str
    prefix: bool = False
    keys_only: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """The answer to several ranges in one transaction: ``ranges[i]`` belongs to the i-th `Range`, sorted by key."""

    revision: int
    ranges: tuple[tuple[KeyValue, ...], ...]
    raft_term: int = 0


class Target(StrEnum):
    """Which counter of a key a `Compare` looks at; both are 0 for an absent key."""

    CREATE = "create_revision"
    MOD = "mod_revision"


@dataclass(frozen=True, slots=True)
class Compare:
    """Equality of one counter of one key."""

    key: str
    target: Target
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; ``lease`` 0 is none."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key."""

    key: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """All compares hold → all operations, at one revision; otherwise nothing."""

    compares: tuple[Compare, ...]
    operations: tuple[Put | Delete, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the compares held, and the store revision of the answer (of the write, when they held)."""

    succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; ``deleted`` or put. ``kv.mod_revision`` is the store revision of the change."""

    kv: KeyValue
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events of one or more *complete* revisions, oldest first. An empty batch is a sign of life: everything up to
    and including ``revision`` has been delivered.

    ``resumed``: the connection was lost before this batch. Nothing is missing of the store that was watched; but a
    store that was restored from before, and has written as much since, cannot be told from it by any counter. Whoever
    must not miss that looks again.
    """

    revision: int
    events: tuple[Event, ...] = ()
    resumed: bool = False


class KeyValueStore(Protocol):
    """etcd's v3 API, as far as regops needs it."""

    async def read(self, *ranges: Range, revision: int = 0) -> Read:
        """All ranges at one revision (0: now, linearizable). `StoreError`, `CompactedError`, and `DivergedError`, also
        for a revision that the store has not reached: whoever names one has seen it."""
        ...

    async def commit(self, transaction: Transaction) -> Outcome:
        """Send once, never again. `StoreError` when it surely did not happen, `UnknownOutcomeError` when it may have,
        `StalledError` (``TooLarge``, ``NoSpace``, ``PermissionDenied``) when the server refuses it."""
        ...

    def watch(self, *ranges: Range, from_revision: int) -> AbstractAsyncContextManager[AsyncIterator[WatchBatch]]:
        """Events of these ranges from ``from_revision`` on, resumed across reconnects from the last delivered one, no
        gap and no repeat. Ends only by raising: `CompactedError` (read again), `DivergedError` (the store went back),
        `StalledError` (permission). Sends an empty batch at least every few seconds while connected; while it cannot
        connect it sends nothing and keeps trying (the consumer decides by its own clock when that is stale).
        Cancelling the wait for a batch ends the watch."""
        ...

    async def grant(self, ttl: int) -> int:
        """A lease of ``ttl`` seconds; its id."""
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew once; the remaining seconds, 0 when the lease is gone."""
        ...

    async def revoke(self, lease: int) -> None:
        """End the lease and delete its keys."""
        ...


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of leadership: the leader key and its create_revision, compared in every transaction."""

    key: str
    create_revision: int

    def compare(self) -> Compare:
        """The compare that a deposed leader's transaction fails."""
        return Compare(self.key, Target.CREATE, self.create_revision)


@dataclass(frozen=True, slots=True)
class StoreWarning:
    """Something about etcd that a person should see to. ``kind`` is a metric label: ``member``, ``request_limit``,
    ``size`` or ``history``; ``text`` names the member and the remedy."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """What a server start looks at, of all members: the oldest version, the largest database, the smallest quota
    (etcd's default where it tells none, 0 where there is none or it must be another one). Sizes in bytes; ``alarms`` in
    a person's words."""

    version: str
    db_size: int
    quota: int = 0
    alarms: tuple[str, ...] = ()
    warnings: tuple[StoreWarning, ...] = ()
