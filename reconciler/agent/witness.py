"""Joins what was offered with what OPA has proven, and says so as a receipt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from reconciler.agent.bundle import Bundle
from reconciler.agent.opa_status import OpaStatus
from reconciler.agent.receipts import Proof
from reconciler.agent.version import older_than
from reconciler.core.records import Receipt
from reconciler.core.times import rfc3339
from reconciler.core.tracing import NO_TRACER, Tracer
from reconciler.metrics import AgentMetrics

_OFFERS_KEPT: Final = 16


@dataclass(frozen=True, slots=True)
class Offer:
    """What the agent serves: a bundle, and the newest commit whose content it is (``none`` for the empty one)."""

    bundle: Bundle
    commit: str
    mirrored_at: str | None = None
    applied_at: str | None = None
    trace: str | None = None
    """The trace context of the apply."""
    live_digest: str | None = None
    """That of all that was live then, also outside of the scope."""


@dataclass(slots=True)
class _Entry:
    """The newest commit with this content, and what became of it."""

    commit: str
    stages: dict[str, str] = field(default_factory=dict)
    applied_at: str | None = None
    trace: str | None = None
    live_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields of a receipt that never change."""

    datacentre: str
    agent: str
    scope: str
    opa_url: str | None = None
    min_opa_version: str | None = None


class Witness:
    """Takes every event of the OPA beside the agent, in the order in which they happen.

    ``changed`` is called after each one. Offers are remembered by their content's ETag, the last `_OFFERS_KEPT`.
    """

    def __init__(
        self,
        identity: Identity,
        metrics: AgentMetrics,
        *,
        hold: float,
        clock: Callable[[], float],
        changed: Callable[[], None],
        stale: Callable[[], bool],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._tracer = tracer
        self._identity = identity
        self._metrics = metrics
        self._clock = clock
        self._changed = changed
        self._stale = stale
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._offered: Offer | None = None
        self._sent_at: float | None = None
        self._since = (rfc3339_now(), _Enforced())
        self.proof = Proof(hold=hold)

    def offered(self, offer: Offer) -> None:
        """From now on this is what a poll is answered with."""
        known = self._entries.get(offer.bundle.etag)
        if known is None or known.commit != offer.commit:
            stages = {"mirrored_at": offer.mirrored_at} if offer.mirrored_at else {}
            self._entries[offer.bundle.etag] = _Entry(offer.commit, stages, offer.applied_at, offer.trace)
        elif known.trace is None and "enforced_at" not in known.stages:
            known.applied_at, known.trace = offer.applied_at, offer.trace  # the copy on disk has none
        self._entries[offer.bundle.etag].live_digest = offer.live_digest
        self._entries.move_to_end(offer.bundle.etag)
        while len(self._entries) > _OFFERS_KEPT:
            self._entries.popitem(last=False)
        self._offered = offer
        self._settle(self.proof)

    def polled(self, etag: str | None, peer: str) -> int:
        """OPA asks; the number of its poll, to be given back with `answered`."""
        if self._sent_at is not None and etag is not None and etag == self.proof.sent:
            self._metrics.activation_seconds.observe(self._clock() - self._sent_at)
        self._settle(self.proof.polled(etag, peer, self._clock()))
        return self.proof.poll

    def sending(self, etag: str) -> None:
        """The first byte of a bundle is about to leave."""
        self._sent_at = self._clock()
        self._metrics.sent.inc()
        entry = self._entries.get(etag)
        if entry is not None:
            entry.stages["served_at"] = rfc3339_now()
        self._settle(self.proof.sending(etag))

    def delivered(self, peer: str) -> None:
        """The whole bundle was handed over."""
        self._settle(self.proof.delivered(peer))

    def answered(self, poll: int, *, dropped: bool) -> None:
        """A poll has its answer, or its connection is gone."""
        self._settle(self.proof.answered(poll, self._clock(), dropped=dropped))

    def told(self, status: OpaStatus) -> None:
        """A status post arrived."""
        self._settle(self.proof.told(status))

    def receipt(self) -> Receipt:
        """What can be said now. Asking moves ``since`` when time alone has withdrawn a proof."""
        self._settle(self.proof, tell=False)
        since, enforced = self._since
        identity = self._identity
        return Receipt(
            id=identity.agent,
            datacentre=identity.datacentre,
            scope=identity.scope,
            enforced_revision=enforced.commit,
            since=since,
            opa_version=self.proof.version,
            opa=identity.opa_url,
            error=self._error(),
            stale=self._stale(),
            stages=dict(enforced.stages) or None,
            digest=enforced.digest,
            live_digest=enforced.live_digest,
        )

    def _settle(self, proof: Proof, *, tell: bool = True) -> None:
        new_refusals = proof.refused.keys() - self.proof.refused.keys()
        self._metrics.refusals.inc(len(new_refusals))
        self.proof = proof
        enforced = self._enforced()
        if enforced.commit != self._since[1].commit:
            self._since = (rfc3339_now(), enforced)
        elif enforced != self._since[1]:
            self._since = (self._since[0], enforced)
        offered = self._offered
        newest = offered is not None and (enforced.commit, enforced.digest) == (offered.commit, offered.bundle.etag)
        self._metrics.enforced.set(int(newest))
        if tell:
            self._changed()

    def _enforced(self) -> _Enforced:
        etag = self.proof.enforced(self._clock())
        entry = self._entries.get(etag) if etag is not None else None
        if entry is None:
            return _Enforced()
        if "enforced_at" not in entry.stages:
            entry.stages["enforced_at"] = rfc3339_now()
            self._traced(entry)
        return _Enforced(entry.commit, tuple(sorted(entry.stages.items())), etag, entry.live_digest)

    def _traced(self, entry: _Entry) -> None:
        """The commit's way through this agent, in the trace of its apply. Nothing is told of what OPA has from a former
        process of this agent."""
        if entry.trace is None or not self._tracer.enabled or not entry.stages.keys() & {"mirrored_at", "served_at"}:
            return
        names = ("regops.agent.read", "regops.agent.serve", "opa.activate")
        stages = (entry.stages.get(name) for name in ("mirrored_at", "served_at", "enforced_at"))
        about = {"regops__agent": self._identity.agent, "regops__datacentre": self._identity.datacentre}
        before = _time(entry.applied_at)
        for name, end in zip(names, map(_time, stages), strict=True):
            if before is not None and end is not None:
                commit = {"vcs__ref__head__revision": entry.commit}
                self._tracer.record(name, before, end, entry.trace, **about, **commit)
            before = end or before

    def _error(self) -> str | None:
        refusal = self.proof.refused.get(self._offered.bundle.etag) if self._offered else None
        return "; ".join(said for said in (refusal, self._too_old()) if said) or None

    def _too_old(self) -> str | None:
        version, minimum = self.proof.version, self._identity.min_opa_version
        if version is None or minimum is None or not older_than(version, minimum):
            return None
        return f"OpaTooOld: this OPA is {version}, the policies were compiled by {minimum}"


@dataclass(frozen=True, slots=True)
class _Enforced:
    commit: str | None = None
    stages: tuple[tuple[str, str], ...] = ()
    digest: str | None = None
    live_digest: str | None = None


def _time(text: str | None) -> datetime | None:
    """``None`` too for what is no time: somebody else wrote it, and a trace is not worth an agent's end."""
    try:
        at = datetime.fromisoformat(text) if text is not None else None
    except (ValueError, TypeError):
        return None
    return at if at is not None and at.tzinfo is not None else None


def rfc3339_now() -> str:
    """Now, in RFC 3339 UTC with milliseconds."""
    return rfc3339(datetime.now(UTC))
