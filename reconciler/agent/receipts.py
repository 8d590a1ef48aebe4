"""What the OPA beside the agent has proven to enforce: a pure state machine.

The bundle's ETag is the digest of its content, and OPA's next poll carries the ETag of what it has activated
(``download.go``, ``plugins/bundle``): that poll is the proof. A status post never is; it adds OPA's errors and version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from reconciler.agent.opa_status import OpaStatus

DROP_GRACE: Final = 2.0
"""Seconds that a proof outlives a dropped connection, unless OPA polls again."""
POLL_SLACK: Final = 5.0
"""Seconds beyond a whole poll after which an OPA that does not ask is silent."""
_REFUSALS_KEPT: Final = 16
_UNEXPLAINED: Final = "OPA downloaded this bundle and asked again without having activated it"


@dataclass(frozen=True, slots=True)
class Proof:
    """Immutable; each event gives the next one. Times are seconds of any one monotonic clock.

    ``etag`` is what the latest poll carried; ``sent`` what was sent since, which withdraws the proof; ``last_sent``
    remembers that beyond the next poll. ``refused`` are the ETags of bundles that this OPA would not activate, with
    its words. ``poll`` numbers the polls, so that the end of an overtaken one is no news. ``renewed``: a restart was
    seen since the last status, so that another ``labels.id`` is expected.
    """

    hold: float = 30.0
    etag: str | None = None
    sent: str | None = None
    last_sent: str | None = None
    delivered_to: str | None = None
    poll: int = 0
    pending: bool = False
    seen_at: float = 0.0
    dropped_at: float | None = None
    opa: str | None = None
    version: str | None = None
    renewed: bool = False
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def polled(self, etag: str | None, peer: str, now: float) -> Proof:
        """OPA asks over the connection ``peer``, carrying the ETag of what is active in it (``None``: nothing is)."""
        renewed = etag is None or self.dropped_at is not None
        refused = self.refused
        if self.sent not in {None, etag} and peer == self.delivered_to:
            # The same process has the whole bundle, and still another one (or none) is active in it.
            refused = _with(refused, str(self.sent), refused.get(str(self.sent), _UNEXPLAINED))
        elif etag is None and (self.etag is not None or self.dropped_at is not None):
            refused = MappingProxyType({})  # a new process: its verdict may differ
        if etag in refused:
            refused = MappingProxyType({name: said for name, said in refused.items() if name != etag})
        return replace(
            self,
            etag=etag,
            sent=None,
            delivered_to=None,
            poll=self.poll + 1,
            pending=True,
            seen_at=now,
            dropped_at=None,
            renewed=self.renewed or renewed,
            refused=refused,
        )

    def sending(self, etag: str) -> Proof:
        """The first byte of a bundle is about to leave: from here on OPA may activate it at any time."""
        return replace(self, sent=etag, last_sent=etag, delivered_to=None)

    def delivered(self, peer: str) -> Proof:
        """The last byte of that bundle was taken by ``peer``."""
        return replace(self, delivered_to=peer)

    def answered(self, poll: int, now: float, *, dropped: bool = False) -> Proof:
        """Poll number ``poll`` has its answer, or its connection is gone."""
        if poll != self.poll:
            return self
        return replace(self, pending=False, seen_at=now, dropped_at=now if dropped else None)

    def told(self, status: OpaStatus) -> Proof:
        """A status post arrived. Another ``labels.id`` is another process: unless a restart was seen already, the
        proof was given by somebody else."""
        proof = self
        if status.opa is not None:
            if self.opa not in {None, status.opa} and not self.renewed:
                proof = replace(proof, etag=None, refused=MappingProxyType({}))
            proof = replace(proof, opa=status.opa, renewed=False)
        if status.refusal is not None and proof.last_sent is not None and proof.last_sent != proof.etag:
            proof = replace(proof, refused=_with(proof.refused, proof.last_sent, status.refusal))
        return replace(proof, version=status.version or proof.version)

    def may_send(self, etag: str) -> bool:
        """Whether this OPA has not refused it already: it would compile and refuse it again, every second."""
        return etag not in self.refused

    def enforced(self, now: float) -> str | None:
        """The ETag of what OPA enforces beyond doubt at ``now``, or ``None``."""
        if self.sent is not None or self.etag is None:
            return None
        if self.dropped_at is not None and now - self.dropped_at > DROP_GRACE:
            return None
        silent = not self.pending and now - self.seen_at > self.hold + POLL_SLACK
        return None if silent else self.etag


def _with(refused: Mapping[str, str], etag: str, said: str) -> Mapping[str, str]:
    """The newest refusals, ``etag`` last, bounded."""
    others = [(name, words) for name, words in refused.items() if name != etag]
    return MappingProxyType(dict([*others, (etag, said)][-_REFUSALS_KEPT:]))
