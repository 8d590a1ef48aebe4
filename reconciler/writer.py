"""The write path: decide, commit, push; one push for all who wait, and the next batch made ready meanwhile.

The push moves the branch from exactly the commit that was compared with, or not at all, so it is the proof that every
precondition still held. Hence writes are decided on the head at hand, without asking the remote, and while a push is on
its way on the tip that it will have brought there: if it does not, what was made ready on it is thrown away and decided
anew. Nobody is told anything before the commit that it was decided on is known to have been the remote's at some moment
after the write arrived: by the push of what stands on it, or by a fetch. See ``docs/adr/0007``.

    queue ──Drafter──▶ next (commits in the mirror) ──Sender──▶ on its way ──accepted──▶ answers
              ▲                                          │ moved, declined, unknown, failed
              └───────────── decided anew ◀──────────────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, NoReturn

from reconciler.core.errors import ConflictError, RefusalError, RegopsError
from reconciler.core.model import PLATFORM
from reconciler.core.ports import Branch, PushResult, Source
from reconciler.drafting import Answer, Draft, Drafter, Pending, Verdicts, defect
from reconciler.edits import DeclinedError, OutcomeUnknownError, Preview, Write, Written
from reconciler.sending import JITTER, Lookout, Sender, WriterObserver

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Writes that share one push."""
ATTEMPTS: Final = 10
"""How often a write is decided again because somebody else pushed first."""


@dataclass(slots=True)
class _Batch:
    """What one push brings: commits from ``base`` on, in order, and the answers that its acceptance makes certain."""

    base: str
    commits: dict[str, Answer] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    @property
    def tip(self) -> str:
        return next(reversed(self.commits), self.base)

    @property
    def writes(self) -> list[Pending]:
        return [answer.pending for answer in self.commits.values()]

    def told_of(self) -> set[Pending]:
        return {answer.pending for answer in (*self.commits.values(), *self.answers)}


class Writer:
    """Turns writes into commits of the branch; run `run` as a task. One in a replica; any number of replicas."""

    def __init__(
        self,
        source: Source,
        branch: Branch,
        judge: Verdicts,
        *,
        pushed: Callable[[str], None],
        observer: WriterObserver,
        patience: float = 10.0,
    ) -> None:
        """``pushed`` is called with each new head. ``patience`` is seconds: for one fetch, and for finding out what
        became of a push that was not answered."""
        self._branch = branch
        self._pushed = pushed
        self._observer = observer
        self._lookout = Lookout(source, patience)
        self._drafter = Drafter(source, branch, judge)
        self._sender = Sender(source, branch, self._lookout, observer, patience)
        self._queue: list[Pending] = []
        self._next: _Batch | None = None
        self._on_its_way: _Batch | None = None
        self._set_aside: set[Pending] = set()
        """Whose turn it is not: they are in a batch, or refused on a commit that is only on its way."""
        self._thrown_away = 0
        """How often everything that was made ready had to be decided anew."""
        self._work = asyncio.Event()
        self._ready = asyncio.Event()
        self._closing = False

    async def write(self, write: Write) -> Written:
        """Wait until the write is in the remote branch.

        Raises the decision's `RefusalError`, `InvalidPolicyError`, `DeclinedError`, `KeyReusedError`,
        `OutcomeUnknownError`, and `TransientError` or `StalledError` when nothing was sent. A caller that stops
        waiting withdraws the write as long as it was not committed.
        """
        if write.policy == PLATFORM and not self._closing:
            await self._judged_ahead(write)
        pending = Pending(write, asyncio.get_running_loop().create_future())
        if self._closing:
            pending.give_up()
        self._queue.append(pending)
        self._work.set()
        return await pending.answer

    async def _judged_ahead(self, write: Write) -> None:
        """Find the verdicts that a platform needs before its turn in the queue, so that nobody waits behind them. What
        it comes to is decided then."""
        with contextlib.suppress(RegopsError, RefusalError):
            await self._drafter.preview(await self._branch.head() or await self._lookout.fetch(), write)

    async def preview(self, write: Write) -> Preview:
        """What `write` would do at the remote's head now. Raises the decision's `RefusalError`."""
        return await self._drafter.preview(await self._lookout.fetch(), write)

    async def run(self) -> NoReturn:
        """Serve the queue until cancelled. A defect costs the writes that met it, never the process."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._drafting())
                group.create_task(self._pushing())
        finally:
            self._give_up(sent=True)
        raise AssertionError("unreachable: both go on until they are cancelled")

    async def drain(self, seconds: float) -> None:
        """Take nothing more, refuse what was not sent, and wait so long for what was: then it is an unknown outcome."""
        self._closing = True
        self._give_up(sent=False)
        if self._waiting():
            await asyncio.wait([pending.answer for pending in self._queue], timeout=seconds)
        self._give_up(sent=True)

    def _give_up(self, *, sent: bool) -> None:
        for pending in self._queue:
            if sent or pending.sent is None:
                pending.give_up()

    def _waiting(self) -> list[Pending]:
        self._queue = [pending for pending in self._queue if not pending.answer.done()]
        return self._queue

    # --- from the queue to the next batch ----------------------------------------------------------------------------

    async def _drafting(self) -> NoReturn:
        while True:
            await self._work.wait()
            self._work.clear()
            while chosen := self._choose():
                try:
                    await self._draft(chosen)
                except Exception as error:  # noqa: BLE001 a defect too; `_fail` logs it
                    self._fail(error, (pending for pending in self._waiting() if pending not in self._set_aside))

    def _choose(self) -> list[Pending]:
        """Whose turn it is. One that must go alone waits until nothing else is on its way, and lets nothing pass."""
        if self._closing:
            self._give_up(sent=False)
            return []
        waiting = [pending for pending in self._waiting() if pending not in self._set_aside]
        for pending in waiting:
            if pending.alone:
                return [] if self._next or self._on_its_way else [pending]
        if any(pending.alone for pending in (self._next or self._on_its_way or _Batch("")).writes):
            return []
        return waiting[: BATCH - len(self._next.commits) if self._next else BATCH]

    async def _draft(self, chosen: list[Pending]) -> None:
        round_, ahead = self._thrown_away, self._next or self._on_its_way
        head, seen = (ahead.tip, None) if ahead else await self._head()
        draft = await self._drafter.draft(head, chosen)
        if round_ == self._thrown_away:
            self._take(draft, seen)

    async def _head(self) -> tuple[str, float]:
        """The branch's head, and since when it is known to be the remote's."""
        seen = self._lookout.seen  # noted before: what previews fetch meanwhile is not the head that this one is
        head = None if self._lookout.doubted else await self._branch.head()
        if head is not None:
            return head, seen
        seen = monotonic()
        return await self._lookout.fetch(), seen

    def _take(self, draft: Draft, seen: float | None) -> None:
        """Tell what is certain; the rest is certain once what stands on it is accepted. ``seen`` is ``None`` for a head
        that was on its way when the draft began."""
        open_ = []
        for answer in draft.answers:
            if seen is not None and seen >= answer.pending.arrived:
                answer.tell()
            else:
                open_.append(answer)
        if draft.commits or self._next:
            self._next = self._next or _Batch(draft.head)
            self._next.commits |= draft.commits
            self._next.answers += open_
            self._set_aside |= draft.decided
            self._ready.set()
        elif self._on_its_way:
            self._set_aside |= draft.decided
        elif open_ and seen is not None:
            # Refused on a head that may be old: look at the remote before saying so.
            self._lookout.doubted = True

    # --- from the next batch to the remote ---------------------------------------------------------------------------

    async def _pushing(self) -> NoReturn:
        while True:
            await self._ready.wait()
            self._ready.clear()
            while self._next and not self._closing:
                self._on_its_way, self._next = self._next, None
                self._work.set()
                try:
                    accepted = await self._send(self._on_its_way)
                except Exception as error:  # noqa: BLE001 as above
                    accepted = False
                    self._fail(error, self._waiting())
                self._on_its_way = None
                self._go_on(accepted)

    def _go_on(self, accepted: bool) -> None:
        """What was made ready stands on what the remote has now, or is thrown away; everybody else has another turn."""
        if not accepted:
            self._thrown_away += 1
            self._next = None
        self._set_aside = self._next.told_of() if self._next else set()
        self._work.set()

    async def _send(self, batch: _Batch) -> bool:
        """Push it and tell what became of it; whether the remote has it."""
        await self._observer.intends({commit: answer.pending.write for commit, answer in batch.commits.items()})
        if self._closing:
            return False
        result, message = await self._settle(batch)
        if result is PushResult.ACCEPTED:
            self._observer.committed(len(batch.commits))
            self._pushed(batch.tip)
            for answer in (*batch.commits.values(), *batch.answers):
                answer.tell()
        elif result is PushResult.MOVED:
            await self._again(batch.writes)
        elif result is PushResult.UNKNOWN:
            self._lookout.doubted = True
            for commit, answer in batch.commits.items():
                answer.pending.resolve(OutcomeUnknownError(commit))
        elif len(batch.commits) > 1:
            for pending in batch.writes:
                pending.alone = True
        else:
            batch.writes[0].resolve(DeclinedError(message))
        return result is PushResult.ACCEPTED

    async def _settle(self, batch: _Batch) -> tuple[PushResult, str]:
        """Push; afterwards only those whose outcome nobody knows are ``sent`` still."""
        for commit, answer in batch.commits.items():
            answer.pending.sent = commit
        known = False
        try:
            result, message = await self._sender.push(batch.base, batch.tip, len(batch.commits))
            known = result is not PushResult.UNKNOWN
        except RegopsError:
            known = True
            raise
        finally:
            for pending in batch.writes if known else ():
                pending.sent = None
        return result, message

    async def _again(self, pendings: Iterable[Pending]) -> None:
        """Somebody else was first: decide anew on the new head, after a moment and not for ever."""
        for pending in pendings:
            pending.attempts += 1
            if pending.attempts >= ATTEMPTS:
                pending.resolve(ConflictError("others keep pushing to the branch first", reason="BranchContended"))
        await asyncio.sleep(random.uniform(0, JITTER))  # noqa: S311 jitter is no secret

    def _fail(self, error: Exception, pendings: Iterable[Pending]) -> None:
        """Refuse these, and believe nothing that is known of the remote."""
        if not isinstance(error, RegopsError):
            log.error("writing failed unexpectedly", exc_info=error)
            error = defect(error)
        self._lookout.doubted = True
        for pending in pendings:
            pending.resolve(OutcomeUnknownError(pending.sent) if pending.sent else error)
