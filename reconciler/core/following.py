"""How the fleet follows the passes: which OPAs were to reach a commit, which have, and how long it took. Pure.

An OPA that proved something when a commit was applied is awaited at it, whether it proves something at this moment or
not: OPA proves nothing while it activates, which is just when somebody waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from reconciler.core.fleet import FleetState
from reconciler.core.passes import Enforced, PassRecord, between
from reconciler.core.times import rfc3339

FOLLOWED: Final = 50
"""Newest passes for which the fleet is followed."""
LATE: Final = timedelta(seconds=10)
"""How long after an apply, and how often from then on, a pass is told how far the fleet is, when not all have it."""

Took = Callable[[str, float], None]
"""Is told how many seconds it took to ``applied``, ``enforced`` (once for each OPA) or ``everywhere``."""


@dataclass(slots=True)
class Followed:
    """A pass, which agents have reached its commit, since when, and which of the awaited ones have not."""

    record: PassRecord
    reached: dict[str, str] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)
    told_at: datetime | None = None

    @property
    def settled(self) -> bool:
        """Whether its record says that all have it."""
        return self.record.enforced is not None and self.record.enforced.complete


class Following:
    """The last passes that changed what is applied, oldest first, beside what ``fleet`` proves."""

    def __init__(self, fleet: FleetState, *, took: Took, most: int = FOLLOWED) -> None:
        self._fleet = fleet
        self._took = took
        self._most = most
        self._passes: deque[Followed] = deque()

    def clear(self) -> None:
        """Follow nothing."""
        self._passes.clear()

    def resume(self, record: PassRecord) -> None:
        """Go on with what somebody else has begun: nobody is awaited, so that nothing is counted twice."""
        if not self._passes:
            self._passes.append(Followed(record))

    def entered(self, record: PassRecord, revision: int, now: datetime) -> None:
        """A pass has changed what is applied at this revision of the store. The same one twice is taken once."""
        if any(each.record.id == record.id for each in self._passes):
            return
        alive = self._fleet.alive
        self._passes.append(Followed(record, awaited={each for each in alive if self._fleet.proved_at(each, revision)}))
        self._observe("applied", record, record.applied_at)
        while len(self._passes) > self._most:
            self._give_up(self._passes.popleft(), now)
        for agent in alive:
            self.reached(agent)

    def reached(self, agent: str) -> None:
        """Something was heard of this agent. Who proves what a pass made live has followed every pass up to it."""
        proven = self._fleet.proven(agent)
        if proven is None:
            return
        counts = False
        for each in reversed(self._passes):
            counts = counts or proven.proves(each.record.commit, each.record.digest)
            if not counts:
                continue
            if agent in each.reached:
                return  # and everything before
            since = proven.since
            if not each.record.moved:  # what its OPA enforces may be the same as before: then it follows at once
                since = max(since, each.record.applied_at or since)
            each.reached[agent] = since
            if agent in each.awaited:
                each.awaited.discard(agent)
                self._observe("enforced", each.record, since)
                if not each.awaited:
                    self._observe("everywhere", each.record, max(each.reached.values()))

    def lag(self, now: datetime) -> float:
        """Seconds since the oldest pass was applied that an awaited OPA has not reached; 0 where there is none."""
        for each in self._passes:
            if not each.awaited.isdisjoint(self._fleet.alive):
                return between(each.record.applied_at, rfc3339(now)) or 0.0
        return 0.0

    def news(self, now: datetime) -> Iterator[tuple[Followed, PassRecord]]:
        """The passes whose records should say more than they do, with those records: once when all have reached one,
        and now and then when it takes long. What is not due costs nothing, however large the fleet is."""
        for each in list(self._passes):
            if each.settled:
                continue
            due = now - (each.told_at or _at(each.record.applied_at)) > LATE
            if not (due or self._whole(each)):
                continue
            each.told_at = now
            enforced = self._enforced(each)
            if enforced is not None and enforced != each.record.enforced:
                yield each, replace(each.record, enforced=enforced)

    def _whole(self, each: Followed) -> bool:
        alive = self._fleet.alive
        return 0 < len(alive) <= len(each.reached) and alive <= each.reached.keys()

    def _enforced(self, each: Followed) -> Enforced | None:
        if not self._fleet.alive:
            return None
        times = each.reached.values()
        agents = len(self._fleet.alive | each.reached.keys())
        return Enforced(agents, len(times), min(times, default=None), max(times, default=None))

    def _give_up(self, each: Followed, now: datetime) -> None:
        """A pass falls out of sight: who has not reached it until now needs at least this long."""
        late = each.awaited & self._fleet.alive
        for _ in late:
            self._observe("enforced", each.record, rfc3339(now))
        if late:
            self._observe("everywhere", each.record, rfc3339(now))

    def _observe(self, to: str, record: PassRecord, end: str | None) -> None:
        seconds = between(record.seen_at, end)
        if seconds is not None:
            self._took(to, seconds)


def _at(text: str | None) -> datetime:
    return datetime.fromisoformat(text) if text else datetime.max.replace(tzinfo=UTC)
