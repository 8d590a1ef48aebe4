"""What the commands about the whole system print, from the server's documents."""

from __future__ import annotations

from typing import Any

from reconciler.core.conditions import Condition
from regops.commands.history import versions_table
from regops.commands.sync import _Done
from regops.commands.tables import fleet_then, passes_table
from regops.commands.words import Seen


def entry(**more: Any) -> dict[str, Any]:
    change = {"policy": "projects/web-shop", "operation": "update", "commit": "1" * 40, "actor": "Ann <a@b.c>"}
    usual = {
        "seen_at": "2026-01-01T00:00:00.000Z",
        "outcome": "applied",
        "reason": "",
        "count": 1,
        "commit": "1" * 40,
        "created": 0,
        "updated": 1,
        "deleted": 0,
        "healed": 0,
        "held": 1,
        "trigger": "push",
        "message": "",
        "changes": [change],
        "changes_more": 0,
        "holds": ["projects/orders"],
        "commits": [],
        "confirmed_by": None,
        "enforced": {"agents": 1, "enforced": 1},
        "seconds": {"total": 0.2, "enforced": 0.1},
    }
    return usual | more


def test_what_a_pass_held_is_named_as_held() -> None:
    """`1 updated, 1 held (projects/web-shop)`: web-shop was updated, and orders held."""
    page = passes_table([entry()])
    assert "1 updated (projects/web-shop), 1 held (projects/orders)" in page
    page = passes_table([entry(updated=0, changes=[], held=3, holds=["projects/a"])])
    assert "3 held (projects/a and 2 more)" in page
    assert "none changed" in passes_table([entry(updated=0, changes=[], held=0, holds=[])])


def test_enforced_in_is_measured_from_the_trigger_as_on_the_page() -> None:
    assert "0.300 s" in passes_table([entry()])


def test_a_held_version_keeps_its_subject() -> None:
    item = {"version": 2, "live": False, "state": "held", "inferred": False, "ts": "t", "actor": "Ann <a@b.c>"}
    item |= {"commit": "1" * 40, "pull_request": None, "deleted": False, "subject": "Let Bob in"}
    item |= {"reason": "ValidationFailed", "message": "a line that is longer than the table is wide"}
    line = versions_table([item], every=False).splitlines()[1]
    assert ("held: ValidationFailed" in line, "Let Bob in" in line, "1" * 12 in line) == (True, True, True)


def test_before_the_record_began_nothing_is_recorded() -> None:
    """It said that there was no agent."""
    told = fleet_then({"agents": [], "missing": "the record begins at 2026-01-01T00:00:00Z"})
    assert told == "Not recorded: the record begins at 2026-01-01T00:00:00Z"


def test_confirmed_deletions_that_are_carried_out_are_told_though_something_else_is_held() -> None:
    """Only the error of a policy that had been held before was printed."""
    ready = Condition("Ready", "False", "ValidationFailed", "1 held")
    seen = Seen("t", ready, "1" * 40, "1" * 40, None, ("projects/c",), (), led=True)
    done = _Done("t", ("projects/a", "projects/c"), seen)
    assert (done.carried_out, done.trouble is not None) == (("projects/a",), True)
    broke_off = Condition("Ready", "False", "FetchFailed", "no route")
    assert _Done("t", ("projects/a",), Seen("t", broke_off, None, None, None, (), (), led=True)).carried_out == ()
