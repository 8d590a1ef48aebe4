"""Which OPAs are awaited at a commit, how long they took, and what a pass is told of the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from reconciler.core.fleet import FleetState
from reconciler.core.following import FOLLOWED, LATE, Following
from reconciler.core.keyspace import Keyspace
from reconciler.core.passes import APPLIED, Enforced, PassRecord
from reconciler.core.ports import Event, KeyValue
from reconciler.core.records import Applied, Receipt
from reconciler.core.silence import FORGET_AFTER
from reconciler.core.times import rfc3339

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = Keyspace("/p/", "/r/")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


@dataclass
class World:
    """A fleet whose receipts get revisions one after another, and what is observed of it."""

    revision: int = 10
    fleet: FleetState = field(default_factory=lambda: FleetState(KEYS))
    took: list[tuple[str, float]] = field(default_factory=list)
    following: Following = field(init=False)

    def __post_init__(self) -> None:
        self.following = Following(self.fleet, took=lambda to, seconds: self.took.append((to, seconds)))

    def live(self, *agents: str) -> None:
        for agent in agents:
            self.fleet.happened(Event(KeyValue(KEYS.alive("east", agent), b"", 1, self._next())))

    def dies(self, agent: str) -> None:
        self.fleet.happened(Event(KeyValue(KEYS.alive("east", agent), b"", 0, self._next()), deleted=True))

    def tells(
        self, agent: str, commit: str | None, seconds: float, *, read: bool = False, digest: str | None = None
    ) -> None:
        since = rfc3339(at(seconds))
        receipt = Receipt(agent, "east", "all", commit, since, seen_at=since, live_digest=digest)
        kv = KeyValue(KEYS.receipt("east", agent), receipt.encode(), 1, self._next())
        told = self.fleet.found(kv) if read else self.fleet.happened(Event(kv))
        self.following.reached(told)

    def applied(self) -> int:
        """The revision at which a commit becomes applied."""
        return self._next()

    def entered(self, commit: str, revision: int, seconds: float) -> None:
        """The pass that applied it, seen half a second before ``seconds``, is heard of."""
        self.following.entered(record(commit, seconds), revision, at(seconds))

    def observed(self, to: str) -> list[float]:
        return [seconds for name, seconds in self.took if name == to]

    def _next(self) -> int:
        self.revision += 1
        return self.revision


def record(commit: str, seconds: float) -> PassRecord:
    seen, applied = rfc3339(at(seconds - 0.5)), rfc3339(at(seconds))
    return PassRecord(f"id-{commit}", APPLIED, "push", seen, applied, "me", commit=commit, applied_at=applied)


def news(world: World, seconds: float) -> Sequence[Enforced | None]:
    found = []
    for entry, told in world.following.news(at(seconds)):
        entry.record = told
        found.append(told.enforced)
    return found


def world_of(*agents: str) -> World:
    world = World()
    world.live(*agents)
    for agent in agents:
        world.tells(agent, "old", -10)
    return world


def test_an_opa_that_activates_already_is_awaited() -> None:
    """An OPA proves nothing while it activates. Where its proof was withdrawn before the leader had written its entry,
    it was not awaited: neither the lag nor the propagation saw the OPAs that took longest."""
    world = world_of("quick", "slow")
    revision = world.applied()
    world.tells("quick", None, 1)
    world.tells("slow", None, 1)
    world.tells("quick", "new", 2)
    world.entered("new", revision, 0)
    assert world.observed("enforced") == [2.5]
    assert world.following.lag(at(5)) == 5
    world.tells("slow", "new", 30)
    assert (world.observed("enforced"), world.observed("everywhere")) == ([2.5, 30.5], [30.5])
    assert world.following.lag(at(40)) == 0


def test_an_opa_that_proved_nothing_when_it_was_applied_is_not_awaited() -> None:
    world = world_of("one")
    world.live("starting", "silent")
    world.tells("starting", None, -5)
    world.tells("silent", "old", -5)
    world.dies("silent")
    revision = world.applied()
    world.tells("starting", "new", 1)
    world.entered("new", revision, 0)
    assert world.observed("enforced") == []
    world.tells("one", "new", 1)
    assert (world.observed("enforced"), world.observed("everywhere")) == ([1.5], [1.5])


def test_a_proof_that_moved_on_without_a_gap_in_between_is_awaited_too() -> None:
    """The agent writes what is true now: of a proof that ended and one that began it may write the second one only."""
    world = world_of("one")
    revision = world.applied()
    world.tells("one", "new", 1)
    world.entered("new", revision, 0)
    assert world.observed("enforced") == [1.5]


def test_who_begins_to_look_in_the_middle_awaits_what_may_have_ended_since() -> None:
    world = World()
    world.live("slow", "starting")
    world.tells("starting", None, -5, read=True)
    revision = world.applied()
    world.tells("slow", None, 1, read=True)
    world.entered("new", revision, 0)
    assert world.following.lag(at(5)) == 5
    world.tells("starting", "new", 2)
    assert world.observed("enforced") == []
    world.tells("slow", "new", 9)
    assert world.observed("enforced") == [9.5]


def test_a_pass_that_is_told_twice_is_counted_once() -> None:
    """The second time, its entry had been written and what came after had broken off."""
    world = world_of("one")
    revision = world.applied()
    for _ in range(2):
        world.entered("new", revision, 0)
    world.tells("one", "new", 1)
    assert world.took == [("applied", 0.5), ("enforced", 1.5), ("everywhere", 1.5)]


def test_who_is_still_awaited_when_a_pass_falls_out_of_sight_has_taken_as_long_at_least() -> None:
    """Otherwise an OPA that hangs is seen by no histogram, just where commits come fast."""
    world = world_of("one", "gone")
    world.entered("first", world.applied(), 0)
    world.dies("gone")
    for number in range(FOLLOWED):
        assert world.observed("enforced") == []
        world.entered(f"{number}", world.applied(), number + 1)
    assert world.observed("enforced") == [FOLLOWED + 0.5]
    assert world.observed("everywhere") == [FOLLOWED + 0.5]


def test_a_pass_is_told_of_the_fleet_once_all_have_it_and_now_and_then_before() -> None:
    world = world_of("one", "two")
    world.entered("new", world.applied(), 0)
    world.tells("one", "new", 1)
    assert news(world, 2) == []
    late = LATE.total_seconds() + 1
    assert news(world, late) == [Enforced(2, 1, rfc3339(at(1)), rfc3339(at(1)))]
    assert news(world, late + 1) == []
    assert news(world, 2 * late + 1) == [], "nothing has changed"
    world.tells("two", "new", late + 2)
    assert news(world, late + 2) == [Enforced(2, 2, rfc3339(at(1)), rfc3339(at(late + 2)))]
    world.live("three")
    assert news(world, 10 * late) == [], "it came later"


def test_an_agent_that_is_silent_for_long_is_counted_no_more() -> None:
    """The metrics kept the agents that /fleet had forgotten, and with them an alert, until somebody deleted them."""
    world = world_of("one", "gone")
    world.dies("gone")
    soon, later = START, START + FORGET_AFTER + timedelta(seconds=1)
    old = Applied("1", "old", 1, 0, "d", rfc3339(START))
    assert dict(world.fleet.counts(old, soon)["east"]) == {"current": 1, "unknown": 1, "stale": 1, "errors": 0}
    assert dict(world.fleet.counts(old, later)["east"]) == {"current": 1, "stale": 0, "errors": 0}


def test_what_a_person_confirmed_is_proven_by_the_content_since_the_commit_stays_the_same() -> None:
    """Deletions of a commit were blocked, and carried out when somebody confirmed them. Every OPA had proven the commit
    before that, so the second pass was either enforced at once or, as it was, followed by nobody."""
    world = world_of("one", "scoped")
    blocked = replace(record("new", 0), id="blocked", before="old", held=4, digest="d1")
    world.following.entered(blocked, world.applied(), at(0))
    for agent in ("one", "scoped"):
        world.tells(agent, "new", 1, digest="d1")
    assert news(world, 1) == [Enforced(2, 2, rfc3339(at(1)), rfc3339(at(1)))]
    done = replace(record("new", 10), id="done", before="new", deleted=3, digest="d2")
    assert done.followed
    assert not done.moved
    world.following.entered(done, world.applied(), at(10))
    assert news(world, 10) == [], "what they prove is of before"
    applied = Applied("2", "new", 1, 0, "d2", rfc3339(at(10)))
    assert world.fleet.counts(applied, at(10))["east"]["behind"] == 2
    world.tells("one", None, 10.2)
    world.tells("one", "new", 10.4, digest="d2")
    world.tells("scoped", "new", 1, digest="d2")
    assert news(world, 11) == [Enforced(2, 2, rfc3339(at(10)), rfc3339(at(10.4)))], "another scope is as it was"
    assert world.fleet.counts(applied, at(11))["east"]["current"] == 2


def test_a_healed_hand_edit_and_a_pass_that_only_holds_are_followed_by_nobody() -> None:
    """No OPA had the edit."""
    for change in ({"healed": 1}, {"held": 1}):
        assert not replace(record("new", 0), before="new", **change).followed  # type: ignore[arg-type]
