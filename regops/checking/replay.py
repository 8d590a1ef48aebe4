"""Recorded inputs, asked of the old and of the new policies: whose decisions change?

Two OPAs load what would be live of either revision, as a fleet would. Inputs of one rule are asked together, many in
one query; where one of them fails, that lot is asked one by one, so that a mistake in a rule is its own decision's.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from reconciler.core.errors import StalledError
from regops.checking.decisions import Decision, OtherLine, Skipped, Unreadable, printable, read
from regops.checking.evaluator import UNDEFINED, Failed, evaluator
from regops.checking.findings import Example, Flips, Replay

LOT: Final = 200
"""Inputs that are asked together."""
_LOT_SIZE: Final = 1 << 20
"""Characters of the log, of a lot."""
_WAITING: Final = 32 << 20
"""The same, of all lots that are not full yet."""
_OPEN: Final = 8
"""Lots that are under way at once."""
_RULES: Final = 500
_SHOWN: Final = 400
_UNREADABLE: Final = 10

Progress = Callable[[int], None]


@dataclass(slots=True)
class _Tally:
    """What was counted of one rule."""

    inputs: int = 0
    flips: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class _Counted:
    """What was counted of all."""

    rules: dict[tuple[str, ...], _Tally] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    other_lines: int = 0
    differed: int = 0
    nondeterministic: int = 0
    done: int = 0


async def replay(
    opa: Path,
    bundles: tuple[bytes, bytes],
    files: Sequence[str],
    *,
    limit: int | None,
    examples: int,
    progress: Progress = lambda _: None,
) -> Replay:
    """Ask every decision in ``files`` (the first ``limit``) again. Raises `StalledError` when none of them can be read,
    `TransientError` when OPA fails."""
    counted = _Counted()
    async with evaluator(opa, bundles[0]) as old, evaluator(opa, bundles[1]) as new:
        running: deque[tuple[list[Decision], asyncio.Future[tuple[list[Any], list[Any]]]]] = deque()

        async def count() -> None:
            """The oldest lot: in the order in which they were read, whichever ends first."""
            lot, task = running[0]
            _count(counted, lot, await task, examples)
            running.popleft()
            progress(counted.done)

        try:
            for lot in _lots(files, limit, counted):
                running.append((lot, asyncio.gather(old.decide(lot), new.decide(lot))))
                if len(running) >= _OPEN:
                    await count()
            while running:
                await count()
        finally:
            for _, task in running:
                task.cancel()
            await asyncio.gather(*(task for _, task in running), return_exceptions=True)
    if (counted.unreadable_count or counted.other_lines) and not counted.done and not counted.skipped:
        first = f"{counted.unreadable[0]}; " if counted.unreadable else ""
        raise StalledError(
            f"{first}nothing in {', '.join(files)} is a decision",
            remedy="Name a decision log of OPA: one JSON object a line with path, input and result.",
        )
    return _result(counted)


def _result(counted: _Counted) -> Replay:
    rules = []
    for path, each in counted.rules.items():
        policy, rule = "/".join(path[: _depth(path)]), "/".join(path[_depth(path) :])
        rules.append(Flips(policy, rule, each.inputs, each.flips, tuple(each.examples)))
    rules.sort(key=lambda each: (-each.flips, each.policy, each.rule))
    return Replay(
        rules=tuple(rules),
        skipped=dict(counted.skipped),
        differed=counted.differed,
        unreadable=tuple(counted.unreadable),
        unreadable_count=counted.unreadable_count,
        other_lines=counted.other_lines,
        nondeterministic=counted.nondeterministic,
    )


def _depth(path: Sequence[str]) -> int:
    """How many segments name the policy."""
    return 2 if path[0] == "projects" else 1


# --- what is read ----------------------------------------------------------------------------------------------------


def _lots(files: Sequence[str], limit: int | None, counted: _Counted) -> Iterator[list[Decision]]:
    """Decisions of one rule together; what cannot be asked is counted."""
    waiting: dict[tuple[str, ...], _Lot] = {}
    taken = size = 0
    for each in (found for name in files for found in read(name)):
        if isinstance(each, OtherLine):
            counted.other_lines += 1
            continue
        if isinstance(each, Unreadable):
            counted.unreadable_count += 1
            if len(counted.unreadable) < _UNREADABLE:
                counted.unreadable.append(each.place)
            continue
        if limit is not None and taken >= limit:
            break
        taken += 1
        if isinstance(each, Skipped):
            counted.skipped[each.why] += 1
            continue
        lot = waiting.setdefault(each.path, _Lot())
        lot.decisions.append(each)
        lot.size += each.size
        size += each.size
        full = each.path if len(lot.decisions) >= LOT or lot.size >= _LOT_SIZE else None
        if full is None and (len(waiting) > _RULES or size >= _WAITING):
            full = next(iter(waiting))
        if full is not None:
            size -= waiting[full].size
            yield waiting.pop(full).decisions
    for lot in waiting.values():
        yield lot.decisions


@dataclass(slots=True)
class _Lot:
    """What is asked together, in the making."""

    decisions: list[Decision] = field(default_factory=list)
    size: int = 0


# --- what is counted -------------------------------------------------------------------------------------------------


def _count(counted: _Counted, lot: list[Decision], decided: tuple[list[Any], list[Any]], examples: int) -> None:
    """What both revisions said of a lot."""
    tally = counted.rules.setdefault(lot[0].path, _Tally())
    for decision, was, is_ in zip(lot, *decided, strict=True):
        tally.inputs += 1
        counted.done += 1
        counted.nondeterministic += decision.nondeterministic
        counted.differed += _recorded_otherwise(decision, was)
        if _same(was, is_):
            continue
        tally.flips += 1
        if len(tally.examples) < examples:
            tally.examples.append(Example(decision.id, _text(was), _text(is_), _shortened(decision.input)))


def _recorded_otherwise(decision: Decision, now: Any) -> bool:
    """Whether the log tells another decision; what it does not tell cannot differ."""
    if not decision.told:
        return False
    if decision.failed or isinstance(now, Failed):
        return decision.failed != isinstance(now, Failed)
    return not _same(decision.result if decision.defined else UNDEFINED, now)


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if one is UNDEFINED or other is UNDEFINED or isinstance(one, Failed) or isinstance(other, Failed):
        return bool(one == other)
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _text(value: Any) -> str | None:
    if value is UNDEFINED:
        return None
    return f"error: {value.message}" if isinstance(value, Failed) else _shortened(value)


def _shortened(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
