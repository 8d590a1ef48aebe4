"""Why a Rego unit test failed: the expression that did not hold, by a second run of the tests that failed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from reconciler.core.errors import StalledError
from regops.checking.findings import TestFailure, Tests
from regops.checking.opa_test import bench
from regops.checking.tested import Tested

_AT_MOST: Final = 20
_LONGEST: Final = 200
_TEST: Final = re.compile(r"^data\..*\.(?P<name>[^.]+): FAIL \(.*\)\n\n(?P<said>(?:  .*\n|\n)*)", re.MULTILINE)
_PLACE: Final = re.compile(r"^  (?P<file>\S+):(?P<line>\d+):\n\s+(?P<text>.*)$", re.MULTILINE)


async def explained(opa: Path, files: Tested, refused: Sequence[str], found: Tests) -> Tests:
    """``found``, where the first failures that come of the change say which expression of which line did not hold, as
    far as OPA tells."""
    asked = [each for each in found.failures if each.name and not each.before and not each.message][:_AT_MOST]
    if not asked:
        return found
    only = files.without(files.tests.keys() - {each.file for each in asked})
    names = "|".join(sorted({re.escape(each.name) for each in asked}))
    try:
        async with bench(opa, only, refused) as made:
            _, told, _ = await made.run("--var-values", "--run", rf"\.({names})$")
    except StalledError:  # why is a help; that they fail is known
        return found
    reasons = _reasons(told)
    return replace(found, failures=tuple(_with(each, reasons, asked) for each in found.failures))


def _with(each: TestFailure, reasons: dict[tuple[str, str], str], asked: Sequence[TestFailure]) -> TestFailure:
    return replace(each, message=reasons.get((each.file, each.name), "")) if each in asked else each


def _reasons(told: str) -> dict[tuple[str, str], str]:
    """By file and name of the test."""
    reasons = {}
    for test in _TEST.finditer(told):
        if place := _PLACE.search(test["said"]):
            text = " ".join(place["text"].split())
            shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
            reasons[place["file"].removeprefix("./"), test["name"]] = f"line {place['line']} does not hold: {shown}"
    return reasons
