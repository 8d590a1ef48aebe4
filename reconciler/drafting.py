"""What writes become on a given commit: commits in the mirror, or answers. Nothing is sent and nobody is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Final, Protocol

from reconciler.core.errors import RefusalError, RegopsError, TransientError
from reconciler.core.model import PLATFORM, BlobIds, Content, FileError, PolicyName, Tree, Verdict
from reconciler.core.ports import Branch, Edit, Source
from reconciler.edits import (
    KEY_TRAILER,
    Current,
    InvalidPolicyError,
    KeyReusedError,
    OutcomeUnknownError,
    Preview,
    Write,
    Written,
)

log = logging.getLogger(__name__)

KEY_LIFE: Final = 24 * 3600.0
"""Seconds for which an idempotency key is looked for in the branch."""


class Verdicts(Protocol):
    """What judges edits: see `reconciler.edit_judge`."""

    async def judge(self, tree: Tree, edits: Mapping[PolicyName, Content]) -> Mapping[PolicyName, Verdict]:
        """Each edit's verdict with the platform that will be live, as if ``tree`` had it."""
        ...


@dataclass(slots=True, eq=False)
class Pending:
    """A write in the queue, and whoever waits for it."""

    write: Write
    answer: asyncio.Future[Written]
    arrived: float = field(default_factory=monotonic)
    attempts: int = 0
    alone: bool = False
    """It must not share a push: a hook declined the one that it was in."""
    sent: str | None = None
    """The commit that is on its way: whether it arrives is not known yet."""

    def resolve(self, said: Written | Exception) -> None:
        """Answer, unless nobody waits any more."""
        if self.answer.done():
            return
        if isinstance(said, Exception):
            self.answer.set_exception(said)
        else:
            self.answer.set_result(said)

    def give_up(self) -> None:
        """The replica ends: what was not sent never will be, of what was sent nobody here learns more."""
        self.resolve(
            OutcomeUnknownError(self.sent)
            if self.sent
            else TransientError("this replica is shutting down", reason="ShuttingDown")
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write will be told, once the commit that it was decided on is known to be the remote's."""

    pending: Pending
    said: Written | Exception

    def tell(self) -> None:
        """Now it is known."""
        self.pending.resolve(self.said)


@dataclass(frozen=True, slots=True)
class Draft:
    """Writes as they were decided and judged on ``head``. ``commits`` stand one on the other, the first on ``head``."""

    head: str
    commits: dict[str, Answer]
    answers: tuple[Answer, ...]
    """Refusals, replays, and what would change nothing."""

    @property
    def tip(self) -> str:
        """The last commit."""
        return next(reversed(self.commits), self.head)

    @property
    def decided(self) -> set[Pending]:
        """The writes that it says something about; the others' turn comes with the next draft."""
        return {answer.pending for answer in (*self.commits.values(), *self.answers)}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A write that is decided: its place in the draft."""

    pending: Pending
    before: BlobIds | None
    content: Content | None

    def edit(self) -> Edit:
        write = self.pending.write
        return Edit(
            policy=write.policy,
            content=self.content,
            author=write.author,
            subject=write.subject(before=self.before, after=self.content),
            trailers=write.trailers(),
        )

    def written(self, commit: str, verdict: Verdict | None) -> Answer:
        after = self.content.blob_ids() if self.content else None
        warnings = verdict.warnings if verdict else ()
        return Answer(self.pending, Written(commit, self.before, after, warnings=warnings))


class Drafter:
    """Decides, judges and commits, on whatever commit it is told to."""

    def __init__(self, source: Source, branch: Branch, judge: Verdicts) -> None:
        self._source = source
        self._branch = branch
        self._judge = judge

    async def preview(self, head: str, write: Write) -> Preview:
        """What the write would do on ``head``. Raises the decision's `RefusalError`."""
        tree = await self._source.tree(head)
        current = await self._current(tree, write.policy)
        content = write.decide(current)
        if content is None:
            return Preview(current, None)
        verdict = (await self._judge.judge(tree, {write.policy: content}))[write.policy]
        return Preview(current, content, verdict.errors, verdict.warnings)

    async def draft(self, head: str, pendings: Sequence[Pending]) -> Draft:
        """What becomes of these on ``head``: at least the first is decided, and of each policy one write.

        ``head`` may be a commit that was made here and is not in the remote yet.
        """
        tree = await self._source.tree(head)
        known = await self._known_keys(head, pendings)
        entries: dict[PolicyName, _Entry] = {}
        answers: list[Answer] = []
        for pending in pendings:
            if PLATFORM in entries:
                break
            if pending.answer.done() or not _fits(pending, entries):
                continue
            decided = await self._decide(tree, pending, known)
            if isinstance(decided, _Entry):
                entries[pending.write.policy] = decided
            elif decided is not None:
                answers.append(decided)
        edits = {name: entry.content for name, entry in entries.items() if entry.content is not None}
        verdicts = await self._judge.judge(tree, edits) if edits else {}
        for name, verdict in verdicts.items():
            if not verdict.valid:
                answers.append(Answer(entries.pop(name).pending, InvalidPolicyError(verdict.errors)))
        commits = await self._commit(head, list(entries.values()), verdicts)
        return Draft(head, commits, tuple(answers))

    async def _commit(
        self, head: str, entries: Sequence[_Entry], verdicts: Mapping[PolicyName, Verdict]
    ) -> dict[str, Answer]:
        """Commit each entry on the one before; whoever has stopped waiting is left out."""
        kept = [entry for entry in entries if not entry.pending.answer.done()]
        made = await self._branch.commit(head, [entry.edit() for entry in kept]) if kept else ()
        return {
            commit: entry.written(commit, verdicts.get(entry.pending.write.policy))
            for commit, entry in zip(made, kept, strict=True)
        }

    async def _known_keys(self, head: str, pendings: Sequence[Pending]) -> dict[str, tuple[str, str]]:
        """Idempotency keys that the branch has: scope → (request, commit)."""
        if not any(pending.write.key for pending in pendings):
            return {}
        found = await self._branch.trailers(head, KEY_TRAILER, since=time() - KEY_LIFE)
        parts = {value: value.partition(".") for value in found}
        return {scope: (request, found[value]) for value, (scope, _, request) in parts.items()}

    async def _decide(
        self, tree: Tree, pending: Pending, known: Mapping[str, tuple[str, str]]
    ) -> _Entry | Answer | None:
        """Its place in the draft, or its answer; ``None`` when it cannot be decided at all, and was told so."""
        write = pending.write
        if write.key is not None and write.key.scope in known:
            return Answer(pending, await self._replay(write, *known[write.key.scope]))
        current = await self._current(tree, write.policy)
        try:
            content = write.decide(current)
        except RefusalError as refusal:
            return Answer(pending, refusal)
        except Exception as error:
            log.exception("a write cannot be decided", extra={"request_id": write.request_id})
            pending.resolve(defect(error))
            return None
        blobs = content.blob_ids() if content else None
        if blobs != current.blobs:
            return _Entry(pending, current.blobs, content)
        commit = (await self._source.last_change(tree.commit, write.policy)).commit
        return Answer(pending, Written(commit, blobs, blobs, changed=False))

    async def _current(self, tree: Tree, policy: PolicyName) -> Current:
        blobs = tree.policies.get(policy)
        return Current(policy, blobs, await self._source.read(blobs) if blobs else None)

    async def _replay(self, write: Write, request: str, commit: str) -> Written | Exception:
        """What the commit's own write was told; another request with its key is refused."""
        if write.key is None or request != write.key.request:
            return KeyReusedError(f"commit {commit} was made with this idempotency key by another request")
        after = (await self._source.tree(commit)).policies.get(write.policy)
        parent = await self._source.parent(commit)
        before = (await self._source.tree(parent)).policies.get(write.policy) if parent else None
        warnings = (await self._warnings(commit, write.policy, after)) if after else ()
        return Written(commit, before, after, replayed=True, warnings=warnings)

    async def _warnings(self, commit: str, policy: PolicyName, blobs: BlobIds) -> tuple[FileError, ...]:
        """What the first answer warned of; without it where nobody can say, since the write itself is certain."""
        try:
            edits = {policy: await self._source.read(blobs)}
            return (await self._judge.judge(await self._source.tree(commit), edits))[policy].warnings
        except RegopsError as error:
            log.warning("warnings not repeated", extra={"reason": error.reason})
            return ()


def defect(error: Exception) -> RegopsError:
    """An error that nobody foresaw, as one of ours."""
    return RegopsError(f"{type(error).__name__}: {error}", reason="InternalError")


def _fits(pending: Pending, entries: Mapping[PolicyName, _Entry]) -> bool:
    """One write of a policy in a draft; the platform goes alone, since everything is judged with it."""
    policy = pending.write.policy
    return policy not in entries and not (entries and policy == PLATFORM)
