"""`GitSource`: the `Source` port over a bare mirror. The only place that knows both transport and objects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Final

import pygit2
from pygit2.enums import ObjectType

from reconciler.adapters.git import history, landed
from reconciler.adapters.git.access import Access
from reconciler.adapters.git.difference import RawTrees
from reconciler.adapters.git.failures import MirrorDamagedError, MirrorLockedError, clean
from reconciler.adapters.git.folder import MirrorFolder
from reconciler.adapters.git.objects import Objects, commit_of, entries_of
from reconciler.adapters.git.trailers import Trailers
from reconciler.adapters.git.transport import HEAD_REF, Transport
from reconciler.adapters.git.tree import Layout
from reconciler.adapters.git.unit_tests import unit_tests
from reconciler.adapters.git.writing import COMMITTER, Pen
from reconciler.core.errors import RegopsError, TransientError
from reconciler.core.model import BlobIds, CommitInfo, Content, PolicyName, Tree
from reconciler.core.ports import BranchCommit, Edit, Identity, PastVersion, Push, PushResult

log = logging.getLogger(__name__)

PUSHED_REF: Final = "refs/regops/pushed"
"""The last commit that the remote has accepted from here."""
_FETCHES: Final = 5
"""How often a fetch is made again because a push overtook it."""
_PACKS: Final = 32
"""Batches of commits after which the mirror is looked at for packing."""


class GitSource:
    """A branch of a Git repository, read from a bare mirror and never checked out.

    ``mirror`` is a folder that this object owns, alone; its parent must be writable, since a damaged mirror is
    replaced by a fresh clone beside it, and only once that clone is whole. Timeouts are seconds: ``fetch_timeout`` for
    one fetch; the first one, which brings the whole history, may take ``clone_timeout`` as long as it shows progress
    within every ``fetch_timeout``. Close it with `aclose`.
    """

    def __init__(
        self,
        *,
        remote: str,
        mirror: Path,
        branch: str = "main",
        path: str = "policies",
        fetch_timeout: float = 60.0,
        clone_timeout: float = 600.0,
        push_timeout: float = 20.0,
        access: Access | None = None,
        committer: Identity = COMMITTER,
    ) -> None:
        self._remote = remote
        self._fetch_timeout = fetch_timeout
        self._clone_timeout = clone_timeout
        self._folder = MirrorFolder(mirror, remote)
        self._transport = Transport(remote, branch, access or Access())
        self._objects = Objects(self._folder.path)
        trees = self._trees = RawTrees()
        self._layout = Layout(path, trees)
        self._push_timeout = push_timeout
        self._pen = Pen(path, committer)
        self._committer = committer
        self._trailers = Trailers(committer)
        self._head: str | None = None
        self._packs = 0
        self._pushes = 0
        self._heights = history.Heights()
        self._changes = history.Changes(self._layout, trees)
        self._fetching = asyncio.Lock()
        self._begun = self._ended = 0
        """Numbers of the newest fetch that began, and of the newest one with an outcome."""
        self._failure: RegopsError | None = None
        self._walking = asyncio.Lock()

    async def fetch(self, *, told: bool = True) -> str:
        """See `Source.fetch`. One at a time; callers that wait for another's fetch then share the next one, and its
        failure: however many ask, none waits for more than two.

        A fetch during which a push was accepted may have seen the branch before it: it is made again, so that the head
        never goes back.
        """
        asked = self._begun
        async with self._fetching:
            if self._ended > asked:
                if self._failure is not None:
                    raise self._failure
                if self._head is not None:
                    return self._head
            self._begun = number = self._begun + 1
            try:
                self._head = await self._newest(told=told)
            except RegopsError as error:
                self._ended, self._failure = number, error
                raise
            self._ended, self._failure = number, None
            return self._head

    async def _newest(self, *, told: bool) -> str:
        for _ in range(_FETCHES):
            pushes = self._pushes
            head = await self._bring(told=told)
            if pushes == self._pushes:
                return head
        return self._head or head

    async def head(self) -> str | None:
        """See `Branch.head`."""
        return self._head

    async def commit(self, parent: str, edits: Sequence[Edit]) -> tuple[str, ...]:
        """See `Branch.commit`. Each call leaves a pack."""
        made = await self._objects.run(lambda repository: self._pen.commits(repository, parent, edits))
        self._packs += 1
        if self._packs >= _PACKS and not self._fetching.locked():  # a fetch does it too, when it is done
            async with self._fetching:
                await self._pack()
        return made

    async def push(self, base: str, tip: str) -> Push:
        """See `Branch.push`. Runs beside a fetch; only objects are shared, and those never change."""
        push = await self._transport.push(self._folder.path, base, tip, self._push_timeout)
        if push.result is PushResult.ACCEPTED:
            self._pushes += 1
            if self._head == base:  # else a later fetch has already seen more than this answer tells
                self._head = tip
            await self._remember(tip)
        return push

    async def _remember(self, tip: str) -> None:
        """For `export`, should the remote be lost before the next fetch. A failure costs that only."""
        with contextlib.suppress(RegopsError, pygit2.GitError, OSError):
            await self._objects.run(
                lambda repository: repository.references.create(PUSHED_REF, pygit2.Oid(hex=tip), force=True)
            )

    async def trailers(self, head: str, name: str, *, since: float) -> Mapping[str, str]:
        """See `Branch.trailers`."""
        async with self._walking:
            return await self._objects.walk(lambda repository: self._trailers.find(repository, head, name, since))

    async def _bring(self, *, told: bool) -> str:
        """The branch's head, fetched into the mirror, or cloned where there is no usable one."""
        if await self._objects.files(self._folder.usable) and not self._objects.damaged:
            try:
                return await self._unmoved(told=told) or await self._update()
            except MirrorDamagedError as error:
                log.warning("git mirror is damaged", extra={"cause": clean(error.message)})
        return await self._clone()

    async def tree(self, commit: str, since: str | None = None) -> Tree:
        """See `Source.tree`."""
        return await self._objects.run(lambda repository: self._layout.read(repository, commit, since))

    async def read(self, blobs: BlobIds) -> Content:
        """See `Source.read`: the bytes as Git has them, line ends and LFS pointers too."""
        return await self._objects.run(
            lambda repository: Content(
                _bytes(repository, blobs.rego), None if blobs.data is None else _bytes(repository, blobs.data)
            )
        )

    async def sizes(self, blobs: BlobIds) -> tuple[int, int]:
        """See `Source.sizes`."""
        return await self._objects.run(
            lambda repository: (
                _size(repository, blobs.rego),
                0 if blobs.data is None else _size(repository, blobs.data),
            )
        )

    async def contents(self, wanted: Sequence[BlobIds | None], *, limit: int, budget: int) -> Sequence[Content | None]:
        """See `Source.contents`."""
        return await self._objects.walk(lambda repository: landed.contents(repository, wanted, limit, budget))

    async def info(self, commit: str) -> CommitInfo:
        """See `Source.info`."""
        return await self._objects.run(lambda repository: history.info_of(commit_of(repository, commit)))

    async def parent(self, commit: str) -> str | None:
        """See `Source.parent`."""
        return await self._objects.run(
            lambda repository: next(map(str, commit_of(repository, commit).parent_ids), None)
        )

    async def last_change(self, commit: str, policy: PolicyName) -> CommitInfo:
        """See `Source.last_change`; `StalledError` (``PolicyNotFound``) for a policy that never was."""
        return (await self.last_changes(commit, [policy]))[policy]

    async def last_changes(self, commit: str, policies: Sequence[PolicyName]) -> Mapping[PolicyName, CommitInfo]:
        """See `Source.last_changes`."""
        async with self._walking:
            return await self._objects.walk(lambda repository: self._changes.last_changes(repository, commit, policies))

    async def height(self, commit: str) -> int:
        """See `Source.height`."""
        return await self._objects.run(lambda repository: self._heights.height(repository, commit))

    async def contains(self, commit: str, ancestor: str) -> bool:
        """See `Source.contains`."""
        return await self._objects.run(lambda repository: history.contains(repository, commit, ancestor))

    async def find(self, text: str) -> str | None:
        """See `Source.find`."""
        return await self._objects.run(lambda repository: history.find(repository, text))

    async def past_versions(self, commit: str, policy: PolicyName) -> Sequence[PastVersion]:
        """See `Source.past_versions`."""
        return await self._objects.walk(
            lambda repository: history.past_versions(repository, self._layout, commit, policy)
        )

    async def line(self, commit: str, known: Container[str] = ()) -> Sequence[str]:
        """See `Source.line`."""
        return await self._objects.walk(lambda repository: landed.line(repository, commit, known))

    async def branch_commits(
        self, commits: Sequence[str], policy: PolicyName | None = None
    ) -> Mapping[str, BranchCommit]:
        """See `Source.branch_commits`."""
        return await self._objects.walk(
            lambda repository: landed.branch_commits(
                repository, self._layout, commits, policy, self._committer, self._trees
            )
        )

    async def unit_tests(self, commit: str) -> Mapping[PolicyName, Mapping[str, bytes]]:
        """The files ``*_test.rego`` of each policy of a commit, by name."""
        return await self._objects.run(lambda repository: unit_tests(repository, self._layout, commit))

    async def aclose(self) -> None:
        """End a running fetch with its processes, and close the mirror. May be called again."""
        await self._transport.aclose()
        async with self._fetching:
            await self._objects.aclose()

    async def _unmoved(self, *, told: bool) -> str | None:
        """The head, where nobody told that the branch has moved and it has not: asking takes one process less."""
        if told or self._head is None:
            return None
        there = await self._transport.head(self._folder.path, self._fetch_timeout)
        # The mirror's own reference is behind what was pushed from here: the fetch moves it.
        return there if there == self._head and await self._objects.run(_head) == there else None

    async def _update(self) -> str:
        """Fetch into the mirror that is there, sweeping it once where a lock was left."""
        try:
            await self._fetch_once()
        except MirrorLockedError as error:
            log.warning("git mirror was left locked", extra={"cause": clean(error.message)})
            await self._objects.files(self._folder.sweep)
            await self._fetch_once()
        head = await self._objects.run(_head)
        await self._pack()
        return head

    async def _fetch_once(self) -> None:
        try:
            await self._transport.fetch(self._folder.path, self._fetch_timeout)
        except TransientError as error:
            if not isinstance(error, MirrorDamagedError | MirrorLockedError):
                # A git that was killed, or ran out of room, leaves half-written files behind.
                await self._objects.files(self._folder.sweep)
            raise

    async def _clone(self) -> str:
        """Clone beside the mirror, then take its place."""
        log.info("git mirror is cloned", extra={"remote": clean(self._remote)})
        spare = await self._objects.files(self._folder.spare)
        try:
            await self._transport.fetch(spare, self._clone_timeout, silence=self._fetch_timeout)
            await self._objects.replace(self._folder.adopt)
        except MirrorDamagedError as error:
            # A fresh repository cannot be damaged: what git complains about is the remote.
            await self._objects.files(self._folder.discard_spare)
            raise TransientError(
                error.message, reason="FetchFailed", remedy="Check the remote with git fsck."
            ) from error
        except RegopsError:
            await self._objects.files(self._folder.discard_spare)
            raise
        return await self._objects.run(_head)

    async def _pack(self) -> None:
        """Keep the number of files bounded. A failure costs speed only."""
        self._packs = 0
        if not await self._objects.files(self._folder.needs_packing):
            return
        try:
            await self._transport.pack(self._folder.path)
        except RegopsError as error:
            log.warning("git mirror cannot be packed", extra={"cause": clean(error.message)})
        await self._objects.files(self._folder.packed)
        await self._objects.refresh()


def _head(repository: pygit2.Repository) -> str:
    """The fetched head, once its commit and tree can be read."""
    commit = repository.references[HEAD_REF].peel(pygit2.Commit)
    entries_of(repository, commit.tree_id)
    return str(commit.id)


def _bytes(repository: pygit2.Repository, blob: str) -> bytes:
    kind, content = repository.odb.read(pygit2.Oid(hex=blob))
    if kind != ObjectType.BLOB:
        raise KeyError(f"{blob} is no blob")
    return content


def _size(repository: pygit2.Repository, blob: str) -> int:
    _, size = repository.odb.read_header(pygit2.Oid(hex=blob))
    return size
