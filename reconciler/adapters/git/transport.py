"""Talking to the remote: the git command on the bare mirror, with a fixed argument list and a deadline."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pygit2

from reconciler.adapters.git.access import Access, unset_inherited
from reconciler.adapters.git.failures import NoSuchRefError, clean, disk_failure, failure_of
from reconciler.adapters.git.process import Completed, GitProcess
from reconciler.adapters.git.pushing import outcome_of
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.ports import Push, PushResult

log = logging.getLogger(__name__)

HEAD_REF: Final = "refs/regops/head"
"""Where the followed branch's head lies in the mirror; private, so that nothing else ever moves it."""

_PROGRESS_EVERY: Final = 5.0
_ASK_TIMEOUT: Final = 30.0
_PACK_TIMEOUT: Final = 60.0
_END_TIMEOUT: Final = 10.0
_NAMED_BRANCHES: Final = 10
_PHASE = re.compile(r"([A-Z][a-z]+ing [a-z ]+): +(\d+)%")


class Transport:
    """One remote and one branch of it. Every command is ended with its children at its deadline and on cancellation.

    ``remote`` is anything that git takes, a folder too; a relative one is taken from the current folder once, here.
    """

    def __init__(self, remote: str, branch: str, access: Access) -> None:
        self._remote = str(Path(remote).expanduser().absolute()) if _is_folder(remote) else remote
        self._branch = branch
        self._access = access
        self._running: set[GitProcess] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="git-transport")

    async def fetch(
        self,
        repository: Path,
        timeout: float,  # noqa: ASYNC109 the process gets it
        silence: float | None = None,
    ) -> None:
        """Bring the branch's head and its history into `HEAD_REF` of ``repository``.

        It is ended after ``timeout`` seconds, and after ``silence`` seconds without a word of progress.

        Raises what `Source.fetch` promises, and `MirrorDamagedError` and `MirrorLockedError` for the caller to heal.
        """
        if not pygit2.reference_is_valid_name(f"refs/heads/{self._branch}"):
            raise StalledError(
                f"{self._branch!r} is no possible branch name", reason="BranchNotFound", remedy="Correct git.branch."
            )
        arguments = ["fetch", "--no-tags", "--no-auto-maintenance", "--no-recurse-submodules", "--force"]
        arguments += ["--no-write-fetch-head", "--progress", "--"]
        arguments += [self._remote, f"+refs/heads/{self._branch}:{HEAD_REF}"]
        try:
            await self._succeed(repository, arguments, timeout, silence, _Progress(clean(self._remote)))
        except NoSuchRefError as error:
            raise await self._why_no_branch(repository) from error

    async def head(self, repository: Path, timeout: float) -> str | None:  # noqa: ASYNC109 the process gets it
        """The branch's head at the remote; ``None`` where `fetch` will say why there is none. Raises the same."""
        ref = f"refs/heads/{self._branch}"
        answer = await self._succeed(repository, ["ls-remote", "--", self._remote, ref], timeout)
        refs = dict(line.split("\t", 1)[::-1] for line in answer.output.splitlines() if "\t" in line)
        return refs.get(ref)

    async def push(self, repository: Path, base: str, tip: str, timeout: float) -> Push:  # noqa: ASYNC109 the same
        """Move the remote branch from ``base`` to ``tip``: see `Branch.push`.

        The lease is the compare-and-set: the remote moves the branch only from exactly ``base``, also where another
        commit would make it a fast-forward. A hang is ended after ``timeout`` seconds and is an unknown outcome.
        """
        branch = f"refs/heads/{self._branch}"
        arguments = ["push", "--porcelain", "--no-verify", "--no-follow-tags", "--no-recurse-submodules"]
        arguments += [f"--force-with-lease={branch}:{base}", "--", self._remote, f"{tip}:{branch}"]
        try:
            completed = await self._run(self._process(repository, arguments, timeout))
        except TimeoutError:
            return Push(PushResult.UNKNOWN, f"{clean(self._remote)} did not answer within {timeout:g} s")
        except OSError as error:
            raise disk_failure(error, str(repository)) from error
        if completed.status < 0:
            return Push(PushResult.UNKNOWN, "git was ended while it pushed")
        return outcome_of(completed, self._remote)

    async def pack(self, repository: Path) -> None:
        """Unite small packs and loose objects (git ≥ 2.32); nothing that was ever fetched is dropped."""
        await self._succeed(repository, ["repack", "--geometric=2", "-d", "-q"], _PACK_TIMEOUT)

    async def aclose(self) -> None:
        """End what still runs; whoever waits for it gets a `TransientError`."""
        self._closed = True
        for process in list(self._running):
            process.kill()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def _why_no_branch(self, repository: Path) -> StalledError:
        answer = await self._succeed(repository, ["ls-remote", "--", self._remote], _ASK_TIMEOUT)
        refs = [line.partition("\t")[2] for line in answer.output.splitlines()]
        if not refs:
            return StalledError(
                f"{clean(self._remote)} has no commit yet",
                reason="NoCommit",
                remedy=f"Push to branch {self._branch!r}.",
            )
        branches = sorted(clean(ref.removeprefix("refs/heads/")) for ref in refs if ref.startswith("refs/heads/"))
        more = ["…"] if len(branches) > _NAMED_BRANCHES else []
        named = ", ".join(branches[:_NAMED_BRANCHES] + more) or "none"
        return StalledError(
            f"{clean(self._remote)} has no branch {self._branch!r}; its branches are: {named}",
            reason="BranchNotFound",
            remedy="Push the branch, or name another one as git.branch.",
        )

    async def _succeed(
        self,
        repository: Path,
        arguments: Sequence[str],
        timeout: float,  # noqa: ASYNC109 the process gets it
        silence: float | None = None,
        on_errors: Callable[[bytes], None] = lambda _chunk: None,
    ) -> Completed:
        process = self._process(repository, arguments, timeout, silence, on_errors)
        try:
            completed = await self._run(process)
        except TimeoutError as error:
            raise TransientError(
                f"{clean(self._remote)} hangs: git {arguments[0]} was {error}",
                reason="FetchTimeout",
                remedy="If the remote is healthy but slow, raise git.fetch_timeout.",
            ) from error
        except OSError as error:
            raise disk_failure(error, str(repository)) from error
        if completed.status != 0:
            raise failure_of(completed.errors, remote=self._remote, status=completed.status)
        return completed

    def _process(
        self,
        repository: Path,
        arguments: Sequence[str],
        timeout: float,
        silence: float | None = None,
        on_errors: Callable[[bytes], None] = lambda _chunk: None,
    ) -> GitProcess:
        command = [
            *unset_inherited(),
            "git",
            f"--git-dir={repository}",
            *self._access.options(self._remote),
            *arguments,
        ]
        return GitProcess(
            command,
            folder=repository,
            environment=self._access.environment(),
            timeout=timeout,
            silence=silence,
            on_errors=on_errors,
        )

    async def _run(self, process: GitProcess) -> Completed:
        """Run in a thread; on cancellation the process is dead before the cancellation goes on."""
        if self._closed:
            raise TransientError("The mirror is being closed", reason="FetchFailed")
        self._running.add(process)
        running = asyncio.get_running_loop().run_in_executor(self._threads, process.run)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            process.kill()
            await asyncio.wait({running}, timeout=_END_TIMEOUT)
            raise
        finally:
            self._running.discard(process)


class _Progress:
    """Says how a long fetch gets on, at most one line every few seconds and none for a short one."""

    def __init__(self, remote: str) -> None:
        self._remote = remote
        self._next = time.monotonic() + _PROGRESS_EVERY

    def __call__(self, chunk: bytes) -> None:
        if time.monotonic() < self._next:
            return
        found = _PHASE.findall(chunk.decode("utf-8", "replace"))
        if found:
            phase, percent = found[-1]
            log.info("git fetch goes on", extra={"remote": self._remote, "phase": phase, "percent": int(percent)})
            self._next = time.monotonic() + _PROGRESS_EVERY


def _is_folder(remote: str) -> bool:
    """Git's own rule (git-fetch(1), "GIT URLS"): no scheme, and no colon before the first slash."""
    return "://" not in remote and ":" not in remote.partition("/")[0]
