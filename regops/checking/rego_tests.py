"""The Rego unit tests of a revision, by OPA, with their coverage; and which of them failed before a change already."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from reconciler.core.model import REGO_FILE
from regops.checking.findings import TestFailure, Tests, policy_of
from regops.checking.opa_test import Bench, bench
from regops.checking.tested import Tested

_FAILED: Final = 2
"""OPA's exit code when a test fails."""
_ROUNDS: Final = 50
_BLAMED: Final = re.compile(
    r"(?:^|[: ])((?:platform|projects/[a-z0-9-]+)/[^/:]+_test\.rego):(\d+): (.*)$", re.MULTILINE
)


async def run_tests(opa: Path, files: Tested, refused: Sequence[str]) -> Tests:
    """Run every test among ``files``. A test file that does not compile is a failure of its own, and the others run
    without it. Raises `StalledError` when OPA does not end in time."""
    if not files.tests:
        return Tests()
    async with bench(opa, files, refused) as made:
        broken: list[TestFailure] = []
        for _ in range(_ROUNDS):
            code, out, err = await made.run("--format", "json", "--max-errors", "1000")
            results = _results(code, out)
            if results is not None:
                return _counted(results, broken)
            blamed = _blamed(err, files.tests.keys() - {each.file for each in broken})
            if not blamed:
                return Tests(failures=tuple(broken), error=_told(made, err or out))
            broken += blamed
            for each in blamed:
                made.remove(each.file)
        return Tests(failures=tuple(broken), error="too many tests do not compile")


async def measure(opa: Path, files: Tested, refused: Sequence[str]) -> dict[str, float]:
    """Percent of the lines of each policy that the tests cover; nothing where OPA does not tell, as when one fails."""
    if not files.tests:
        return {}
    async with bench(opa, files, refused) as made:
        _, out, _ = await made.run("--coverage", "--format", "json")
    try:
        told = json.loads(out)["files"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {
        policy_of(name): float(each.get("coverage", 0.0))
        for name, each in told.items()
        if name.removeprefix("./") in files.published and name.endswith(f"/{REGO_FILE}")
    }


def marked(found: Tests, former: Tests) -> Tests:
    """``found``, where what ``former`` has too is known not to come of the change."""
    known = {(each.file, each.name) for each in former.failures}
    return replace(
        found,
        failures=tuple(replace(each, before=(each.file, each.name) in known) for each in found.failures),
        error_before=bool(found.error and former.error),
    )


def _results(code: int, out: str) -> list[dict[str, Any]] | None:
    """What OPA says of each test; ``None`` where it ran none since something does not compile."""
    if code not in {0, _FAILED}:
        return None
    try:
        results = json.loads(out) if out.strip() else []
    except ValueError:
        return None
    return results if isinstance(results, list) else None


def _counted(results: list[dict[str, Any]], broken: Sequence[TestFailure]) -> Tests:
    ran = [each for each in results if not each.get("skip")]
    failures = [_failure(each) for each in results if each.get("fail") or each.get("error")]
    return Tests(
        run=Counter(policy_of(each["location"]["file"]) for each in ran),
        failures=tuple(sorted((*broken, *failures), key=lambda each: (each.file, each.line))),
        skipped=len(results) - len(ran),
    )


def _failure(told: dict[str, Any]) -> TestFailure:
    place = told["location"]
    error = told.get("error")
    message = error.get("message", "") if isinstance(error, dict) else ""
    return TestFailure(place["file"].removeprefix("./"), place["row"], told["name"], message)


def _blamed(said: str, tests: Collection[str]) -> list[TestFailure]:
    """The test files that OPA blames for not compiling, each with its first error."""
    found: dict[str, TestFailure] = {}
    for file, line, message in _BLAMED.findall(said):
        if file in tests:
            found.setdefault(file, TestFailure(file, int(line), "", message.strip()))
    return list(found.values())


def _told(made: Bench, text: str) -> str:
    """OPA's own words, on few lines and without the name of a folder that is gone."""
    lines = [line.strip() for line in text.replace(f"{made.folder}/", "").splitlines() if line.strip()]
    return "; ".join(lines[:6]) or "opa test said nothing"
