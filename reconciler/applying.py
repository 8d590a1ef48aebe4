"""Writing a plan to etcd: texts from Git in batches, as few transactions as etcd's limits allow, several at a time.

After the first transaction (it leaves the marker ``applying``) those in the middle need nothing of each other: each
compares the leader, ``applied``, the marker and its own keys. Deletions wait until all before them has succeeded, and
the last transaction, which writes ``applied``, until everything has. What is not sent yet is not held in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Self

from reconciler.aside import aside
from reconciler.core.errors import CompactedError, ConflictError, UnknownOutcomeError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import Content, PolicyName
from reconciler.core.plan import Cause, Change
from reconciler.core.ports import KeyValueStore, Range, Source, Transaction
from reconciler.core.records import Meta
from reconciler.core.tracing import Tracer
from reconciler.core.transactions import Frame, Packer, Step, change_step, join

log = logging.getLogger(__name__)

OWN_REVISIONS: Final = 4096
"""Store revisions of own writes that are remembered, so that the drift watch can tell them from others'."""
AT_ONCE: Final = 4
"""Transactions under way at the same time: etcd syncs them to disk together."""
_CHUNK: Final = 200
"""Policies whose texts are read at once,"""
_CHUNK_BYTES: Final = 4 * 1024 * 1024
"""or bytes, whichever comes first."""
_PROGRESS_SECONDS: Final = 2.0


class Applier:
    """Writes the changes of one leader's passes."""

    def __init__(self, source: Source, store: KeyValueStore, keyspace: Keyspace, tracer: Tracer) -> None:
        self._source = source
        self._store = store
        self._keyspace = keyspace
        self._tracer = tracer
        self._written: deque[int] = deque(maxlen=OWN_REVISIONS)
        self._writing = asyncio.Lock()

    async def wrote(self, revision: int) -> bool:
        """Whether a store revision is one of the recent own writes; waits for one under way."""
        async with self._writing:
            return revision in self._written

    async def apply(
        self,
        frame: Frame,
        changes: Sequence[Change],
        metas: Mapping[PolicyName, Meta],
        steps: Sequence[Step],
        trace: str | None,
    ) -> list[int]:
        """Write the changes, in their order, and then the steps; the store revision of each.

        Raises `ConflictError` when somebody wrote first, `UnknownOutcomeError` when an answer did not come, and what
        the store and Git raise; everything that was sent has its answer then, and part of it may stand in etcd.
        """
        progress = _Progress(len(changes) + len(steps))
        async with self._writing, contextlib.aclosing(self._batches(changes, metas, steps)) as batches:
            return await self._deliver(frame, batches, progress, trace)

    async def _deliver(
        self, frame: Frame, batches: AsyncIterator[Sequence[Step]], progress: _Progress, trace: str | None
    ) -> list[int]:
        batch, following = await anext(batches), await anext(batches, None)
        if following is None:
            return await self._send(frame.only(join(batch)), len(batch), progress, trace)
        revisions = await self._send(frame.first(join(batch)), len(batch), progress, trace)
        marker, batch = revisions[0], following
        async with _Flight() as flight:
            async for following in batches:
                step = join(batch)
                if step.removes:
                    await flight.land()
                await flight.launch(self._send(frame.middle(step, marker), len(batch), progress, trace))
                batch = following
            for some in await flight.land():
                revisions += some
        return revisions + await self._send(frame.last(join(batch), marker), len(batch), progress, trace)

    async def _send(self, transaction: Transaction, steps: int, progress: _Progress, trace: str | None) -> list[int]:
        """Send one transaction; its store revision for each of its steps, once at least."""
        with self._tracer.span("etcd.txn", trace, "client") as span:
            size = len(transaction.operations)
            span.tell(db__system__name="etcd", db__operation__name="txn", db__operation__batch__size=size)
            outcome = await self._store.commit(transaction)
        if not outcome.succeeded:
            raise ConflictError("somebody else wrote to etcd first, or this replica no longer leads", reason="Conflict")
        self._written.append(outcome.revision)
        progress.add(steps)
        return [outcome.revision] * max(1, steps)

    # --- what is written ---------------------------------------------------------------------------------------------

    async def _batches(
        self, changes: Sequence[Change], metas: Mapping[PolicyName, Meta], steps: Sequence[Step]
    ) -> AsyncGenerator[Sequence[Step], None]:
        """One transaction's steps after the other; at least one batch, which may be empty."""
        packer, place = Packer(), 0
        ahead = asyncio.ensure_future(self._contents(changes[:_CHUNK]))
        try:
            while place < len(changes):
                contents = await ahead
                some = changes[place : place + len(contents)]
                place += len(some)
                ahead = asyncio.ensure_future(self._contents(changes[place : place + _CHUNK]))
                for step in await aside(len(some), self._steps, some, contents, metas):
                    if full := packer.add(step):
                        yield full
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        for step in steps:
            if full := packer.add(step):
                yield full
        yield packer.rest()

    def _steps(
        self, changes: Sequence[Change], contents: Sequence[Content | None], metas: Mapping[PolicyName, Meta]
    ) -> list[Step]:
        pairs = zip(changes, contents, strict=True)
        return [change_step(self._keyspace, each, content, metas.get(each.policy)) for each, content in pairs]

    async def _contents(self, changes: Sequence[Change]) -> list[Content | None]:
        """The texts of the first of these changes, at least one if there is one, ``None`` for deletions."""
        if not changes:
            return []
        own: dict[PolicyName, Content] = {}
        size = count = 0
        for count, change in enumerate(changes, 1):  # noqa: B007 used behind the loop
            if change.cause is Cause.DRIFT and change.target is not None:
                content = await self._own_content(change)
                if content is not None and content.blob_ids() == change.target.blobs:
                    own[change.policy] = content
                    size += content.size
            if size >= _CHUNK_BYTES:
                break
        some = changes[:count]
        wanted = [None if each.target is None or each.policy in own else each.target.blobs for each in some]
        found = await self._source.contents(wanted, limit=sys.maxsize, budget=_CHUNK_BYTES)
        return [own.get(change.policy) or content for change, content in zip(some, found, strict=False)]

    async def _own_content(self, change: Change) -> Content | None:
        """What regops itself wrote, from etcd's history: Git may have lost it with a rewritten branch."""
        keys = Range(self._keyspace.rego(change.policy)), Range(self._keyspace.data(change.policy))
        try:
            rego, data = (await self._store.read(*keys, revision=change.live.meta_revision)).ranges
        except CompactedError:
            return None
        return Content(rego[0].value, data[0].value if data else None) if rego else None


class _Flight:
    """Writes that are under way at the same time, a few at most. None begins once one has failed."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[list[int]]] = []
        self._running: set[asyncio.Task[list[int]]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Nothing of the block goes on behind its end. What was sent gets its answer, unless this is cancelled."""
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            for task in self._running:
                task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)  # which cancels them when it is cancelled

    async def launch(self, write: Coroutine[Any, Any, list[int]]) -> None:
        """Begin one more, as soon as not too many run. Raises what `land` raises, and then has not begun it."""
        try:
            if len(self._running) >= AT_ONCE:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            ended = {task for task in self._running if task.done()}
            self._running -= ended
            if any(task.exception() for task in ended):
                await self.land()
        except BaseException:
            write.close()
            raise
        task = asyncio.ensure_future(write)
        self._tasks.append(task)
        self._running.add(task)

    async def land(self) -> list[list[int]]:
        """Wait for every answer; the results in order. Of several failures the one that leaves a doubt is raised."""
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            raise next((each for each in failures if isinstance(each, UnknownOutcomeError)), failures[0])
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


class _Progress:
    """Says how a long apply gets on: a line every few seconds, none for a short one."""

    def __init__(self, of: int) -> None:
        self._of = of
        self._done = 0
        self._next = monotonic() + _PROGRESS_SECONDS

    def add(self, steps: int) -> None:
        self._done += steps
        if monotonic() >= self._next:
            log.info("applying", extra={"done": self._done, "of": self._of})
            self._next = monotonic() + _PROGRESS_SECONDS
