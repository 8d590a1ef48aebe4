"""What each OPA provably enforced, from when to when. Pure: from receipts and signs of life to intervals.

An interval begins when the receipt says (`Receipt.since`), so that every recorder names it alike. It ends when the
proof does; where nobody looked, at the last moment of which it is known. Nothing is claimed beyond that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from reconciler.core.records import Receipt

FORGOTTEN_AFTER: Final = timedelta(days=7)
"""An agent that proves nothing for so long is not listed any more."""
MARK_SLACK: Final = timedelta(seconds=60)
"""How long after the last mark an interval that has no end yet counts as going on."""


class End(StrEnum):
    """Why an interval ended."""

    MOVED = "moved"
    """The OPA proved another commit."""
    WITHDRAWN = "withdrawn"
    """The proof was lost: another bundle was sent, or the OPA asked no more."""
    SILENT = "silent"
    """The agent gave no sign of life."""
    FORGOTTEN = "forgotten"
    """A person dropped the agent."""
    UNOBSERVED = "unobserved"
    """It ended while nobody recorded; ``until`` is the last moment at which it was known to last."""


@dataclass(frozen=True, slots=True)
class Interval:
    """One OPA enforced ``commit`` (``none``: the empty bundle) from ``since`` on, until ``until`` (not included;
    ``None`` while it lasts). ``agent`` is ``<datacentre>/<id>``; ``seen`` when this word was given: of two about the
    same interval the later one counts. Times are UTC, to the millisecond.
    """

    agent: str
    scope: str
    commit: str
    since: datetime
    seen: datetime
    until: datetime | None = None
    ended: str | None = None
    digest: str | None = None
    opa_version: str | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, datetime, str]:
        """What tells one interval from all others."""
        return (self.agent, self.since, self.commit)

    @property
    def datacentre(self) -> str:
        """Where the agent is."""
        return self.agent.partition("/")[0]

    @property
    def id(self) -> str:
        """The agent's name in its datacentre."""
        return self.agent.partition("/")[2]

    def ending(self, why: End, until: datetime, seen: datetime) -> Interval:
        """This interval, over; never before it began."""
        return replace(self, until=max(until, self.since), ended=str(why), seen=seen)


@dataclass(frozen=True, slots=True)
class Told:
    """A receipt as it stands in etcd, with its mod_revision."""

    receipt: Receipt
    revision: int


class Enforcement:
    """Follows all agents of one etcd, event by event; every method returns what is to be written.

    A receipt counts while its agent is alive, once it was written after the sign of life appeared: an agent repeats it
    then, and one that lies there from before may be a former process' word.
    """

    def __init__(self) -> None:
        self.open: dict[str, Interval] = {}
        self._told: dict[str, Told] = {}
        self._alive: dict[str, int] = {}

    @property
    def datacentres(self) -> frozenset[str]:
        """Those of which an agent has told anything."""
        return frozenset(agent.partition("/")[0] for agent in self._told)

    def read(
        self, told: Mapping[str, Told], alive: Mapping[str, int], at: datetime, known: datetime | None = None
    ) -> list[Interval]:
        """Everything was read anew. ``alive``: the create_revision of each sign of life. ``known``: until when the
        former state was followed, if it was."""
        before = self._told.keys() | self._alive.keys() | self.open.keys()
        self._told, self._alive = dict(told), dict(alive)
        return [each for agent in sorted(before | told.keys()) for each in self._looked(agent, at, known)]

    def told(self, agent: str, told: Told | None, at: datetime) -> list[Interval]:
        """A receipt was written (``None``: deleted)."""
        if told is None:
            self._told.pop(agent, None)
        else:
            self._told[agent] = told
        return self._looked(agent, at)

    def lives(self, agent: str, revision: int | None, at: datetime) -> list[Interval]:
        """A sign of life has this create_revision (``None``: it is gone)."""
        if revision is None:
            self._alive.pop(agent, None)
        else:
            self._alive[agent] = revision
        return self._looked(agent, at)

    def stray(self, interval: Interval, mark: datetime | None, at: datetime) -> Interval | None:
        """How an interval ends that the store has open and that does not go on: at the last moment at which somebody
        knew it to last. ``None`` when it does go on."""
        now = self.open.get(interval.agent)
        if now is not None and now.key == interval.key:
            return None
        known = max(interval.seen, mark or interval.seen)
        if now is not None:
            known = min(known, now.since)
        why = self._why(interval.agent)
        return interval.ending(why if why in {End.SILENT, End.FORGOTTEN} else End.UNOBSERVED, min(known, at), at)

    def knows(self, agent: str) -> bool:
        """Whether etcd has a receipt of this agent."""
        return agent in self._told

    def _looked(self, agent: str, at: datetime, known: datetime | None = None) -> list[Interval]:
        """Compare what was open with what is, and remember that."""
        old, new = self.open.pop(agent, None), self._now(agent, at)
        if new is not None and old is not None and new.key == old.key:
            self.open[agent] = new
            return [new] if replace(new, seen=old.seen) != old else []
        if new is not None:
            self.open[agent] = new
        ended = [] if old is None else [self._ended(old, new, at, known)]
        return ended if new is None else [*ended, new]

    def _now(self, agent: str, at: datetime) -> Interval | None:
        told, alive = self._told.get(agent), self._alive.get(agent)
        if told is None or alive is None or told.revision < alive:
            return None
        receipt, commit = told.receipt, told.receipt.enforced_revision
        if commit is None:
            return None
        return Interval(
            agent=agent,
            scope=receipt.scope,
            commit=commit,
            since=_since(receipt) or self._first_seen(agent, receipt, at),
            seen=at,
            digest=receipt.digest,
            opa_version=receipt.opa_version,
            error=receipt.error,
        )

    def _first_seen(self, agent: str, receipt: Receipt, at: datetime) -> datetime:
        """Of a receipt whose time cannot be read: when it was first seen."""
        old = self.open.get(agent)
        return old.since if old is not None and old.commit == receipt.enforced_revision else at

    def _why(self, agent: str) -> End:
        told, alive = self._told.get(agent), self._alive.get(agent)
        if told is None:
            return End.FORGOTTEN
        if alive is None or told.revision < alive:
            return End.SILENT
        return End.MOVED if told.receipt.enforced_revision is not None else End.WITHDRAWN

    def _ended(self, old: Interval, new: Interval | None, at: datetime, known: datetime | None) -> Interval:
        why, until = self._why(old.agent), at
        if new is not None:
            until = new.since
        elif why is End.WITHDRAWN:
            until = _since(self._told[old.agent].receipt) or at
        if known is not None:
            until = min(until, known)
            why = End.UNOBSERVED if why in {End.MOVED, End.WITHDRAWN} else why
        return old.ending(why, until, at)


@dataclass(frozen=True, slots=True)
class Enforced:
    """What is known of one OPA at some time. ``reason`` says why nothing is, where ``known`` is false: how the last
    ``interval`` ended, or ``unobserved``."""

    interval: Interval
    known: bool
    reason: str | None = None


def enforced_at(at: datetime, lasts: Iterable[Interval], marks: Mapping[str, datetime]) -> list[Enforced]:
    """What each OPA enforced, from each agent's last interval that began at or before ``at``, and the marks of the
    datacentres: until when an interval without an end is known to have lasted. Sorted by agent."""
    found = [_enforced(at, last, marks.get(last.datacentre, last.seen)) for last in lasts]
    return sorted((each for each in found if each is not None), key=lambda each: each.interval.agent)


def _enforced(at: datetime, last: Interval, mark: datetime) -> Enforced | None:
    if last.until is not None and last.until > at:
        return Enforced(last, known=True)
    known_until = max(mark, last.seen) if last.until is None else last.until
    if last.until is None and at <= known_until + MARK_SLACK:
        return Enforced(last, known=True)
    if last.ended == End.FORGOTTEN or at - known_until > FORGOTTEN_AFTER:
        return None
    return Enforced(last, known=False, reason=last.ended or str(End.UNOBSERVED))


def milliseconds(at: datetime) -> datetime:
    """UTC, as exact as MongoDB keeps it."""
    return at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def _since(receipt: Receipt) -> datetime | None:
    try:
        at = datetime.fromisoformat(receipt.since)
        return milliseconds(at) if at.tzinfo else None
    except (ValueError, TypeError, OverflowError):
        return None
