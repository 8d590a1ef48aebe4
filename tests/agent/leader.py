"""Writes to etcd as a reconcile pass does, without the reconcile pass."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from dataclasses import replace

from reconciler.core.keyspace import Keyspace
from reconciler.core.model import Content, policy_name
from reconciler.core.ports import Delete, KeyValueStore, Put, Transaction
from reconciler.core.records import Applied, Applying, Meta

AT = "2026-01-01T00:00:00Z"


def keyspace_of(prefix: str) -> Keyspace:
    return Keyspace(policies=f"{prefix}policies/", own=f"{prefix}regops/")


def commit_id(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


def rego(policy: str, value: object) -> bytes:
    """A policy that answers ``value`` at ``<policy>/value``."""
    package = policy if policy == "platform" else f'projects["{policy.removeprefix("projects/")}"]'
    return f"package {package}\n\nvalue := {json.dumps(value)}\n".encode()


class Leader:
    """``height`` counts the applies; `applied` is the last one that was written. ``branch`` makes other commit ids."""

    def __init__(self, store: KeyValueStore, keyspace: Keyspace, branch: int = 0) -> None:
        self._store = store
        self._branch = branch
        self.keys = keyspace
        self.applied = Applied(id="", commit="", height=0, rewrites=0, digest="", at=AT)

    async def apply(self, *, rego_version: int = 1, told: bool = True, **policies: Content | bytes | None) -> Applied:
        """One commit: ``None`` deletes; ``projects__a`` is spelled as a keyword for ``projects/a``."""
        named = {name.replace("__", "/").replace("_", "-"): content for name, content in policies.items()}
        height = self.applied.height + 1
        applied = replace(
            self.applied,
            id=f"id-{self.applied.rewrites}-{height}-{commit_id(height)[:4]}",
            previous=self.applied.id or None,
            commit=commit_id(self._branch + height),
            height=height,
            changed=tuple(named) if told else None,
        )
        await self.write(applied, *(op for name, c in named.items() for op in self.operations(name, c, rego_version)))
        return applied

    async def write(self, applied: Applied, *operations: Put | Delete) -> None:
        put = Put(self.keys.applied, applied.encode())
        await self.commit(*operations, put)
        self.applied = applied

    async def begin(self, *operations: Put | Delete) -> None:
        """The first transaction of an apply that spans several."""
        await self.commit(Put(self.keys.applying, Applying("f" * 40, AT).encode()), *operations)

    async def finish(self, **policies: Content | bytes | None) -> Applied:
        await self.commit(Delete(self.keys.applying))
        return await self.apply(rego_version=1, told=False, **policies)

    async def commit(self, *operations: Put | Delete) -> int:
        outcome = await self._store.commit(Transaction((), operations))
        assert outcome.succeeded
        return outcome.revision

    def operations(self, name: str, content: Content | bytes | None, rego_version: int = 1) -> list[Put | Delete]:
        policy = policy_name(name)
        keys = [self.keys.rego(policy), self.keys.data(policy), self.keys.meta(policy)]
        if content is None:
            return [Delete(key) for key in keys]
        whole = Content(content) if isinstance(content, bytes) else content
        meta = Meta(whole.blob_ids().etag, "c" * 40, "Ann <ann@example.org>", AT, rego_version)
        data = Delete(keys[1]) if whole.data is None else Put(keys[1], whole.data)
        return [Put(keys[0], whole.rego), data, Put(keys[2], meta.encode())]


def compact(endpoint: str, revision: int) -> None:
    """Make etcd forget everything before ``revision``, through its JSON gateway."""
    body = json.dumps({"revision": str(revision)}).encode()
    with urllib.request.urlopen(f"{endpoint}/v3/kv/compaction", data=body, timeout=5) as answer:
        answer.read()
