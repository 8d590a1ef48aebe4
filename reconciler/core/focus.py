"""Which policies a pass must look at, when the pass before left everything else as it should be. Pure.

The last settled pass made etcd equal to its commit, but for what it held or blocked. Nobody else wrote since (else etcd
is read anew, and everything looked at). So a policy that neither the commit changed nor that pass left undone is as it
should be. Whatever is odd (the platform moves or is held, the folder of policies is none, nobody can tell what
changed) makes the pass look at everything: that is the reference, and a focused pass must give the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from reconciler.core.live import LiveState
from reconciler.core.model import PLATFORM, PolicyName, Tree, policy_name


def focus_of(tree: Tree, live: LiveState, undone: Iterable[str]) -> frozenset[PolicyName] | None:
    """The policies to look at, ``None`` for all of them.

    ``tree`` tells what changed since the commit of the last settled pass; ``undone``: what that pass held, blocked or
    withdrew, raw paths among them.
    """
    if tree.changed is None or not tree.found or "projects" in tree.invalid or live.suspended is not None:
        return None
    names = tree.changed | _policies(undone) | _policies(tree.invalid)
    return None if PLATFORM in names or not _same_platform(tree, live) else names


def _same_platform(tree: Tree, live: LiveState) -> bool:
    found = live.policies.get(PLATFORM)
    if found is None:
        return PLATFORM not in tree.policies
    return found.blobs is not None and found.blobs == tree.policies.get(PLATFORM)


def _policies(names: Iterable[str]) -> frozenset[PolicyName]:
    """Those of the names that a policy can have; what lies at any other path is in the tree, whole."""
    found = set()
    for name in names:
        try:
            found.add(policy_name(name))
        except ValueError:
            continue
    return frozenset(found)
