"""The first sync of many policies, and what a pass costs afterwards."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from benchmarks.engine import Engine, engine
from benchmarks.policies import files
from benchmarks.report import Table, ms, percentile
from reconciler.adapters.etcd import EtcdStore
from reconciler.core.ports import Put, Transaction

_OPERATIONS = 126


async def first_sync(sizes: tuple[int, ...], repeat: int) -> Table:
    """An empty etcd; the same bytes in bare transactions of the same size, in the same run."""
    rows = []
    for size in sizes:
        for _ in range(repeat):
            async with engine(size) as one:
                stages = (await one.run()).stages
                apply = _seconds(stages["validated_at"], stages["applied_at"])
                validate = _seconds(stages["fetched_at"], stages["validated_at"])
                bare = await _bare(one.store, files(size))
                rows.append([size, ms(validate), round(size / validate), ms(apply), ms(bare), round(apply / bare, 2)])
    return Table(
        "first-sync",
        "First sync into an empty etcd, ms (100 lines each, small data)",
        ("policies", "validation", "policies/s", "apply", "the same bytes, bare transactions", "ratio"),
        rows,
        "Apply also writes a record of each policy and compares revisions; etcd syncs to disk in both.",
    )


async def passes(sizes: tuple[int, ...], count: int) -> Table:
    """A pass with nothing to do, the same with etcd read anew, and one with one change."""
    rows = []
    for size in sizes:
        async with engine(size) as one:
            one.compiler.trusts = True  # the first sync is not what is measured
            await one.run()
            one.compiler.trusts = False
            await one.run()
            nothing = [await _timed(one, told=False) for _ in range(count)]
            looked = []
            for _ in range(count):
                one.reconciler.invalidate()
                looked.append(await _timed(one))
            changed = []
            for mark in range(1, count + 1):
                one.change(mark)
                changed.append(await _timed(one))
            cells = [ms(percentile(times, p)) for times in (nothing, looked, changed) for p in (50, 95)]
            rows.append([size, *cells])
    return Table(
        "passes",
        "One pass, ms (git fetch included)",
        ("policies", "nothing to do p50", "p95", "etcd read anew p50", "p95", "one change p50", "p95"),
        rows,
    )


async def one_change(sizes: tuple[int, ...], count: int) -> Table:
    """Where the time of a pass with one changed policy goes, apart from OPA: policies of 10 lines."""
    rows = []
    for size in sizes:
        async with engine(size, lines=10) as one:
            one.compiler.trusts = True  # the first sync is not what is measured
            await one.run()
            one.compiler.trusts = False
            one.change(1)
            await one.run()
            parts = []
            for mark in range(2, count + 2):
                one.change(mark)
                seconds = await _timed(one)
                parts.append(_parts(one, seconds))
            rows.append([size, *(ms(percentile(times, 50)) for times in zip(*parts, strict=True))])
    return Table(
        "one-change",
        "One change, p50 in ms (10 lines each)",
        ("policies", "all but OPA", "git fetch", "tree read", "other reads of Git", "etcd", "the rest", "OPA"),
        rows,
        "Goal: the first column within 1.5 times of each other. Git keeps a folder as one list of all its entries: "
        "what sends, stores and reads that list grows with it.",
    )


def _parts(one: Engine, seconds: float) -> list[float]:
    git, etcd, opa = one.git.seconds, sum(one.etcd.seconds.values()), sum(one.opa.seconds.values())
    other = sum(git.values()) - git["fetch"] - git["tree"]
    rest = seconds - sum(git.values()) - etcd - opa
    return [seconds - opa, git["fetch"], git["tree"], other, etcd, rest, opa]


async def growth(size: int, count: int) -> Table:
    """Resident memory and open files of a leader's engine over many passes, one in ten with a change."""
    rows = []
    async with engine(size) as one:
        await one.run()
        for number in range(1, count + 1):
            if number % 10 == 0:
                one.change(number)
            elif number % 2 == 0:
                one.reconciler.invalidate()
            await one.run()
            if number in {count // 10, count // 2, count}:
                gc.collect()
                rows.append([number, round(_resident() / 1e6, 1), len(os.listdir("/proc/self/fd"))])  # noqa: PTH208 proc
    return Table("growth", f"After so many passes over {size} policies", ("passes", "resident MB", "open files"), rows)


async def _timed(one: Engine, *, told: bool = True) -> float:
    began = time.perf_counter()
    await one.run(told=told)
    return time.perf_counter() - began


async def _bare(store: EtcdStore, tree: Iterable[tuple[str, bytes]]) -> float:
    puts = [Put(f"/bare/{name}", text) for name, text in tree]
    began = time.perf_counter()
    for start in range(0, len(puts), _OPERATIONS):
        await store.commit(Transaction((), tuple(puts[start : start + _OPERATIONS])))
    return time.perf_counter() - began


def _seconds(begun: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
