"""From a change to what a review finds: the server's own validation, with what the branch has as what is live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from api.data_diff import changes
from api.diffs import unified
from api.texts import strict_object
from reconciler.adapters.git.pair import Pair
from reconciler.agent.bundle import BundleBuilder
from reconciler.agent.scope import ALL
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.guards import Limits, judge_deletions
from reconciler.core.limits import Limits as TextLimits
from reconciler.core.live import LivePolicy, LiveState
from reconciler.core.model import DATA_FILE, REGO_FILE, Content, PolicyName, Tree
from reconciler.core.plan import Target
from reconciler.core.ports import Source
from reconciler.core.records import Meta
from reconciler.resolution import Resolution
from reconciler.validation import Judge
from regops.checking.findings import Operation, PolicyFinding

_NESTING = TextLimits().nesting


@dataclass(frozen=True, slots=True)
class State:
    """One side of the change: its commit, and what would be live of it."""

    commit: str
    tree: Tree
    resolution: Resolution
    targets: Mapping[PolicyName, Target]


@dataclass(frozen=True, slots=True)
class Compared:
    """Both sides, and what the change means. ``notes``: what could not be looked at."""

    findings: tuple[PolicyFinding, ...]
    old: State
    new: State
    blocked: tuple[PolicyName, ...]
    blocked_reason: str
    notes: tuple[str, ...]


async def compare(source: Source, judge: Judge, pair: Pair, limits: Limits) -> Compared:
    """Judge the branch as a server with nothing live would, from its history, and then what the merge would make of it.

    What is shown is what the change itself does.
    """
    old_tree, new_tree = await source.tree(pair.old), await source.tree(pair.new)
    left, changed = await source.tree(pair.left), await source.tree(pair.changed)
    before = await judge.resolve(old_tree, LiveState())
    gone = [name for name in before.targets if name not in new_tree.policies and name not in new_tree.invalid]
    empty = not new_tree.found or not (new_tree.policies or new_tree.invalid)
    ruling = judge_deletions(gone, live=len(before.targets), source_empty=empty, confirmed=(), limits=limits)
    after = await judge.resolve(new_tree, _live(before.targets), ruling.allowed)
    targets = {name: each for name, each in after.targets.items() if name not in ruling.allowed}
    freed = {name for name in before.held.keys() - after.held.keys() if name in new_tree.policies}
    same = _same(old_tree, new_tree)
    findings = []
    for name in sorted({*_touched(left, changed), *after.held, *freed}):
        held, former = after.held.get(name), before.held.get(name)
        found = await _finding(source, pair.path, name, left, changed)
        findings.append(
            replace(
                found,
                reason=held.reason if held else "",
                errors=held.errors if held else (),
                before=held is not None and former is not None and same(name),
                blocked=name in ruling.blocked,
            )
        )
    return Compared(
        findings=tuple(findings),
        old=State(pair.old, old_tree, before, before.targets),
        new=State(pair.new, new_tree, after, targets),
        blocked=ruling.blocked,
        blocked_reason=ruling.message,
        notes=tuple(_notes(pair, before)),
    )


def _notes(pair: Pair, before: Resolution) -> Iterator[str]:
    if before.held and not pair.whole:
        yield (
            f"the clone is shallow, so the last good version of what is held without the change "
            f"({', '.join(sorted(before.held))}) is not known, nor what breaks it: fetch the whole history"
        )
    if pair.conflicts:
        yield (
            f"the branch has moved on and the change cannot be merged with it ({', '.join(pair.conflicts[:5])}): "
            "it is judged as if the branch had not; rebase it"
        )


def _touched(old: Tree, new: Tree) -> set[str]:
    """Policies whose published files differ, and impossible ones that come or go."""
    same = _same(old, new)
    return {str(name) for tree in (old, new) for name in (*tree.policies, *tree.invalid) if not same(str(name))}


def _same(old: Tree, new: Tree) -> Callable[[str], bool]:
    """Whether both trees have the same of a name, as far as can be told without reading."""

    def same(name: str) -> bool:
        policy = PolicyName(name)
        return old.policies.get(policy) == new.policies.get(policy) and old.invalid.get(name) == new.invalid.get(name)

    return same


def _live(targets: Mapping[PolicyName, Target]) -> LiveState:
    """As if the old revision were live."""
    policies = {}
    for name, target in targets.items():
        blobs = target.blobs
        meta = Meta(blobs.etag, "", "", "", target.rego_version, blobs.rego, blobs.data)
        files = {REGO_FILE: 1} if blobs.data is None else {REGO_FILE: 1, DATA_FILE: 1}
        policies[name] = LivePolicy(meta, 1, files)
    return LiveState(revision=1, policies=policies)


async def _finding(source: Source, path: str, name: str, old: Tree, new: Tree) -> PolicyFinding:
    """What the change does to a policy, or to a path that is none; ``path`` is the folder of the policies."""
    policy = PolicyName(name)
    before, after = old.policies.get(policy), new.policies.get(policy)
    texts = [await source.read(blobs) if blobs is not None else None for blobs in (before, after)]
    rego, data, data_text = await asyncio.to_thread(_difference, f"{path}/{policy}", *texts)
    return PolicyFinding(name, _operation(name, old, new), rego=rego, data=data, data_text=data_text)


def _operation(name: str, old: Tree, new: Tree) -> Operation:
    was, is_ = (name in tree.policies or name in tree.invalid for tree in (old, new))
    if was and is_:
        return Operation.NONE if _same(old, new)(name) else Operation.UPDATE
    if not was and not is_:
        return Operation.NONE
    return Operation.CREATE if is_ else Operation.DELETE


def _difference(
    folder: str, old: Content | None, new: Content | None
) -> tuple[str, tuple[Mapping[str, Any], ...], str]:
    rego = (old.rego if old else None, new.rego if new else None)
    data = (old.data if old else None, new.data if new else None)
    shown = unified(f"{folder}/{REGO_FILE}", *rego) if rego[0] != rego[1] else ""
    if data[0] == data[1]:
        return shown, (), ""
    text = unified(f"{folder}/{DATA_FILE}", *data)
    if data[0] is None or data[1] is None:  # a file that comes or goes is read best as text
        return shown, (), text
    try:
        found = tuple(changes(_parsed(data[0]), _parsed(data[1])))
    except (ValueError, RecursionError):
        return shown, (), text
    return shown, found, "" if found else text


def _parsed(data: bytes) -> dict[str, Any]:
    return strict_object(data.decode(), _NESTING)


async def bundle(source: Source, targets: Mapping[PolicyName, Target]) -> bytes:
    """What an OPA would load of them."""
    policies = {}
    for name, target in targets.items():
        blobs = target.blobs
        meta = Meta(blobs.etag, "", "", "", target.rego_version, blobs.rego, blobs.data)
        policies[name] = MirrorPolicy(await source.read(blobs), meta)
    return await asyncio.to_thread(lambda: BundleBuilder(ALL).build(MirrorState(None, 0, policies)).body)
