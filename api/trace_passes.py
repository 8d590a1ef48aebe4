"""Which of the logged passes made a commit live: what was held of it at first is applied by a later one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from reconciler.core.model import PolicyName
from reconciler.core.passes import PassRecord


@dataclass(frozen=True, slots=True)
class Way:
    """The passes of a commit, oldest first: the one that ``brought`` it, and those that applied what it changes. The
    last of them is ``done``, and ``None`` where none is known. ``digests``: see `Receipt.proves`; those of ``done``'s
    commit since then."""

    brought: PassRecord | None = None
    passes: tuple[PassRecord, ...] = ()
    done: PassRecord | None = None
    digests: frozenset[str | None] = frozenset()

    def clamped(self, at: str) -> str:
        """A proof of content that was there before counts from the apply on."""
        if self.done is None or self.done.moved or self.done.applied_at is None:
            return at
        return max(at, self.done.applied_at)


async def way_of(
    passes: Sequence[PassRecord],
    commit: str,
    wanted: Collection[PolicyName],
    held: Collection[str],
    contains: Callable[[str | None], Awaitable[bool]],
) -> Way:
    """Of a commit that changes the policies ``wanted``; ``held`` are those of them that are held at it now. ``passes``
    come newest first. Nothing is known where the log does not reach back."""
    logged = [each for each in reversed(passes) if each.followed]
    start = await _start(logged, contains)
    if start is None:
        return Way()
    brought, later = logged[start], logged[start + 1 :]
    applied = [_applied_by(name, commit, brought, later) for name in wanted if name not in held]
    found = [each for each in applied if each is not None]
    if not wanted:
        found = [brought]
    done = max(found, key=logged.index, default=None)
    digests = {each.digest for each in logged[logged.index(done) :] if each.commit == done.commit} if done else set()
    mine = [each for each in logged if each is brought or each in found]
    return Way(brought, tuple(mine), done, frozenset(digests))


async def _start(logged: Sequence[PassRecord], contains: Callable[[str | None], Awaitable[bool]]) -> int | None:
    """The oldest pass that contains the commit, unless it was applied before that already."""
    for number, each in enumerate(logged):
        if each.moved and await contains(each.commit):
            return None if await contains(each.before) else number
    return None


def _applied_by(name: str, commit: str, brought: PassRecord, later: Sequence[PassRecord]) -> PassRecord | None:
    """The first pass that names this version of the policy among its changes. Where none does, the one that brought the
    commit, unless it held the policy back: then the first one that does not name all of its changes, if any."""
    for each in (brought, *later):
        if any((c.policy, c.commit) == (name, commit) and c.operation != "heal" for c in each.changes):
            return each
    untold = brought.held > len(brought.holds) and not brought.changes_more
    if name not in brought.holds and not untold:
        return brought
    return next((each for each in later if each.changes_more), None)
