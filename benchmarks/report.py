"""Tables on the terminal, and the same with machine, versions and command in ``benchmarks/results/``."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from regops import toolchain

RESULTS = Path(__file__).parent / "results"
Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Table:
    """One result. ``name`` is the file's and the command's; ``goal`` says what is to be reached."""

    name: str
    says: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    goal: str = ""

    def markdown(self) -> str:
        """The table with its heading."""
        lines = [f"### {self.says}", ""]
        lines += [f"| {' | '.join(self.columns)} |", "|" + "---|" * len(self.columns)]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in self.rows]
        return "\n".join(
            [*lines, "", *([self.goal, ""] if self.goal else []), f'Command: `make bench ARGS="{self.name}"`']
        )

    def publish(self, *, keep: bool) -> None:
        """Print it; ``keep`` writes the result files too (not for shortened runs)."""
        print(f"\n{self.markdown()}\n\n{machine()}\n", flush=True)
        if not keep:
            return
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self.name}.md").write_text(f"{self.markdown()}\n\n{machine()}\n")
        document = {
            "name": self.name,
            "says": self.says,
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "machine": machine(),
            "at": f"{datetime.now(UTC):%Y-%m-%d}",
        }
        (RESULTS / f"{self.name}.json").write_text(json.dumps(document, indent=2) + "\n")


def percentile(values: Sequence[float], percent: int) -> float:
    """Of at least two values, interpolated."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def ms(seconds: float) -> float:
    """Milliseconds, to a tenth."""
    return round(seconds * 1000, 1)


@cache
def machine() -> str:
    """What it was measured on."""
    versions = ", ".join(_version(name, word) for name, word in (("opa", "version"), ("etcd", "--version")))
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    kernel = platform.platform(terse=True)
    return f"{os.cpu_count()} cores, {kernel}, Python {platform.python_version()}, {git}, {versions}"


def _version(name: str, word: str) -> str:
    tool = toolchain.find(name)
    if tool is None:
        return f"no {name}"
    said = subprocess.run([str(tool), word], capture_output=True, text=True, check=False).stdout
    return f"{name} {said.splitlines()[0].rpartition(' ')[2]}"


def _cell(cell: Cell) -> str:
    return f"{cell:,.1f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else cell
