"""What the page makes of texts that somebody else has written, however long and strange they are. Pure."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from api.ui.comparing import MOST, Compared, Shown, broken_in, shown_of
from api.ui.trying import rules_of
from reconciler.core.model import PLATFORM, PolicyName

BILLING = PolicyName("projects/billing")


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("package projects.billing.authz\n\ndefault allow := false\n\nallow if true\n", ["authz/allow"]),
        ("# who\n\n\tpackage projects.billing # why\nmark := 1\nother(x) := x\n", ["mark", "other"]),
        ("package projects.billing.authz\r\nimport rego.v1\r\nallow := true\r\n", ["authz/allow"]),
        ('package projects["billing"].a["b-c"];x := 1\ny := 2\n', ["a/b-c/y"]),
        ("no package\nallow := true\n", []),
    ],
)
def test_the_rules_of_a_policy_are_suggested(text: str, rules: list[str]) -> None:
    assert rules_of(BILLING, text.encode()) == rules


def test_the_platforms_rules_are_below_the_platform() -> None:
    assert rules_of(PLATFORM, b"package platform.authz\nallow := true\n") == ["authz/allow"]


@pytest.mark.parametrize("strange", ["package a{}y", "default{}!", "#{}y", '["{}y', "x{}y"])
def test_no_text_takes_more_time_than_its_length_asks_for(strange: str) -> None:
    """The package was looked for by an expression that tried each of n blanks as the end of the name, and then each
    of the blanks behind it: a raw string with `package a`, 200,000 blanks and a `y` in a live policy whose own package
    line was indented held the event loop, and with it a whole replica, for minutes whenever its page was opened."""
    text = f" package projects.billing\n\nx := `\n{strange.format(' ' * 200_000)}`\n"
    began = time.perf_counter()
    assert "x" in rules_of(BILLING, text.encode())
    assert time.perf_counter() - began < 10


# --- differences -----------------------------------------------------------------------------------------------------


def shown(start: dict[str, Any], end: dict[str, Any], **more: Any) -> Shown:
    document = {"policy": "projects/billing", "from": start, "to": end, "rego": "", "data": []} | more
    found = shown_of(Compared("", "live", json.dumps(document).encode()))
    assert found is not None
    return found


VERSION, LIVE, NOTHING = {"version": 7}, {"ref": "live"}, {"ref": "nothing"}


def test_a_small_difference_is_shown_as_a_whole() -> None:
    rego = "--- a\n+++ b\n@@ -1 +1 @@\n-x\n+y\u2028z\n same\n"
    found = shown(VERSION, LIVE, rego=rego, data=[{"path": "/a", "op": "add", "to": {"b": "<é>"}}])
    assert [kind for kind, _ in found.rego.shown] == ["minus", "plus", "at", "minus", "plus", "same"]
    assert "\n".join(text for _, text in found.rego.shown) == rego.removesuffix("\n")
    assert [(each.path, each.before, each.after) for each in found.data] == [("/a", "", '{"b": "<é>"}')]
    assert (found.cut, found.nothing) == (False, False)
    assert shown(VERSION, LIVE).nothing


def test_a_large_difference_is_cut_and_what_is_left_out_is_counted() -> None:
    data = [{"path": f"/{number}", "op": "add", "to": number} for number in range(2_000)]
    found = shown(VERSION, LIVE, rego="+x\n" * 30_000, data=data, data_text="+y\n" * 501)
    assert (len(found.rego.shown), found.rego.more) == (MOST, 29_500)
    assert (len(found.data), found.data_more) == (MOST, 1_500)
    assert (len(found.data_text.shown), found.data_text.more) == (MOST, 1)
    assert found.cut


def test_a_long_line_or_value_is_cut_too() -> None:
    found = shown(VERSION, LIVE, rego=f"+{'x' * 500_000}\n")
    assert (len(found.rego.shown[0][1]), found.cut) == (1_001, True)
    found = shown(VERSION, LIVE, data=[{"path": "", "op": "replace", "from": None, "to": "x" * 500_000}])
    assert (len(found.data[0].after), found.data[0].before, found.cut) == (1_001, "null", True)
    assert not shown(VERSION, LIVE, rego="+says …\n").cut


@pytest.mark.parametrize(
    ("start", "end", "command"),
    [
        (VERSION, LIVE, "regops diff billing 7 live"),
        (VERSION, {"ref": "head"}, "regops diff billing 7 head"),
        (LIVE, VERSION, "regops diff billing live 7"),
        (NOTHING, LIVE, "regops diff billing"),
        (NOTHING, VERSION, "GET /policies/billing/diff?to=7"),
    ],
)
def test_it_says_what_shows_the_whole(start: dict[str, Any], end: dict[str, Any], command: str) -> None:
    assert shown(start, end).command == command


def test_without_a_difference_there_is_nothing_to_show() -> None:
    assert shown_of(Compared(error="out of reach")) is None


def test_what_is_broken_is_the_newest_version_or_the_branch_where_the_record_is_late() -> None:
    held, applied = {"version": 3, "state": "held"}, {"version": 2, "state": "applied"}
    assert broken_in([held, applied]) == "3"
    assert broken_in([applied]) == "head"
