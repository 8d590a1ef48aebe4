"""The writer on a real repository, at moments that a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
from fixtures.git import Remote

from reconciler.adapters.git import GitSource
from reconciler.core.errors import RefusalError, TransientError
from reconciler.core.model import Content, PolicyName, Tree, Verdict, project_policy
from reconciler.core.ports import Edit, Identity, Push, PushResult
from reconciler.edits import Current, Decision, DeclinedError, OutcomeUnknownError, Write, Written
from reconciler.writer import Writer

ALPHA = project_policy("alpha")


class StaleError(RefusalError):
    """The test's own precondition failed."""


class Paused(GitSource):
    """A source whose next reading of a tree waits, once `pause` was called."""

    def pause(self) -> None:
        self.reached, self._reading = asyncio.Event(), asyncio.Event()
        self._next = True

    def go_on_reading(self) -> None:
        self._reading.set()

    async def tree(self, commit: str, since: str | None = None) -> Tree:
        if getattr(self, "_next", False):
            self._next = False
            self.reached.set()
            await self._reading.wait()
        return await super().tree(commit, since)


class _Lenient:
    async def judge(self, _tree: Tree, edits: Mapping[PolicyName, Content]) -> Mapping[PolicyName, Verdict]:
        return {name: Verdict() for name in edits}


class _Deaf:
    def pushed(self, result: str, writes: int, seconds: float) -> None:
        pass

    def committed(self, commits: int) -> None:
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
    source.go_on_reading()
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
    source.go_on_reading()
    assert (await answer).changed


async def _fetched(remote: Remote, source: GitSource) -> str:
    """The remote's head, in the mirror, without the source's knowing it as the branch's head."""
    known = await source.head()
    head = await source.fetch()
    source._head = known
    assert head == remote.head
    return head


# --- the next batch is made ready while a push is under way -----------------------------------------------------------


class Held(Paused):
    """A source whose pushes wait for the test, which may also answer instead of the remote."""

    def __init__(self, *, remote: str, mirror: Path) -> None:
        super().__init__(remote=remote, mirror=mirror)
        self.pushes: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.answers: asyncio.Queue[Push | None] = asyncio.Queue()
        self.made: asyncio.Queue[str] = asyncio.Queue()

    async def commit(self, parent: str, edits: Sequence[Edit]) -> tuple[str, ...]:
        made = await super().commit(parent, edits)
        self.made.put_nowait(parent)
        return made

    async def push(self, base: str, tip: str) -> Push:
        self.pushes.put_nowait((base, tip))
        return await self.answers.get() or await super().push(base, tip)

    def go_on(self, answer: Push | None = None) -> None:
        """Let the push that waits (or the next one) go to the remote, or answer it."""
        self.answers.put_nowait(answer)


@pytest.fixture
async def held(remote: Remote, tmp_path: Path) -> AsyncIterator[Held]:
    source = Held(remote=remote.url, mirror=tmp_path / "held.git")
    await source.fetch()
    yield source
    await source.aclose()


@pytest.fixture
async def ahead(held: Held) -> AsyncIterator[Writer]:
    async with writing(held) as writer:
        yield writer


@contextlib.asynccontextmanager
async def writing(source: GitSource) -> AsyncIterator[Writer]:
    writer = Writer(source, source, _Lenient(), pushed=lambda _: None, observer=_Deaf(), patience=0.3)
    running = asyncio.ensure_future(writer.run())
    yield writer
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def create(project: str) -> Write:
    """A write that only creates."""

    def decide(current: Current) -> Content:
        if current.etag is not None:
            raise StaleError
        return Content(f"package projects.{project}\n".encode(), None)

    return Write(project_policy(project), decide, Identity("Ann", "ann@example.org"), "ann", f"r-{project}")


async def begun(writer: Writer, held: Held, project: str) -> tuple[asyncio.Task[Written], str]:
    """A write whose push is on its way, and the commit that it brings."""
    first = asyncio.ensure_future(writer.write(create(project)))
    async with asyncio.timeout(5):
        _, tip = await held.pushes.get()
        await held.made.get()
    return first, tip


async def made_ready(writer: Writer, held: Held, project: str, on: str) -> asyncio.Task[Written]:
    """Another one, that was committed meanwhile ``on`` the one that is on its way."""
    following = asyncio.ensure_future(writer.write(create(project)))
    async with asyncio.timeout(5):
        assert await held.made.get() == on
    return following


async def test_what_waits_is_committed_on_the_push_that_is_under_way_and_goes_with_the_next(
    ahead: Writer, held: Held, remote: Remote
) -> None:
    first, tip = await begun(ahead, held, "one")
    second = await made_ready(ahead, held, "two", tip)
    third = await made_ready(ahead, held, "three", on=_tip(ahead))
    assert not first.done()
    held.go_on()
    assert (await first).commit == tip
    assert (await held.pushes.get())[0] == tip
    assert not second.done()
    held.go_on()
    await asyncio.gather(second, third)
    assert remote.head == third.result().commit
    assert held.pushes.empty(), "the two shared a push"


def _tip(writer: Writer) -> str:
    assert writer._next is not None
    return writer._next.tip


async def test_when_somebody_else_was_first_what_was_made_ready_is_decided_anew(
    ahead: Writer, held: Held, remote: Remote
) -> None:
    """Both were decided on a head that never came to be: neither may be told so, nor be lost."""
    first, tip = await begun(ahead, held, "one")
    second = await made_ready(ahead, held, "two", tip)
    remote.commit({"policies/projects/two/rego.rego": b"package projects.two\n\nx := 1\n"})
    for _ in range(2):
        held.go_on()
    with pytest.raises(StaleError):
        await second
    assert (await first).commit != tip
    assert remote.head == (await first).commit


async def test_a_refusal_by_a_commit_that_is_then_declined_is_not_told(ahead: Writer, held: Held) -> None:
    """The second one would only create, and was refused because the first one creates the same: which the remote's hook
    then declined. A 409 would have named a version that never was."""
    first, _ = await begun(ahead, held, "one")
    second = asyncio.ensure_future(ahead.write(create("one")))
    third = await made_ready(ahead, held, "two", _on_its_way(ahead))  # the second one was decided before it
    assert not second.done()
    held.go_on(Push(PushResult.DECLINED, "not on a Friday"))
    with pytest.raises(DeclinedError, match="Friday"):
        await first
    for _ in range(2):
        held.go_on()
    assert (await second).changed
    assert (await third).changed


def _on_its_way(writer: Writer) -> str:
    assert writer._on_its_way is not None
    return writer._on_its_way.tip


async def test_a_refusal_by_a_commit_that_is_then_accepted_is_told(ahead: Writer, held: Held) -> None:
    first, tip = await begun(ahead, held, "one")
    second = asyncio.ensure_future(ahead.write(create("one")))
    third = await made_ready(ahead, held, "two", tip)
    for _ in range(2):
        held.go_on()
    assert (await first).changed
    with pytest.raises(StaleError):
        await second
    assert (await third).changed


async def test_behind_a_push_of_unknown_outcome_everything_is_decided_on_what_the_remote_has(
    ahead: Writer, held: Held, remote: Remote
) -> None:
    first, tip = await begun(ahead, held, "one")
    second = await made_ready(ahead, held, "two", tip)
    before = remote.head
    while not first.done():
        held.go_on(Push(PushResult.UNKNOWN, ""))
        await asyncio.wait([first], timeout=0.05)
    with pytest.raises(OutcomeUnknownError):
        await first
    while not held.answers.empty():
        held.answers.get_nowait()
    held.go_on()
    assert (await second).changed
    assert await held.parent((await second).commit) == before


async def test_a_replica_that_ends_sends_nothing_of_what_was_made_ready(
    ahead: Writer, held: Held, remote: Remote
) -> None:
    first, tip = await begun(ahead, held, "one")
    second = await made_ready(ahead, held, "two", tip)
    draining = asyncio.ensure_future(ahead.drain(5))
    with pytest.raises(TransientError, match="shutting down"):
        await second
    held.go_on()
    await draining
    assert (await first).commit == tip == remote.head
    assert held.pushes.empty()


async def test_one_that_was_declined_with_others_goes_alone_and_the_others_land(
    ahead: Writer, held: Held, remote: Remote
) -> None:
    first, tip = await begun(ahead, held, "one")
    second = await made_ready(ahead, held, "two", tip)
    third = await made_ready(ahead, held, "three", on=_tip(ahead))
    held.go_on()
    held.go_on(Push(PushResult.DECLINED, "one of them"))
    held.go_on(Push(PushResult.DECLINED, "this one"))
    held.go_on()
    with pytest.raises(DeclinedError, match="this one"):
        await second
    assert (await third).commit == remote.head
    assert (await first).changed


async def test_a_draft_under_way_when_its_ground_is_refused_is_not_sent(
    ahead: Writer, held: Held, remote: Remote
) -> None:
    first, tip = await begun(ahead, held, "one")
    held.pause()
    second = asyncio.ensure_future(ahead.write(create("two")))
    await held.reached.wait()
    held.go_on(Push(PushResult.DECLINED, "no"))
    with pytest.raises(DeclinedError):
        await first
    before = remote.head
    held.go_on_reading()
    held.go_on()
    assert (await second).changed
    assert held.pushes.get_nowait()[0] == before != tip
