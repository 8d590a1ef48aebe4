"""What a mirror holds: one commit's policies, whole. Pure values and the two decisions about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from reconciler.core.model import Content, PolicyName
from reconciler.core.records import Applied, Meta

Order = tuple[int, int]
"""(rewrites, height) of an `Applied`: what must never go back at an agent."""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """A live policy: its exact bytes, which match ``meta.etag``, and what is known about them."""

    content: Content
    meta: Meta

    @property
    def etag(self) -> str:
        """The policy's strong entity-tag, quotes included."""
        return self.meta.etag


@dataclass(frozen=True, slots=True)
class MirrorState:
    """The policies in scope of exactly one applied commit; without ``applied`` nothing was ever applied.

    ``store_revision`` is the etcd revision at which the state was read.
    """

    applied: Applied | None
    store_revision: int
    policies: Mapping[PolicyName, MirrorPolicy] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def commit(self) -> str | None:
        """The Git commit that this state equals, but for what is held."""
        return self.applied.commit if self.applied else None


def changed_since(former: MirrorState | None, history: Sequence[Applied]) -> frozenset[str] | None:
    """The policies in which the last of ``history`` (oldest first) can differ from ``former``.

    ``None`` when that is not known: a link of the chain id ← previous is missing, or an apply does not say. A new
    leader writes the former apply anew and does not say either, but names the same commit and digest: nothing changed,
    and no fleet reads everything because a server was restarted.
    """
    if former is None or former.applied is None:
        return None
    last, changed = former.applied, set[str]()
    for applied in history:
        again = (applied.commit, applied.digest) == (last.commit, last.digest)
        if applied.previous != last.id or (applied.changed is None and not again):
            return None
        changed.update(applied.changed or ())
        last = applied
    return frozenset(changed)


def goes_back(served: Order | None, applied: Applied) -> bool:
    """Whether ``applied`` is older than what is served already."""
    return served is not None and applied.order < served
