"""``python -m benchmarks [SECTION …] [--quick]``: print tables, and write them to ``benchmarks/results/``."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks import (
    api_report,
    drills,
    fleet,
    gateways,
    hooks,
    memory,
    passes,
    propagation,
    recording,
    replay,
    restart,
    served,
    shards,
    watching,
)
from benchmarks.peers import comparing
from benchmarks.peers.opal import NotInstallableError
from benchmarks.report import Table

Section = Callable[[bool], Awaitable[Table]]
SECTIONS: dict[str, tuple[str, Section]] = {
    "propagation": (
        "git push returned → OPA decides by the new rule, beside the floor",
        lambda quick: propagation.propagation(*(((10,), 5) if quick else (propagation.SIZES, propagation.COMMITS))),
    ),
    "first-sync": (
        "first sync into an empty etcd, beside bare transactions",
        lambda quick: passes.first_sync(*(((100,), 1) if quick else ((1000, 10_000), 2))),
    ),
    "passes": (
        "a pass with nothing to do, and with one change",
        lambda quick: passes.passes(*(((100,), 5) if quick else ((100, 1000, 10_000), 30))),
    ),
    "one-change": (
        "where the time of one change goes, up to 100,000 policies",
        lambda quick: passes.one_change(*(((100,), 5) if quick else ((1000, 10_000, 100_000), 10))),
    ),
    "served": (
        "applied written → bundle served by the agent",
        lambda quick: served.served((10,) if quick else (10, 100, 400, 1000), 5 if quick else 20),
    ),
    "memory": ("memory of server and agent", lambda quick: memory.memory((100,) if quick else (100, 1000, 10_000))),
    "restart": (
        "server and agent started again, until they answer",
        lambda quick: restart.restart(*(((100,), 2) if quick else ((100, 10_000), 5))),
    ),
    "fleet": (
        "many agents on one etcd: start-up storm, commits, a new leader, etcd killed",
        lambda quick: fleet.storms(*((40, 20) if quick else (1000, 100))),
    ),
    "fleet-reach": (
        "applied written → the last of many agents' mirrors",
        lambda quick: fleet.reach(*(((40,), 20, 3) if quick else ((100, 500), 100, 20))),
    ),
    "fleet-growth": (
        "etcd's database while a fleet's receipts move on",
        lambda quick: fleet.grown(*((40, 20, 10) if quick else (100, 100, 200))),
    ),
    "api-reads": ("GET and 304 beside a bare handler", lambda quick: api_report.reads(quick=quick)),
    "api-writes": ("PUTs beside a script's git commands", lambda quick: api_report.writes(quick=quick)),
    "api-active": ("PUT until every OPA enforces it", lambda quick: api_report.active(quick=quick)),
    "hooks": (
        "webhook sent → answered, amid passes of 10,000 policies",
        lambda quick: hooks.hooks(*((100, 2.0) if quick else (10_000, 20.0))),
    ),
    "recording": (
        "a history recorded in MongoDB from nothing",
        lambda quick: recording.recording(500 if quick else 10_000),
    ),
    "record-lag": (
        "pass ended → its version in MongoDB",
        lambda quick: recording.record_lag(*((10, 5) if quick else (100, 100))),
    ),
    "drills": (
        "etcd and MongoDB lost, until they are filled again",
        lambda quick: drills.drills(*((100, 500) if quick else (10_000, 10_000))),
    ),
    "status": (
        "the state of a large fleet over HTTP, beside a bare handler",
        lambda quick: watching.status(*((100, 50, 20) if quick else (10_000, 1000, 100))),
    ),
    "events": (
        "streams of events while commits flow",
        lambda quick: watching.events(*((10, 5, 50) if quick else (200, 100, 1000))),
    ),
    "replay": (
        "recorded decisions asked again, beside opa eval",
        lambda quick: replay.replaying(*((2000, 10) if quick else (100_000, 100))),
    ),
    "sizing": (
        "git push returned → OPA decides, by the policies that one OPA has",
        lambda quick: shards.sizing(*(((10,), 5) if quick else ((10, 50, 100, 200, 400, 800), 20))),
    ),
    "shards": (
        "one change among 10,000 policies in 64 shards",
        lambda quick: shards.shards(*((200, 8, 3, 5) if quick else (10_000, 64, 12, 40))),
    ),
    "gateways": (
        "a question to OPA, and through HAProxy and Envoy in front of shards",
        lambda quick: gateways.gateways(*(((4,), 200) if quick else ((4, 64), 5000))),
    ),
    "peers": (
        "git push returned → OPA decides by the new rule, beside OPAL; needs PyPI",
        lambda quick: comparing.peers(*(((20,), 3) if quick else ((20, 100, 400), 20))),
    ),
    "growth": ("memory over many passes", lambda quick: passes.growth(100, 100 if quick else 1000)),
}


def main() -> None:
    """Run the sections that are named, all of them by default."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=…",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure regops on this machine, on real etcd, OPA and Git. About half an hour in all.",
        epilog="Sections:\n" + "\n".join(f"  {name:12} {says}" for name, (says, _) in SECTIONS.items()),
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="which to run; all by default")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works; writes no results")
    options = parser.parse_args()
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such section; there are {', '.join(SECTIONS)}")
    for name in options.sections or SECTIONS:
        began = time.monotonic()
        print(f"bench: {name}: {SECTIONS[name][0]} …", file=sys.stderr, flush=True)
        try:
            table = asyncio.run(_run(SECTIONS[name][1], quick=options.quick))
        except NotInstallableError as error:
            print(f"bench: {name} is skipped: what it compares with cannot be installed: {error}", file=sys.stderr)
            continue
        table.publish(keep=not options.quick)
        print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


async def _run(section: Section, *, quick: bool) -> Table:
    return await section(quick)


if __name__ == "__main__":
    main()
