"""``python -m benchmarks api [reads|writes|active …] [--quick]``: what the API costs, beside what is bare."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import api_reads, api_writes

PARTS = ("reads", "writes", "active")
SIZES = (10, 100)


def main(arguments: Sequence[str], machine: Sequence[str], results: Path) -> None:
    """Print the tables; whole runs are written to ``results/api.md``."""
    quick = "--quick" in arguments
    parts = [word for word in arguments if word in PARTS] or list(PARTS)
    measured = {"reads": _reads, "writes": _writes, "active": _active}
    lines = [*machine, "Command: `make bench ARGS=api`"]
    for part in parts:
        print(f"api {part} …", flush=True)
        lines += ["", *measured[part](quick)]
    text = "\n".join(lines) + "\n"
    print(text)
    if not quick and parts == list(PARTS):
        results.mkdir(exist_ok=True)
        (results / "api.md").write_text(text)


def _reads(quick: bool) -> list[str]:
    slices, seconds = (3, 1.0) if quick else (9, 2.0)
    lines = [
        f"Reads: {api_reads.CONNECTIONS} connections, one policy of 100 lines; requests/s, alternating slices:",
        f"median of {slices} of {seconds:g} s. The token's claims are ones that the platform's policy is asked about.",
        "",
        *_head("request", "regops", "bare aiohttp", "ratio", "client busy"),
    ]
    for pair in asyncio.run(api_reads.measure(slices, seconds)):
        rates = [f"{statistics.median(side):.0f}" for side in (pair.ours, pair.bare)]
        lines.append(_row(pair.name, *rates, f"{pair.ratio:.0%}", f"{pair.client:.0%}"))
    return lines


def _writes(quick: bool) -> list[str]:
    found = asyncio.run(api_writes.measure(10 if quick else 20, 2 if quick else 5))
    script = found.script_rate
    lines = [
        "Writes: PUTs of policies of 100 lines, each writer its own; script: write the file, git commit, git push",
        "",
        *_head("what", "p50 ms", "p95 ms", "writes per second", "times the script"),
    ]
    for wait, seconds in found.alone.items():
        rate = len(seconds) / sum(seconds)
        lines.append(_row(f"1 writer, wait={wait}", *_ms(seconds), f"{rate:.1f}", f"{rate / script:.1f}"))
    for writers, rates in found.rates.items():
        rate = statistics.median(rates)
        name = f"{writers} writers, wait=none, beside the script"
        lines.append(_row(name, *_ms(found.latencies[writers]), f"{rate:.1f}", f"{rate / script:.1f}"))
    lines.append(_row("script", *_ms(found.script), f"{script:.1f}", "1"))
    return lines


def _active(quick: bool) -> list[str]:
    lines = [
        "PUT until every OPA enforces (wait=active); floor: the same bundle from a bare server, alternating: ms",
        "",
        *_head("policies", "PUTs", "p50", "p95", "floor p50", "floor p95", "p95 above the floor"),
    ]
    for size in SIZES[:1] if quick else SIZES:
        ours, bare = asyncio.run(api_writes.measure_active(size, 10 if quick else 40))
        above = f"{(_p(ours, 95) - _p(bare, 95)) * 1000:+.0f}"
        lines.append(_row(str(size), str(len(ours)), *_ms(ours), *_ms(bare), above))
    return lines


def _ms(seconds: Sequence[float]) -> list[str]:
    return [f"{_p(seconds, percent) * 1000:.0f}" for percent in (50, 95)]


def _p(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _head(*names: str) -> list[str]:
    return [_row(*names), "|" + "---|" * len(names)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
