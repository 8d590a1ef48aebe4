"""The Rego unit tests of a tree, by OPA, with their coverage."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from reconciler.core.errors import StalledError
from regops.checking.findings import TestFailure, Tests

_SECONDS: Final = 600.0
_FAILED: Final = 2
"""OPA's exit code when a test fails."""


async def run_tests(opa: Path, folder: Path) -> Tests:
    """Run every ``*_test.rego`` below ``folder``, which is loaded as production loads it. Raises `StalledError` when
    OPA does not end in time."""
    if not await asyncio.to_thread(_any, folder):
        return Tests()
    code, out, err = await _opa(opa, folder, "--format", "json")
    try:
        results = json.loads(out) if out.strip() else None
    except ValueError:
        results = None
    if code not in {0, _FAILED} or not isinstance(results, list):
        return Tests(error=_told(folder, err or out))
    failures = tuple(_failure(each) for each in results if each.get("fail") or each.get("error"))
    ran = [each for each in results if not each.get("skip")]
    return Tests(
        run=Counter(_policy_of(each["location"]["file"]) for each in ran),
        failures=failures,
        skipped=len(results) - len(ran),
        coverage={} if failures else await _coverage(opa, folder),
    )


def _any(folder: Path) -> bool:
    return next(folder.rglob("*_test.rego"), None) is not None


async def _coverage(opa: Path, folder: Path) -> dict[str, float]:
    """Percent of the lines of each policy; nothing where OPA does not tell."""
    _, out, _ = await _opa(opa, folder, "--coverage", "--format", "json")
    try:
        files = json.loads(out)["files"]
    except (ValueError, KeyError):
        return {}
    found = {}
    for name, told in files.items():
        if name.endswith("/rego.rego") or name == "rego.rego":
            found[_policy_of(name)] = float(told.get("coverage", 0.0))
    return found


async def _opa(opa: Path, folder: Path, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(str(opa), "test", *words, "-b", "."),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            out, err = await process.communicate()
    except TimeoutError as error:
        message = f"the Rego unit tests did not end within {_SECONDS:g} s"
        raise StalledError(message, remedy="Find the one that does not end: opa test -v.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _failure(told: dict[str, Any]) -> TestFailure:
    place = told["location"]
    error = told.get("error")
    message = error.get("message", "") if isinstance(error, dict) else ""
    return TestFailure(place["file"].removeprefix("./"), place["row"], told["name"], message)


def _policy_of(file: str) -> str:
    """The policy in whose folder a file lies."""
    parts = file.removeprefix("./").split("/")
    return "/".join(parts[:2]) if parts[0] == "projects" else parts[0]


def _told(folder: Path, text: str) -> str:
    """OPA's own words, on few lines and without the name of a folder that is gone."""
    lines = [line.strip() for line in text.replace(f"{folder}/", "").splitlines() if line.strip()]
    return "; ".join(lines[:6]) or "opa test said nothing"
