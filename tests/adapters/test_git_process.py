"""A git command ends with everything that it started: at its deadline, on cancellation and on shutdown."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from fixtures.git import Remote

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.process import GitProcess
from reconciler.core.errors import TransientError


@asynccontextmanager
async def _silent() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The URL of a server that accepts and says nothing, and whether somebody has come."""
    came, gone = asyncio.Event(), asyncio.Event()

    async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/policies.git", came
        gone.set()


def _naming(text: str) -> list[int]:
    """Processes (and no zombies) with this text in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and text.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _dead(*pids: int) -> None:
    """SIGKILL is sent, not yet obeyed: a descendant that nobody reaps may take a moment."""
    async with asyncio.timeout(5):
        while any(_alive(pid) for pid in pids):  # noqa: ASYNC110 the kernel sets no event
            await asyncio.sleep(0.01)


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Callable[..., GitSource]]:
    opened: list[GitSource] = []

    def make(remote: str, seconds: float) -> GitSource:
        mirror = tmp_path / "mirror.git"
        source = GitSource(remote=remote, mirror=mirror, fetch_timeout=seconds, clone_timeout=seconds)
        opened.append(source)
        return source

    yield make
    for each in opened:
        await each.aclose()


async def test_a_remote_that_hangs_is_given_up_with_all_of_gits_helpers(
    source: Callable[..., GitSource], tmp_path: Path
) -> None:
    """``git-remote-https``, a child of git, holds the connection; GitPython's own time-out finds it by ``pgrep``."""
    async with _silent() as (url, came):
        fetching = asyncio.create_task(source(url, 1.0).fetch())
        await came.wait()
        helpers = _naming(url)
        with pytest.raises(TransientError) as late:
            await fetching
        await _dead(*helpers)
    assert late.value.reason == "FetchTimeout"
    assert len(helpers) >= 2
    assert not _naming(str(tmp_path / "mirror.git"))


async def test_a_cancelled_fetch_has_no_process_left_when_the_cancellation_arrives(
    source: Callable[..., GitSource],
) -> None:
    async with _silent() as (url, came):
        fetching = asyncio.create_task(source(url, 60.0).fetch())
        await came.wait()
        helpers = _naming(url)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await _dead(*helpers)
    assert len(helpers) >= 2


async def test_closing_ends_a_fetch_that_runs(source: Callable[..., GitSource]) -> None:
    async with _silent() as (url, came):
        hanging = source(url, 60.0)
        fetching = asyncio.create_task(hanging.fetch())
        await came.wait()
        helpers = _naming(url)
        await hanging.aclose()
        with pytest.raises((TransientError, RuntimeError, asyncio.CancelledError)):
            await fetching
        await _dead(*helpers)


async def test_after_a_fetch_that_hung_the_next_one_works(
    remote: Remote, source: Callable[..., GitSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ``ssh`` hangs, with a child of its own; its pids come through a pipe."""
    ssh, pipe = tmp_path / "bin" / "ssh", tmp_path / "pipe"
    ssh.parent.mkdir()
    os.mkfifo(pipe)
    ssh.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pipe}\nwait\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    followed = source(f"git@example.invalid:{remote.path}", 60.0)
    fetching = asyncio.create_task(followed.fetch())
    pids = [int(pid) for pid in (await asyncio.to_thread(pipe.read_text)).split()]
    assert all(_alive(pid) for pid in pids)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    await _dead(*pids)
    ssh.write_text('#!/bin/sh\nshift $(($# - 1))\nexec sh -c "$1"\n')
    assert await followed.fetch() == remote.head


async def test_a_long_clone_says_how_it_gets_on_and_a_short_one_nothing(
    remote: Remote, source: Callable[..., GitSource], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "reconciler.adapters.git")
    await source(remote.url, 60.0).fetch()
    assert [record.message for record in caplog.records] == ["git mirror is cloned"]
    caplog.clear()
    monkeypatch.setattr("reconciler.adapters.git.transport._PROGRESS_EVERY", 0.0)
    remote.commit({"policies/projects/alpha/data.json": b"{}"})
    await source(remote.url, 60.0).fetch()
    progress = [record for record in caplog.records if record.message == "git fetch goes on"]
    assert progress
    assert progress[-1].__dict__["percent"] == 100
    assert progress[-1].__dict__["remote"] == remote.url


async def test_a_fetch_that_waits_for_another_is_cancelled_alone(source: Callable[..., GitSource]) -> None:
    async with _silent() as (url, came):
        hanging = source(url, 1.0)
        first, second = asyncio.create_task(hanging.fetch()), asyncio.create_task(hanging.fetch())
        await came.wait()
        second.cancel()
        with pytest.raises(TransientError):
            await first
        with pytest.raises(asyncio.CancelledError):
            await second


async def test_the_event_loop_goes_on_while_a_command_runs(source: Callable[..., GitSource]) -> None:
    longest = 0.0
    async with _silent() as (url, _came):
        fetching = asyncio.create_task(source(url, 0.5).fetch())
        while not fetching.done():
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)
        with pytest.raises(TransientError):
            await fetching
    assert longest < 0.25


async def test_a_first_clone_that_hangs_is_given_up_long_before_its_own_deadline(tmp_path: Path) -> None:
    """Otherwise a new server would call a silent remote a slow one, for ten minutes."""
    async with _silent() as (url, _came):
        source = GitSource(remote=url, mirror=tmp_path / "mirror.git", fetch_timeout=0.3, clone_timeout=600.0)
        with pytest.raises(TransientError, match=r"silent for 0\.3 s"):
            await source.fetch()
        await source.aclose()


def _process(tmp_path: Path, script: str, timeout: float = 10.0, silence: float | None = None) -> GitProcess:
    return GitProcess(
        ["sh", "-c", script],
        folder=tmp_path,
        environment={"PATH": os.environ["PATH"]},
        timeout=timeout,
        silence=silence,
    )


def test_a_command_that_shows_progress_outlives_its_silence_and_not_its_deadline(tmp_path: Path) -> None:
    slow = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; echo $n >&2; done"
    assert _process(tmp_path, slow, silence=0.8).run().status == 0
    with pytest.raises(TimeoutError):
        _process(tmp_path, slow, timeout=0.4, silence=0.8).run()


def test_what_a_command_leaves_in_the_background_dies_with_it(tmp_path: Path) -> None:
    """Git may leave ``maintenance --detach`` or an ssh master behind; both would hold our pipes open."""
    completed = _process(tmp_path, "sleep 600 & echo $!; echo said >&2; exit 3").run()
    assert (completed.status, completed.errors) == (3, "said\n")
    asyncio.run(_dead(int(completed.output)))


def test_a_command_that_was_killed_before_it_began_never_begins(tmp_path: Path) -> None:
    process = _process(tmp_path, f"touch {tmp_path}/began")
    process.kill()
    assert process.run().status == -9
    assert not (tmp_path / "began").exists()


def test_a_flood_of_output_is_read_and_only_its_end_is_kept(tmp_path: Path) -> None:
    completed = _process(tmp_path, "seq 1 200000; seq 1 200000 >&2; echo end >&2").run()
    assert completed.errors.endswith("200000\nend\n")
    assert len(completed.errors) <= 64 * 1024


def test_a_command_that_closes_its_streams_and_stays_is_ended(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        _process(tmp_path, "exec >&- 2>&-; sleep 600", timeout=0.2).run()
