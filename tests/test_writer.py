"""The writer on a real repository, at moments that a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from fixtures.git import Remote

from reconciler.adapters.git import GitSource
from reconciler.core.errors import RefusalError
from reconciler.core.model import Content, PolicyName, Tree, Verdict, project_policy
from reconciler.core.ports import Identity
from reconciler.edits import Current, Decision, Write
from reconciler.writer import Writer

ALPHA = project_policy("alpha")


class StaleError(RefusalError):
    """The test's own precondition failed."""


class Paused(GitSource):
    """A source whose next reading of a tree waits, once `pause` was called."""

    def pause(self) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._next = True

    async def tree(self, commit: str) -> Tree:
        if getattr(self, "_next", False):
            self._next = False
            self.reached.set()
            await self.go_on.wait()
        return await super().tree(commit)


class _Lenient:
    async def judge(self, _tree: Tree, edits: Mapping[PolicyName, Content]) -> Mapping[PolicyName, Verdict]:
        return {name: Verdict() for name in edits}


class _Deaf:
    def pushed(self, result: str, writes: int, seconds: float) -> None:
        pass

    async def intends(self, commits: Mapping[str, Write]) -> None:
        pass


@pytest.fixture
async def source(remote: Remote, tmp_path: Path) -> AsyncIterator[Paused]:
    source = Paused(remote=remote.url, mirror=tmp_path / "mirror.git")
    yield source
    await source.aclose()


@pytest.fixture
async def writer(source: Paused) -> AsyncIterator[Writer]:
    writer = Writer(source, source, _Lenient(), pushed=lambda _: None, observer=_Deaf())
    running = asyncio.ensure_future(writer.run())
    yield writer
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def write(decide: Decision) -> Write:
    return Write(ALPHA, decide, Identity("Ann", "ann@example.org"), "ann", "r1")


def if_match(etag: str, content: Content) -> Decision:
    def decide(current: Current) -> Content:
        if current.etag != etag:
            raise StaleError
        return content

    return decide


async def test_what_was_overtaken_is_not_acknowledged_because_somebody_else_fetched_meanwhile(
    writer: Writer, source: Paused, remote: Remote
) -> None:
    """A write that changes nothing was decided on an old head. While it was being read another request fetched, and
    the old head then passed for a new one: 200 for a content that the branch had lost before the request came."""
    before = (await writer.preview(write(lambda current: current.content))).current
    assert before.etag is not None
    assert before.content is not None
    remote.commit({"policies/projects/alpha/rego.rego": b"package projects.alpha\n\nallow := false\n"})
    source.pause()
    answer = asyncio.ensure_future(writer.write(write(if_match(before.etag, before.content))))
    await source.reached.wait()
    newer = (await writer.preview(write(lambda current: current.content))).current
    assert newer.etag != before.etag
    source.go_on.set()
    with pytest.raises(StaleError):
        await answer


async def test_a_version_that_is_there_is_not_refused_because_somebody_else_fetched_meanwhile(
    writer: Writer, source: Paused, remote: Remote
) -> None:
    """The other half: the client had read the newest version, and was told 409 with an older one."""
    before = (await writer.preview(write(lambda current: current.content))).current
    assert before.content is not None
    remote.commit({"policies/projects/alpha/rego.rego": b"package projects.alpha\n\nallow := false\n"})
    newer_etag = (await GitSource.tree(source, await _fetched(remote, source))).policies[ALPHA].etag
    source.pause()
    answer = asyncio.ensure_future(writer.write(write(if_match(newer_etag, before.content))))
    await source.reached.wait()
    await writer.preview(write(lambda current: current.content))
    source.go_on.set()
    assert (await answer).changed


async def _fetched(remote: Remote, source: GitSource) -> str:
    """The remote's head, in the mirror, without the source's knowing it as the branch's head."""
    known = await source.head()
    head = await source.fetch()
    source._head = known
    assert head == remote.head
    return head
