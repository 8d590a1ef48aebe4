"""One pass into the record: places in the ledger, versions, what is too old, the bookmark. Any step may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from reconciler.core.errors import TransientError
from reconciler.core.ledger import Entry
from reconciler.core.model import PolicyName
from reconciler.core.ports import BranchCommit, Source
from reconciler.core.record_ports import Bookmark, VersionStore
from reconciler.core.versions import Retention, Seen, StoredVersion, Version, judge, survivors
from reconciler.metrics import RecorderMetrics
from reconciler.record_ledger import SharedLedger

_BATCH: Final = 256
_BATCH_BYTES: Final = 4 * 1024 * 1024
_CONTENT_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of a version above which its text is not even read: only a held one can be so large."""
_LOOK_BACK: Final = 100
"""Versions of a policy among which one is looked for that came back."""


@dataclass(frozen=True, slots=True)
class _Reach:
    """Of which commits a pass is recorded. ``line``: those of its own history; ``told``: those that came after what was
    applied before; ``left``: those that a rewritten branch has left behind. ``last``: the last position."""

    line: Collection[str]
    told: Collection[str]
    left: Collection[str]
    last: int


class RecordWriter:
    """Writes passes, one after the other."""

    def __init__(self, source: Source, store: VersionStore, *, keep: Retention, metrics: RecorderMetrics) -> None:
        self._source = source
        self._store = store
        self._keep = keep
        self._metrics = metrics
        self._shared = SharedLedger(source, store)
        self._swept = ""

    async def lost(self) -> bool:
        """Whether somebody has emptied the database, or restored an older one, since a pass was written last."""
        return await self._shared.lost()

    async def write(self, seen: Seen) -> bool:
        """Record a pass. False when its commit is gone from the branch and from the mirror before anybody recorded it:
        nothing can be told of it any more. Raises what source and store raise; what was written until then stays."""
        mark = await self._shared.follow()
        if seen.previous is not None:  # it was applied, by whoever did not live to record it
            await self._shared.claim(mark.generation, seen.previous)
        if not await self._shared.claim(mark.generation, seen.commit):
            return False
        reach = await self._reach(mark, seen)
        entries, known, last = await self._entries(mark, reach)
        versions = judge(entries, known, seen, line=reach.line, told=reach.told)
        del known
        touched = await self._put(mark, versions, seen)
        if touched:
            self._metrics.pruned.inc(await self._store.prune(self._keep, touched))
        if self._swept != mark.generation:
            # Settings may have changed, or a recorder died before it deleted the ones too old.
            if mark.position > 1:
                self._metrics.pruned.inc(await self._store.prune(self._keep))
            self._swept = mark.generation
        if not await self._store.advance(mark.generation, last + 1):
            raise TransientError("the record was emptied meanwhile", reason="RecordUnavailable")
        self._shared.moved(last + 1)
        self._metrics.commits.inc(max(0, last + 1 - mark.position))
        return True

    async def _reach(self, mark: Bookmark, seen: Seen) -> _Reach:
        ledger = self._shared.ledger
        told, left = await self._told(seen)
        line = told.union(await self._shared.line(seen.commit, ledger.before(mark.position)))
        last = max(ledger.positions[seen.commit], ledger.positions.get(seen.previous or "", 0))
        return _Reach(line, told, left, last)

    async def _told(self, seen: Seen) -> tuple[frozenset[str], frozenset[str]]:
        """The commits between what was applied before and what the pass applied; and those that a rewritten branch has
        left behind, which another recorder may not have."""
        positions = self._shared.ledger.positions
        if seen.previous is None or seen.previous not in positions:
            return frozenset(), frozenset()
        line = frozenset(ordered := await self._shared.line(seen.commit, {seen.previous}))
        if not ordered or await self._source.parent(ordered[0]) == seen.previous:
            return line, frozenset()
        former = frozenset(await self._shared.line(seen.previous))
        if not former:
            return frozenset(commit for commit in line if positions[commit] > positions[seen.previous]), former
        return line - former, former - line

    async def _entries(
        self, mark: Bookmark, reach: _Reach
    ) -> tuple[Sequence[tuple[int, Entry]], Mapping[str, BranchCommit], int]:
        """The entries to write: what nobody has, up to the pass, and from there what a recorder has left that died; and
        what the pass tells of, also where another recorder has moved the bookmark past it. With their commits, and the
        position up to which all are written."""
        ledger, last = self._shared.ledger, max(reach.last, mark.position - 1)
        first = min([mark.position, *(ledger.positions[each] for some in (reach.told, reach.left) for each in some)])
        entries = [
            (position, entry)
            for position, entry in ledger.between(first, ledger.end)
            if position >= mark.position or entry.commit in reach.line or entry.commit in reach.left
        ]
        known = await self._shared.commits([entry.commit for _, entry in entries])
        for position, entry in ledger.between(last + 1, ledger.end):
            if entry.commit not in known:
                break
            last = position
        return [each for each in entries if each[0] <= last], known, last

    async def _put(self, mark: Bookmark, versions: Sequence[Version], seen: Seen) -> Collection[PolicyName]:
        """Write versions and what became of older ones; the policies that may have too many now."""
        new = [version for version in versions if version.position >= mark.position]
        kept = survivors(new, self._keep)
        fresh = mark.position == 1 and await self._store.empty(mark.generation)
        added = 0

        async def add(batch: Sequence[StoredVersion]) -> None:
            nonlocal added
            added += await self._store.add(mark.generation, batch)

        await self._each(kept, add)
        told = [version for version in versions if version.position < mark.position]
        await self._each(told, lambda batch: self._store.tell(mark.generation, batch))
        made_live = {version.policy for version in new if version.applied_at}
        settled = {policy: etag for policy, etag in seen.changed.items() if policy not in made_live}
        if settled:
            until = self._shared.ledger.positions[seen.commit]
            absent = await self._store.settle(settled, at=seen.at, until=until)
            await self._each(await self._brought_back(absent, seen, until), add)
        self._metrics.versions.inc(added)
        touched = {version.policy for version in versions} | settled.keys()
        if fresh and added == len(kept):
            return ()  # nobody else has written anything
        few, numbers = min(self._keep.applied, self._keep.others), self._shared.ledger.numbers
        return [policy for policy in touched if numbers.get(policy, 0) > few]

    async def _brought_back(self, policies: Collection[PolicyName], seen: Seen, until: int) -> Sequence[Version]:
        """Versions that a pass made live again after they were kept no longer: as Git and the ledger have them."""
        entries: dict[PolicyName, list[tuple[int, Entry]]] = {policy: [] for policy in policies}
        for position, entry in self._shared.ledger.between(1, until) if entries else ():
            for policy in entries.keys() & entry.numbers.keys():
                entries[policy].append((position, entry))
        found: list[Version] = []
        for policy, own in entries.items():
            told = replace(seen, changed={policy: seen.changed[policy]})
            for each in islice(reversed(own), _LOOK_BACK):
                commits = await self._source.branch_commits([each[1].commit], policy)
                version = next(
                    (v for v in judge([each], commits, told, line=commits, told=commits) if v.policy == policy), None
                )
                if version is not None and version.applied_at:
                    found.append(version)
                    break
        return found

    async def _each(
        self, versions: Iterable[Version], write: Callable[[Sequence[StoredVersion]], Awaitable[None]]
    ) -> None:
        """Write versions with their texts, so many at once as memory and a deadline bear; the next ones are read
        meanwhile."""
        left = list(versions)
        batch = await self._batch(left)
        while batch:
            del left[: len(batch)]
            ahead = asyncio.ensure_future(self._batch(left))
            try:
                await write(batch)
                batch = await ahead
            finally:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _batch(self, versions: Sequence[Version]) -> Sequence[StoredVersion]:
        """The first of these versions, with their texts."""
        some = versions[:_BATCH]
        blobs = [version.blobs for version in some]
        contents = await self._source.contents(blobs, limit=_CONTENT_LIMIT, budget=_BATCH_BYTES) if some else ()
        return [StoredVersion(version, content) for version, content in zip(some, contents, strict=False)]
