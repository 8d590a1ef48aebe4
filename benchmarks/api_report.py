"""What the API costs, beside what is bare: reads, writes, and writes until every OPA enforces them."""

from __future__ import annotations

import statistics

from benchmarks import api_reads, api_writes
from benchmarks.report import Cell, Table, ms, percentile

SIZES = (10, 100)


async def reads(*, quick: bool) -> Table:
    """GET and 304 against a bare handler that returns the same bytes."""
    slices, seconds = (3, 1.0) if quick else (9, 2.0)
    rows: list[list[Cell]] = []
    for pair in await api_reads.measure(slices, seconds):
        rates = [round(statistics.median(side)) for side in (pair.ours, pair.bare)]
        rows.append([pair.name, *rates, f"{pair.ratio:.0%}", f"{pair.client:.0%}"])
    return Table(
        "api-reads",
        f"GET of one policy over {api_reads.CONNECTIONS} connections, requests per second, in alternating slices",
        ("request", "regops", "bare aiohttp", "ratio", "client busy"),
        rows,
        "With token, authorization by OPA, request log and metrics. Goal: 80 %.",
    )


async def writes(*, quick: bool) -> Table:
    """PUTs of several writers against the git commands that a script would run."""
    found = await api_writes.measure(10 if quick else 20, 2 if quick else 5)
    script = found.script_rate
    rows: list[list[Cell]] = []
    for wait, seconds in found.alone.items():
        rate = len(seconds) / sum(seconds)
        rows.append([f"1 writer, wait={wait}", *_ms(seconds), round(rate, 1), round(rate / script, 1)])
    for writers, rates in found.rates.items():
        rate = statistics.median(rates)
        rows.append(
            [f"{writers} writers, wait=none", *_ms(found.latencies[writers]), round(rate, 1), round(rate / script, 1)]
        )
    rows.append(["script: write, git commit, git push", *_ms(found.script), round(script, 1), 1])
    return Table(
        "api-writes",
        "PUTs of policies of 100 lines, each writer its own policy; ms",
        ("what", "p50", "p95", "writes per second", "times the script"),
        rows,
        "Validation, authorization and audit included. Goal with 32 writers: 5 times the script, better 10.",
    )


async def active(*, quick: bool) -> Table:
    """PUT with ``wait=active`` beside the floor of propagation."""
    rows: list[list[Cell]] = []
    for size in SIZES[:1] if quick else SIZES:
        ours, bare = await api_writes.measure_active(size, 10 if quick else 40)
        above = ms(percentile(ours, 95) - percentile(bare, 95))
        rows.append([size, len(ours), *_ms(ours), *_ms(bare), above])
    return Table(
        "api-active",
        "PUT until every OPA enforces it (`wait=active`), ms",
        ("policies", "PUTs", "p50", "p95", "floor p50", "floor p95", "p95 above the floor"),
        rows,
    )


def _ms(seconds: list[float]) -> list[float]:
    return [ms(percentile(seconds, percent)) for percent in (50, 95)]
