"""The write path: decide at the head of the branch, commit, push; one push for all who wait.

The push moves the branch from exactly the commit that was compared with, or not at all, so it is the proof that every
precondition still held. Hence writes are decided on the head at hand, without asking the remote; only what would be
*refused* there is looked at again on a head that was the remote's after the write arrived. See ``docs/adr/0007``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Final, NoReturn, Protocol

from reconciler.core.errors import ConflictError, RefusalError, RegopsError, StalledError, TransientError
from reconciler.core.model import PLATFORM, BlobIds, Content, FileError, PolicyName, Tree, Verdict
from reconciler.core.ports import Branch, Edit, PushResult, Source
from reconciler.edits import (
    KEY_TRAILER,
    Current,
    DeclinedError,
    InvalidPolicyError,
    KeyReusedError,
    OutcomeUnknownError,
    Preview,
    Write,
    Written,
)

log = logging.getLogger(__name__)

BATCH: Final = 64
"""Writes that share one push."""
ATTEMPTS: Final = 10
"""How often a write is decided again because somebody else pushed first."""
KEY_LIFE: Final = 24 * 3600.0
"""Seconds for which an idempotency key is looked for in the branch."""
_JITTER: Final = 0.05


class Verdicts(Protocol):
    """What judges edits: see `reconciler.edit_judge`."""

    async def judge(self, tree: Tree, edits: Mapping[PolicyName, Content]) -> Mapping[PolicyName, Verdict]:
        """Each edit's verdict with the platform that will be live, as if ``tree`` had it."""
        ...


class WriterObserver(Protocol):
    """Told what happens, for metrics and for the audit journal."""

    def pushed(self, result: str, writes: int, seconds: float) -> None:
        """A push has ended. ``result`` is a `PushResult` or ``failed``."""

    async def intends(self, commits: Mapping[str, Write]) -> None:
        """These commits are about to be sent; whatever happens now, they may arrive."""


@dataclass(slots=True)
class _Pending:
    """A write in the queue, and whoever waits for it."""

    write: Write
    answer: asyncio.Future[Written]
    arrived: float = field(default_factory=monotonic)
    attempts: int = 0
    alone: bool = False
    sent: str | None = None
    """The commit that is on its way: whether it arrives is not known yet."""

    def resolve(self, written: Written) -> None:
        if not self.answer.done():
            self.answer.set_result(written)

    def refuse(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def give_up(self) -> None:
        """The replica ends: what was not sent never will be, of what was sent nobody here learns more."""
        self.refuse(
            OutcomeUnknownError(self.sent)
            if self.sent
            else TransientError("this replica is shutting down", reason="ShuttingDown")
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A write that is decided: its place in the batch."""

    pending: _Pending
    before: BlobIds | None
    content: Content | None


@dataclass(frozen=True, slots=True)
class _Draft:
    """A batch, decided and judged on ``head``."""

    head: str
    entries: tuple[_Entry, ...]
    verdicts: Mapping[PolicyName, Verdict]


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
        self._source = source
        self._branch = branch
        self._judge = judge
        self._pushed = pushed
        self._observer = observer
        self._patience = patience
        self._queue: list[_Pending] = []
        self._filled = asyncio.Event()
        self._seen = self._basis = -float("inf")
        self._doubted = False
        self._closing = False

    async def write(self, write: Write) -> Written:
        """Wait until the write is in the remote branch.

        Raises the decision's `RefusalError`, `InvalidPolicyError`, `DeclinedError`, `KeyReusedError`,
        `OutcomeUnknownError`, and `TransientError` or `StalledError` when nothing was sent. A caller that stops
        waiting withdraws the write as long as it was not committed.
        """
        pending = _Pending(write, asyncio.get_running_loop().create_future())
        if self._closing:
            pending.give_up()
        self._queue.append(pending)
        self._filled.set()
        return await pending.answer

    async def preview(self, write: Write) -> Preview:
        """What `write` would do at the remote's head now. Raises the decision's `RefusalError`."""
        head = await self._fetch()
        tree = await self._source.tree(head)
        current = await self._current(tree, write.policy)
        content = write.decide(current)
        if content is None:
            return Preview(current, None)
        verdict = (await self._judge.judge(tree, {write.policy: content}))[write.policy]
        return Preview(current, content, verdict.errors, verdict.warnings)

    async def run(self) -> NoReturn:
        """Serve the queue until cancelled. A defect costs the writes that met it, never the process."""
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while self._waiting():
                    await self._turn()
        finally:
            self._give_up(sent=True)

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

    def _waiting(self) -> bool:
        self._queue = [pending for pending in self._queue if not pending.answer.done()]
        return bool(self._queue)

    async def _turn(self) -> None:
        try:
            await self._round()
        except RegopsError as error:
            self._doubted = True
            self._fail(error)
        except Exception as error:
            log.exception("writing failed unexpectedly")
            self._doubted = True
            self._fail(_defect(error))

    def _fail(self, error: RegopsError) -> None:
        """Refuse everyone who waits now."""
        for pending in self._queue:
            pending.refuse(OutcomeUnknownError(pending.sent) if pending.sent else error)

    # --- one round ---------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """Decide what can be decided, and push it."""
        if self._closing:
            self._give_up(sent=False)
            return
        self._basis = self._seen  # noted before: what previews fetch while this round runs is not the head it stands on
        head = None if self._doubted else await self._branch.head()
        if head is None:
            self._basis = monotonic()
            head = await self._fetch()
        draft = await self._draft(head)
        if not draft.entries:
            # What is left was refused on a head that may be old: look at the remote before saying so.
            self._doubted = self._waiting()
            return
        commits = await self._commit(draft)
        if commits and not self._closing:
            await self._send(draft, commits)

    async def _fetch(self) -> str:
        started = monotonic()
        try:
            async with asyncio.timeout(self._patience):
                head = await self._source.fetch()
        except TimeoutError as error:
            raise TransientError(
                f"the Git remote did not answer within {self._patience:g} s", reason="FetchTimeout"
            ) from error
        self._seen = max(self._seen, started)
        self._doubted = False
        return head

    async def _draft(self, head: str) -> _Draft:
        tree = await self._source.tree(head)
        known = await self._known_keys(head)
        entries: dict[PolicyName, _Entry] = {}
        for pending in list(self._queue):
            if len(entries) == BATCH or PLATFORM in entries:
                break
            if not pending.answer.done() and self._fits(pending, entries):
                entry = await self._decide(tree, pending, known)
                if entry is not None:
                    entries[pending.write.policy] = entry
                    if pending.alone:
                        break
        edits = {name: entry.content for name, entry in entries.items() if entry.content is not None}
        verdicts = await self._judge.judge(tree, edits) if edits else {}
        for name, verdict in verdicts.items():
            if not verdict.valid:
                self._refuse(entries.pop(name).pending, InvalidPolicyError(verdict.errors))
        return _Draft(head, tuple(entries.values()), verdicts)

    def _fits(self, pending: _Pending, entries: Mapping[PolicyName, _Entry]) -> bool:
        """One write of a policy in a batch; the platform goes alone, since everything is judged with it."""
        policy = pending.write.policy
        return policy not in entries and not (entries and (pending.alone or policy == PLATFORM))

    async def _known_keys(self, head: str) -> dict[str, tuple[str, str]]:
        """Idempotency keys that the branch has: scope → (request, commit)."""
        if not any(pending.write.key for pending in self._queue):
            return {}
        found = await self._branch.trailers(head, KEY_TRAILER, since=time() - KEY_LIFE)
        parts = {value: value.partition(".") for value in found}
        return {scope: (request, found[value]) for value, (scope, _, request) in parts.items()}

    async def _decide(self, tree: Tree, pending: _Pending, known: Mapping[str, tuple[str, str]]) -> _Entry | None:
        """Its place in the batch; ``None`` when it has its answer, or must be looked at on a newer head."""
        write = pending.write
        if write.key is not None and write.key.scope in known:
            if self._certain(pending):  # else the branch may have been reset to before that commit
                await self._replay(pending, *known[write.key.scope])
            return None
        current = await self._current(tree, write.policy)
        try:
            content = write.decide(current)
        except RefusalError as refusal:
            self._refuse(pending, refusal)
            return None
        except Exception as error:
            log.exception("a write cannot be decided", extra={"request_id": write.request_id})
            pending.refuse(_defect(error))
            return None
        blobs = content.blob_ids() if content else None
        if blobs != current.blobs:
            return _Entry(pending, current.blobs, content)
        if self._certain(pending):
            commit = (await self._source.last_change(tree.commit, write.policy)).commit
            pending.resolve(Written(commit, blobs, blobs, changed=False))
        return None

    async def _current(self, tree: Tree, policy: PolicyName) -> Current:
        blobs = tree.policies.get(policy)
        return Current(policy, blobs, await self._source.read(blobs) if blobs else None)

    async def _replay(self, pending: _Pending, request: str, commit: str) -> None:
        write = pending.write
        if write.key is None or request != write.key.request:
            pending.refuse(KeyReusedError(f"commit {commit} was made with this idempotency key by another request"))
            return
        after = (await self._source.tree(commit)).policies.get(write.policy)
        parent = await self._source.parent(commit)
        before = (await self._source.tree(parent)).policies.get(write.policy) if parent else None
        warnings = await self._warnings(commit, write.policy, after) if after else ()
        pending.resolve(Written(commit, before, after, replayed=True, warnings=warnings))

    async def _warnings(self, commit: str, policy: PolicyName, blobs: BlobIds) -> tuple[FileError, ...]:
        """What the first answer warned of; without it where nobody can say, since the write itself is certain."""
        try:
            edits = {policy: await self._source.read(blobs)}
            return (await self._judge.judge(await self._source.tree(commit), edits))[policy].warnings
        except RegopsError as error:
            log.warning("warnings not repeated", extra={"reason": error.reason})
            return ()

    def _certain(self, pending: _Pending) -> bool:
        """Whether the head in use was the remote's at some moment after the write arrived."""
        return self._basis >= pending.arrived

    def _refuse(self, pending: _Pending, refusal: RefusalError) -> None:
        if self._certain(pending):
            pending.refuse(refusal)

    # --- commit and push ---------------------------------------------------------------------------------------------

    async def _send(self, draft: _Draft, commits: dict[str, _Entry]) -> None:
        """Push them together, and tell what became of them."""
        pendings = [entry.pending for entry in commits.values()]
        for commit, entry in commits.items():
            entry.pending.sent = commit
        tip = next(reversed(commits))
        result, message = await self._settle(draft.head, tip, pendings)
        if result is PushResult.ACCEPTED:
            self._pushed(tip)
            for commit, entry in commits.items():
                entry.pending.resolve(_written(commit, entry, draft.verdicts))
        elif result is PushResult.MOVED:
            await self._again(pendings)
        elif result is PushResult.UNKNOWN:
            self._doubted = True
            for commit, entry in commits.items():
                entry.pending.refuse(OutcomeUnknownError(commit))
        elif len(pendings) > 1:
            for pending in pendings:
                pending.alone = True
        else:
            pendings[0].refuse(DeclinedError(message))

    async def _commit(self, draft: _Draft) -> dict[str, _Entry]:
        """Commit each entry on the one before, in the mirror only; whoever has stopped waiting is left out."""
        entries = [entry for entry in draft.entries if not entry.pending.answer.done()]
        made = await self._branch.commit(draft.head, [_edit(entry) for entry in entries]) if entries else ()
        commits = dict(zip(made, entries, strict=True))
        if commits:
            await self._observer.intends({commit: entry.pending.write for commit, entry in commits.items()})
        return commits

    async def _again(self, pendings: list[_Pending]) -> None:
        """Somebody else was first: decide anew on the new head, after a moment and not for ever."""
        for pending in pendings:
            pending.attempts += 1
            if pending.attempts >= ATTEMPTS:
                pending.refuse(ConflictError("others keep pushing to the branch first", reason="BranchContended"))
        await asyncio.sleep(random.uniform(0, _JITTER))  # noqa: S311 jitter is no secret

    async def _settle(self, base: str, tip: str, pendings: list[_Pending]) -> tuple[PushResult, str]:
        """Push; afterwards only those whose outcome nobody knows are ``sent`` still."""
        known = False
        try:
            result, message = await self._push(base, tip, len(pendings))
            known = result is not PushResult.UNKNOWN
        except RegopsError:
            known = True
            raise
        finally:
            for pending in pendings if known else ():
                pending.sent = None
        return result, message

    async def _push(self, base: str, tip: str, writes: int) -> tuple[PushResult, str]:
        """Push until it is known what became of it, or patience ends.

        Sending the same commits for the same base again is safe: whichever arrives first wins, and the other one finds
        the tip there already. Once the branch has left the base without the tip, the push can never succeed any more.
        That a later copy was declined says nothing about the first.
        """
        deadline = monotonic() + self._patience
        uncertain = False
        while True:
            started = monotonic()
            try:
                push = await self._branch.push(base, tip)
            except RegopsError:
                self._observer.pushed("failed", writes, monotonic() - started)
                if not uncertain:
                    raise
            else:
                self._observer.pushed(push.result, writes, monotonic() - started)
                if push.result is PushResult.ACCEPTED:
                    self._seen = started
                result = push.result
                # Also for the first copy: curl sends a request twice when a connection breaks that it had used before,
                # and the second one finds the branch moved by the first.
                if result is PushResult.MOVED or (uncertain and result is PushResult.DECLINED):
                    result = await self._landed(base, tip, uncertain=uncertain)
                if result is not PushResult.UNKNOWN:
                    return result, push.message
            uncertain = True
            if monotonic() >= deadline:
                return PushResult.UNKNOWN, ""
            await asyncio.sleep(random.uniform(_JITTER, 5 * _JITTER))  # noqa: S311 the same

    async def _landed(self, base: str, tip: str, *, uncertain: bool) -> PushResult:
        """Where the branch is after a refused push: did it go by way of our commits, or elsewhere? While it is where
        it was, an earlier copy that is ``uncertain`` may still arrive. Raises `StalledError` when it is gone."""
        try:
            head = await self._fetch()
        except StalledError:
            if uncertain:
                return PushResult.UNKNOWN
            raise
        except RegopsError:
            return PushResult.UNKNOWN
        if await self._source.contains(head, tip):
            return PushResult.ACCEPTED
        return PushResult.UNKNOWN if uncertain and head == base else PushResult.MOVED


def _defect(error: Exception) -> RegopsError:
    return RegopsError(f"{type(error).__name__}: {error}", reason="InternalError")


def _written(commit: str, entry: _Entry, verdicts: Mapping[PolicyName, Verdict]) -> Written:
    verdict = verdicts.get(entry.pending.write.policy)
    after = entry.content.blob_ids() if entry.content else None
    return Written(commit, entry.before, after, warnings=verdict.warnings if verdict else ())


def _edit(entry: _Entry) -> Edit:
    write = entry.pending.write
    return Edit(
        policy=write.policy,
        content=entry.content,
        author=write.author,
        subject=write.subject(before=entry.before, after=entry.content),
        trailers=write.trailers(),
    )
