"""``python -m benchmarks [api …] [--quick]``: tables, with machine and versions; whole runs go to ``results/`` too."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import api_report, propagation
from regops import toolchain

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    if sys.argv[1:2] == ["api"]:
        api_report.main(sys.argv[2:], _machine()[:-1], RESULTS)
        return
    quick = "--quick" in sys.argv[1:]
    lines = [*_machine(), ""]
    lines += ["Propagation: `git push` returned → OPA decides by the new rule, ms; floor: the same bundle, bare server"]
    lines += [
        "",
        "| policies | commits | p50 | p95 | max | floor p50 | floor p95 | p95 above the floor |",
        "|" + "---|" * 8,
    ]
    for size in (10,) if quick else propagation.SIZES:
        print(f"propagation with {size} policies …", flush=True)
        ours, bare = asyncio.run(propagation.measure(size, 5 if quick else propagation.COMMITS))
        times = [_p(ours, 50), _p(ours, 95), max(ours), _p(bare, 50), _p(bare, 95)]
        above = (_p(ours, 95) - _p(bare, 95)) * 1000
        cells = [str(size), str(len(ours)), *(f"{seconds * 1000:.0f}" for seconds in times), f"{above:+.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "propagation.md").write_text(text)


def _machine() -> list[str]:
    versions = ", ".join(_version(name, word) for name, word in (("opa", "version"), ("etcd", "--version")))
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return [
        f"{os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}, {git}",
        versions,
        "Command: `make bench`",
    ]


def _version(name: str, word: str) -> str:
    tool = toolchain.find(name)
    if tool is None:
        return f"no {name}"
    said = subprocess.run([str(tool), word], capture_output=True, text=True, check=False).stdout
    return f"{name} {said.splitlines()[0].rpartition(' ')[2]}"


def _p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    main()
