"""The document of the status from what was seen in etcd, without etcd."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.fleet_at import present
from api.statusview import Observed, counted, narrowed, status_document, sync_of, totals
from reconciler.core.conditions import Condition, Findings, StatusRecord, after_failure, after_pass
from reconciler.core.records import Applied, Held, Receipt, Suspended
from reconciler.core.times import rfc3339

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COMMIT = "a" * 40
PLACE = {"remote": "r", "branch": "main", "path": "policies"}
SOUND = Findings(f"main@sha1:{COMMIT}", 1)


def ago(**span: float) -> str:
    return rfc3339(NOW - timedelta(**span))


def agent(name: str, datacentre: str = "east", commit: str | None = COMMIT, **more: Any) -> Receipt:
    return Receipt(name, datacentre, "all", commit, ago(days=8), **{"seen_at": ago(minutes=2), **more})


def seen(
    *receipts: Receipt,
    alive: set[str] = frozenset(),  # type: ignore[assignment]
    conditions: tuple[Condition, ...] = after_pass(SOUND, ()),
    **more: Any,
) -> Observed:
    record = StatusRecord(
        conditions=conditions,
        source=PLACE,
        last_attempted_revision=COMMIT,
        last_handled_reconcile_at=None,
        blocked_deletions=(),
        ignored_files=(),
        leader="me",
        at=ago(minutes=1),
    )
    applied = Applied(id="1", commit=COMMIT, height=1, rewrites=0, digest="d", at=ago(days=8))
    usual = {"record": record, "applied": applied, "led": True}
    return Observed(receipts=receipts, alive=frozenset(alive), **{**usual, **more})


def words(observed: Observed) -> tuple[str, str]:
    document = status_document(observed, PLACE, NOW)
    return document["sync"]["status"], document["health"]["status"]


def condition(document: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in document["conditions"] if each["type"] == kind)
    return found


# --- silence ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_killed_after_a_week_without_commits_still_counts() -> None:
    """Its receipt's ``since`` was older than a week, so it was forgotten as soon as its lease ended, and the fleet was
    Healthy without it."""
    both = (agent("a"), agent("b"))
    assert words(seen(*both, alive={"east/a", "east/b"})) == ("Synced", "Healthy")
    killed = seen(*both, alive={"east/a"})
    assert words(killed) == ("Synced", "Unknown")
    document = status_document(killed, PLACE, NOW)
    assert condition(document, "Healthy")["reason"] == "AgentsSilent"
    assert (document["fleet"]["agents"], document["fleet"]["unknown"]) == (2, 1)
    gone = seen(agent("a"), agent("b", seen_at=ago(days=7, minutes=1)), alive={"east/a"})
    assert words(gone) == ("Synced", "Healthy")
    assert [each.id for each in counted(replace(gone, forget_after=timedelta(days=30)), NOW)] == ["a", "b"]


def test_agents_of_one_name_in_two_datacentres_are_two() -> None:
    """The names alone were compared: a silent agent hid that its namesake was behind, and the message named neither's
    datacentre."""
    namesakes = agent("gw", "east"), agent("gw", "west", "1" * 40)
    document = status_document(seen(*namesakes, alive={"west/gw"}), PLACE, NOW)
    found = condition(document, "Healthy")
    assert (found["reason"], "west/gw" in found["message"], "east/gw" in found["message"]) == ("Behind", True, False)
    document = status_document(seen(*namesakes, alive={"east/gw"}), PLACE, NOW)
    found = condition(document, "Healthy")
    assert (found["reason"], "west/gw" in found["message"], "east/gw" in found["message"]) == (
        "AgentsSilent",
        True,
        False,
    )


def test_while_etcd_is_away_no_opa_is_shown_alive() -> None:
    """The last known signs of life were shown as of now, each OPA alive and enforcing the applied commit."""
    away = seen(agent("a"), alive={"east/a"}, reachable=False)
    document = status_document(away, PLACE, NOW)
    (shown,) = document["agents"]
    assert (shown["alive"], shown["stale"], shown["enforced_revision"]) == (False, False, None)
    assert {name: document["fleet"][name] for name in ("agents", "current", "unknown", "stale")} == {
        "agents": 1,
        "current": 0,
        "unknown": 1,
        "stale": 0,
    }, "and the agent is not blamed"
    assert totals(away.receipts, away)["datacentres"]["east"]["unknown"] == 1
    told = present(away.receipts[0], away, "main", ())
    assert (told["state"], told["commit"], told["reason"]) == ("unknown", None, "unobserved")


def test_an_agent_that_lived_when_etcd_was_last_seen_is_not_forgotten_while_it_is_away() -> None:
    away = seen(agent("a", seen_at=ago(days=30)), alive={"east/a"}, reachable=False)
    assert counted(away, NOW) == [*away.receipts]


# --- sync ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stalled", [True, False])
def test_a_pass_that_broke_off_after_the_fetch_leaves_unknown_whether_the_head_is_live(stalled: bool) -> None:
    """The commit that it had fetched is the last attempted one nowhere: the status said Synced of a head that could not
    even be compiled."""
    failed = after_failure(
        "CompilerUnavailable", "no opa", fetching=False, stalled=stalled, before=after_pass(SOUND, ())
    )
    observed = seen(conditions=failed)
    assert (words(observed)[0], sync_of(observed)) == ("Unknown", "Unknown")


def test_what_is_known_to_differ_is_out_of_sync_also_after_a_pass_that_broke_off() -> None:
    failed = after_failure("CompilerUnavailable", "no opa", fetching=False, stalled=False, before=())
    held = {"projects/a": Held(COMMIT, "ValidationFailed", ())}
    assert sync_of(seen(conditions=failed, held=held)) == "OutOfSync"
    fetching = after_failure("RemoteUnavailable", "no git", fetching=True, stalled=False, before=())
    assert sync_of(seen(conditions=fetching, held=held)) == "Unknown"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (SOUND, "Synced"),
        (replace(SOUND, suspended=True), "Synced"),
        (replace(SOUND, suspended=True, drifted=1), "OutOfSync"),
        (replace(SOUND, held=("projects/a",)), "OutOfSync"),
        (replace(SOUND, blocked=3, block_reason="SourceEmpty"), "OutOfSync"),
        (replace(SOUND, rewritten=True), "Synced"),
    ],
)
def test_a_pass_that_ran_to_its_end_says_what_differs(found: Findings, word: str) -> None:
    held = {name: Held(COMMIT, "ValidationFailed", ()) for name in found.held}
    assert sync_of(seen(conditions=after_pass(found, ()), held=held)) == word


# --- what a member sees ----------------------------------------------------------------------------------------------


def test_a_member_sees_that_and_since_when_it_is_suspended_but_not_who_says_why() -> None:
    """The reason is a person's free text: it may name any project."""
    observed = seen(suspended=Suspended("root@example.org", "secret-project is on fire", ago(minutes=5)))
    document = status_document(observed, PLACE, NOW)
    mine = narrowed(document, lambda name: name == "projects/mine")
    assert mine["suspended"] is True
    assert mine["suspension"] == {"by": "", "reason": "", "at": ago(minutes=5)}
    assert narrowed(document, lambda _: True)["suspension"]["reason"] == "secret-project is on fire"
    assert narrowed(status_document(seen(), PLACE, NOW), lambda _: False)["suspension"] is None


# --- what a member sees ----------------------------------------------------------------------------------------------


def test_a_member_reads_how_many_policies_of_others_are_held_and_where_no_opa_is() -> None:
    """A redacted message only said the reason once more, and each OPA's internal address was shown to every member."""
    findings = replace(SOUND, held=("projects/mine", "projects/secret", "projects/other"))
    found = {name: Held(COMMIT, "ValidationFailed", ()) for name in findings.held}
    opa = agent("a", opa="http://10.0.0.7:8181")
    observed = seen(opa, alive={"east/a"}, conditions=after_pass(findings, ()), held=found)
    document = status_document(observed, PLACE, NOW)
    assert document["agents"][0]["opa"] == "http://10.0.0.7:8181"
    shown = narrowed(document, lambda name: name == "projects/mine")
    assert condition(shown, "Ready")["message"] == "held: 1 policy of yours, 2 policies of others"
    assert "opa" not in shown["agents"][0]
    assert "secret" not in str(shown)
    assert "10.0.0.7" not in str(shown)


def test_healthy_speaks_of_the_applied_commit() -> None:
    """Its generation was 0 always."""
    applied = Applied(id="1", commit=COMMIT, height=7, rewrites=0, digest="d", at=ago(days=8))
    document = status_document(seen(agent("a"), alive={"east/a"}, applied=applied), PLACE, NOW)
    assert condition(document, "Healthy")["observed_generation"] == 7
