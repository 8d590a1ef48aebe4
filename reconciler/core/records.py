"""The JSON records that regops keeps in etcd under its own prefix, and how they are written and read.

Reading is forgiving towards unknown fields (a newer replica may write them) and strict towards missing ones: a record
that cannot be read raises `ValueError`, and the caller treats the key as absent or foreign, never as empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from sys import intern
from typing import Any, ClassVar, Self

from reconciler.core.model import FileError

_NAMES: dict[type, frozenset[str]] = {}
_SHARED = ("commit", "actor", "at", "data")
_string = json.encoder.encode_basestring
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
CHANGED_LIMIT = 100
"""Above so many changed policies, `Applied.changed` is left out and agents read everything in their scope."""
HELD_ERRORS_LIMIT = 20
"""At most so many errors are kept in one `Held` record."""


@dataclass(frozen=True, slots=True)
class Record:
    """Base: one JSON object per key, keys sorted, UTF-8."""

    optional: ClassVar[frozenset[str]] = frozenset()

    def encode(self) -> bytes:
        """The bytes to put into etcd."""
        return _encode(asdict(self))

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """The record in these bytes; `ValueError` when they are not one."""
        document = json.loads(value)
        if not isinstance(document, dict):
            raise ValueError(f"{cls.__name__} record is no JSON object")  # noqa: TRY004 one error class for callers
        known = _names(cls)
        missing = known - document.keys() - cls.optional
        if missing:
            raise ValueError(f"{cls.__name__} record lacks {', '.join(sorted(missing))}")
        return cls._build({name: value for name, value in document.items() if name in known})

    @classmethod
    def _build(cls, document: dict[str, Any]) -> Self:
        return cls(**document)


@dataclass(frozen=True, slots=True)
class Applied(Record):
    """``applied``: the commit that etcd equals, but for what is held.

    ``id`` is random; ``previous`` the id before (so that a mirror knows that it missed nothing); ``height`` the number
    of commits reachable from ``commit``; ``rewrites`` how often a rewritten history was followed; ``changed`` the
    policies that this apply changed (``None`` when more than `CHANGED_LIMIT`, or not known); ``digest`` that of all
    live ETags, for people to compare (`reconciler.core.digest`; earlier releases gave another); ``at``, RFC 3339 UTC,
    when this commit with this content went live (a new leader writes the record anew, and keeps it); ``trace`` the
    trace context of the apply (W3C), left out where nobody traces.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"previous", "changed", "trace"})

    id: str
    commit: str
    height: int
    rewrites: int
    digest: str
    at: str
    previous: str | None = None
    changed: tuple[str, ...] | None = None
    trace: str | None = None

    def encode(self) -> bytes:
        """See `Record.encode`."""
        whole = super(Applied, self).encode()
        return whole if self.trace is not None else whole.replace(b',"trace":null', b"")

    @classmethod
    def _build(cls, document: dict[str, Any]) -> Self:
        changed = document.get("changed")
        return cls(**{**document, "changed": None if changed is None else tuple(changed)})

    @property
    def order(self) -> tuple[int, int]:
        """What must never go back at an agent: (rewrites, height)."""
        return (self.rewrites, self.height)


@dataclass(frozen=True, slots=True)
class Applying(Record):
    """``applying``: an apply of ``commit`` that spans transactions is under way (or was broken off)."""

    commit: str
    at: str


@dataclass(frozen=True, slots=True)
class Meta(Record):
    """``meta/<policy>``: what is live. Written in the same transaction as the policy's keys, so a policy key whose
    mod_revision differs from this record's was edited by hand. ``rego_version`` is 0 or 1; ``rego`` and ``data`` are
    the Git blob ids that the ETag is made of.
    """

    optional: ClassVar[frozenset[str]] = frozenset({"rego_version", "rego", "data"})

    etag: str
    commit: str
    actor: str
    at: str
    rego_version: int = 1
    rego: str = ""
    data: str | None = None

    @classmethod
    def _build(cls, document: dict[str, Any]) -> Self:
        """Most policies have these in common with others: each is in memory once. `ValueError` for what we never wrote:
        such a record is as good as none, and is written anew."""
        texts = (document.get(name, "") for name in ("etag", "commit", "actor", "at", "rego"))
        data = document.get("data")
        if not all(isinstance(text, str) for text in (*texts, "" if data is None else data)):
            raise ValueError("a field that is a text has another value")
        if document.get("rego_version", 1) not in {0, 1}:
            raise ValueError("rego_version is neither 0 nor 1")
        shared = {name: intern(value) for name in _SHARED if isinstance(value := document.get(name), str)}
        return cls(**document | shared)

    def encode(self) -> bytes:
        """See `Record.encode`, to the byte: there are as many of these as policies, and all their values are plain."""
        data = "null" if self.data is None else _string(self.data)
        return (
            f'{{"actor":{_string(self.actor)},"at":{_string(self.at)},"commit":{_string(self.commit)},"data":{data},'
            f'"etag":{_string(self.etag)},"rego":{_string(self.rego)},"rego_version":{self.rego_version}}}'
        ).encode()


@dataclass(frozen=True, slots=True)
class Held(Record):
    """``held/<policy>``: why the version of ``commit`` is not live. ``reason`` is PascalCase."""

    commit: str
    reason: str
    errors: tuple[FileError, ...]

    @classmethod
    def _build(cls, document: dict[str, Any]) -> Self:
        errors = tuple(FileError(**_only(error)) for error in document["errors"])
        return cls(commit=document["commit"], reason=document["reason"], errors=errors)


@dataclass(frozen=True, slots=True)
class Suspended(Record):
    """``suspended``: who stopped the applying, why and when."""

    by: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True)
class Requested(Record):
    """``requested``: an opaque 'reconcile now' token; ``remove_foreign`` asks the next pass that applies to delete
    foreign keys, and is taken out of the record by it."""

    optional: ClassVar[frozenset[str]] = frozenset({"remove_foreign", "by"})

    token: str
    by: str = ""
    remove_foreign: bool = False


@dataclass(frozen=True, slots=True)
class Confirmed(Record):
    """``confirmed``: a person agreed to these deletions at ``commit`` and at later heads that contain it."""

    commit: str
    deletions: tuple[str, ...]
    by: str
    at: str

    @classmethod
    def _build(cls, document: dict[str, Any]) -> Self:
        return cls(**{**document, "deletions": tuple(document["deletions"])})


@dataclass(frozen=True, slots=True)
class Receipt(Record):
    """``agents/<dc>/<id>``: what one OPA proves to enforce.

    ``enforced_revision`` is the commit (40 hex) whose content the OPA's latest poll carried, ``none`` for the empty
    bundle, or ``null`` while nothing is proven; ``digest`` the ETag that this poll carried; ``scope`` ``all``,
    ``projects:a,b`` or ``shard:2/8``; ``error`` OPA's own refusal or ``null``; ``stale`` whether the agent could not
    reach etcd when it served; ``seen_at`` when the agent wrote it, which it does again every few minutes
    (`reconciler.core.silence`). ``live_digest`` is `Applied.digest` of what was live when that content was: one commit
    may be applied more than once with another content, when what was held of it goes live later. Agents of earlier
    releases do not tell it.
    """

    optional: ClassVar[frozenset[str]] = frozenset(
        {"opa_version", "error", "stale", "opa", "stages", "digest", "seen_at", "live_digest"}
    )

    id: str
    datacentre: str
    scope: str
    enforced_revision: str | None
    since: str
    opa_version: str | None = None
    opa: str | None = None
    error: str | None = None
    stale: bool = False
    stages: Mapping[str, str] | None = None
    digest: str | None = None
    seen_at: str | None = None
    live_digest: str | None = None

    def proves(self, commit: str | None, digest: str | None) -> bool:
        """Whether its OPA enforces this commit with this content (`Applied.digest`); by the commit alone where one of
        the two does not tell its digest."""
        same = None in {self.live_digest, digest} or self.live_digest == digest
        return self.enforced_revision == (commit or "none") and same


def _names(kind: type[Record]) -> frozenset[str]:
    found = _NAMES.get(kind)
    if found is None:
        found = _NAMES[kind] = frozenset(field.name for field in fields(kind))
    return found


def _encode(document: Mapping[str, Any]) -> bytes:
    return _JSON.encode(document).encode()


def _only(error: Mapping[str, Any]) -> dict[str, Any]:
    return {name: error.get(name) for name in ("file", "message", "line", "column")}
