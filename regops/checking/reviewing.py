"""From two revisions to what a review finds: the server's own validation, with the old revision as what is live."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.data_diff import changes
from api.diffs import unified
from api.texts import strict_object
from reconciler.agent.bundle import BundleBuilder
from reconciler.agent.scope import ALL
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.guards import Limits, judge_deletions
from reconciler.core.limits import Limits as TextLimits
from reconciler.core.live import LivePolicy, LiveState
from reconciler.core.model import DATA_FILE, REGO_FILE, Content, PolicyName, Tree, policy_name
from reconciler.core.plan import Target
from reconciler.core.ports import Source
from reconciler.core.records import Held, Meta
from reconciler.validation import Judge, Resolution
from regops.checking.findings import Operation, PolicyFinding

_NESTING = TextLimits().nesting


@dataclass(frozen=True, slots=True)
class Compared:
    """Both revisions, and what would be live of each: the bundle that an OPA would load."""

    findings: tuple[PolicyFinding, ...]
    resolution: Resolution
    tree: Tree
    blocked: tuple[PolicyName, ...]
    blocked_reason: str
    old_bundle: bytes
    new_bundle: bytes


async def compare(source: Source, judge: Judge, old: str, new: str, limits: Limits) -> Compared:
    """Judge the old revision as a server with nothing live would, and the new one as it would then."""
    old_tree, new_tree = await source.tree(old), await source.tree(new)
    before = await judge.resolve(old_tree, LiveState())
    live = _live(before.targets)
    gone = [name for name in before.targets if name not in new_tree.policies and name not in new_tree.invalid]
    empty = not new_tree.found or not (new_tree.policies or new_tree.invalid)
    ruling = judge_deletions(gone, live=len(before.targets), source_empty=empty, confirmed=(), limits=limits)
    after = await judge.resolve(new_tree, live, ruling.allowed)
    targets = {name: each for name, each in after.targets.items() if name not in ruling.allowed}
    findings = [
        await _finding(source, name, old_tree, new_tree, before.held.get(name), after.held.get(name))
        for name in sorted({*_touched(old_tree, new_tree), *after.held})
    ]
    return Compared(
        findings=tuple(findings),
        resolution=after,
        tree=new_tree,
        blocked=ruling.blocked,
        blocked_reason=ruling.message,
        old_bundle=await _bundle(source, before.targets),
        new_bundle=await _bundle(source, targets),
    )


def _touched(old: Tree, new: Tree) -> set[str]:
    """Policies whose published files differ, and impossible ones."""
    names = {str(name) for name in old.policies.keys() | new.policies.keys()}
    changed = {name for name in names if old.policies.get(_name(name)) != new.policies.get(_name(name))}
    return changed | {str(raw) for raw in new.invalid if raw not in old.invalid}


def _name(text: str) -> PolicyName:
    return policy_name(text)


def _live(targets: Mapping[PolicyName, Target]) -> LiveState:
    """As if the old revision were live."""
    policies = {}
    for name, target in targets.items():
        blobs = target.blobs
        meta = Meta(blobs.etag, "", "", "", target.rego_version, blobs.rego, blobs.data)
        files = {REGO_FILE: 1} if blobs.data is None else {REGO_FILE: 1, DATA_FILE: 1}
        policies[name] = LivePolicy(meta, 1, files)
    return LiveState(revision=1, policies=policies)


async def _finding(
    source: Source, name: str, old: Tree, new: Tree, held_before: Held | None, held: Held | None
) -> PolicyFinding:
    try:
        policy = policy_name(name)
    except ValueError:  # the raw path of an impossible name
        errors = held.errors if held else ()
        return PolicyFinding(
            name, Operation.CREATE, held.reason if held else "", errors, before=held_before is not None
        )
    before, after = old.policies.get(policy), new.policies.get(policy)
    texts = [await source.read(blobs) if blobs is not None else None for blobs in (before, after)]
    rego, data, data_text = await asyncio.to_thread(_difference, policy, *texts)
    same = before == after and (policy in old.invalid) == (policy in new.invalid)
    return PolicyFinding(
        policy=policy,
        operation=_operation(policy, old, new),
        reason=held.reason if held else "",
        errors=held.errors if held else (),
        before=held is not None and held_before is not None and same,
        rego=rego,
        data=data,
        data_text=data_text,
    )


def _operation(policy: PolicyName, old: Tree, new: Tree) -> Operation:
    was, is_ = (policy in tree.policies or policy in tree.invalid for tree in (old, new))
    if was and is_:
        return Operation.NONE if old.policies.get(policy) == new.policies.get(policy) else Operation.UPDATE
    return Operation.CREATE if is_ else Operation.DELETE


def _difference(
    policy: PolicyName, old: Content | None, new: Content | None
) -> tuple[str, tuple[Mapping[str, Any], ...], str]:
    rego = (old.rego if old else None, new.rego if new else None)
    data = (old.data if old else None, new.data if new else None)
    shown = unified(f"{policy}/{REGO_FILE}", *rego) if rego[0] != rego[1] else ""
    if data[0] == data[1]:
        return shown, (), ""
    text = unified(f"{policy}/{DATA_FILE}", *data)
    if data[0] is None or data[1] is None:  # a file that comes or goes is read best as text
        return shown, (), text
    try:
        found = tuple(changes(_parsed(data[0]), _parsed(data[1])))
    except (ValueError, RecursionError):
        return shown, (), text
    return shown, found, "" if found else text


def _parsed(data: bytes) -> dict[str, Any]:
    return strict_object(data.decode(), _NESTING)


async def _bundle(source: Source, targets: Mapping[PolicyName, Target]) -> bytes:
    """What an OPA would load."""
    policies = {}
    for name, target in targets.items():
        blobs = target.blobs
        meta = Meta(blobs.etag, "", "", "", target.rego_version, blobs.rego, blobs.data)
        policies[name] = MirrorPolicy(await source.read(blobs), meta)
    return await asyncio.to_thread(lambda: BundleBuilder(ALL).build(MirrorState(None, 0, policies)).body)
