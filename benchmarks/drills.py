"""How long it takes until what was lost is there again: etcd from Git, and MongoDB from Git."""

from __future__ import annotations

import time

from benchmarks.engine import KEYS, Engine, engine
from benchmarks.recording import recorded
from benchmarks.report import Table
from reconciler.core.ports import Delete, Range, Transaction
from reconciler.reconcile import Reconciler

_OPERATIONS = 100
_VERSIONS = 5
_RULES = 14


async def drills(policies: int, commits: int) -> Table:
    """The same server fills a wiped etcd, then a new one does; then a wiped MongoDB is filled."""
    rows: list[list[str | int | float]] = []
    async with engine(policies) as one:
        rows.append(["etcd, by a server that has just started", f"{policies:,} policies", await _filled(one)])
        await _wipe(one)
        rows.append(["etcd, by a server that was there before", f"{policies:,} policies", await _filled(one)])
    seconds = (await recorded(commits, _VERSIONS, _RULES))[3]
    rows.append(["MongoDB's versions", f"{commits:,} commits", seconds])
    return Table(
        "drills",
        "Lost, and there again",
        ("what was lost", "how much", "seconds"),
        rows,
        "A server that was there before remembers what compiles; a new one asks OPA about every policy.",
    )


async def _filled(one: Engine) -> float:
    began = time.perf_counter()
    await one.run()
    return round(time.perf_counter() - began, 1)


async def _wipe(one: Engine) -> None:
    """Everything but the lead, as an etcd that was lost and made anew: the reconciler has to read it whole."""
    (found, own) = (
        await one.store.read(
            Range(KEYS.policies, prefix=True, keys_only=True), Range(KEYS.own, prefix=True, keys_only=True)
        )
    ).ranges
    keys = [kv.key for kv in (*found, *own) if not kv.key.startswith(KEYS.leader)]
    for start in range(0, len(keys), _OPERATIONS):
        await one.store.commit(Transaction((), tuple(Delete(key) for key in keys[start : start + _OPERATIONS])))
    reconciler: Reconciler = one.reconciler
    reconciler.invalidate()
