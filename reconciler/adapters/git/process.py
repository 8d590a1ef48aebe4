"""One git command as a process group of its own: started by GitPython, ended with all its descendants."""

from __future__ import annotations

import logging
import os
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from git import Git
from git.exc import GitCommandNotFound

log = logging.getLogger(__name__)

_KEPT: Final = 64 * 1024
"""Bytes of each stream that are kept: the newest."""
_GRACE: Final = 5.0
"""Seconds to wait for a process that was sent SIGKILL; only one stuck in the kernel takes longer."""


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended: exit status (negative: the signal), standard output and standard error."""

    status: int
    output: str
    errors: str


class GitProcess:
    """A command that runs once. `run` blocks its thread; `kill` may be called from any other, at any time.

    However it ends — by itself, at the deadline, by `kill` — no process of its group is left: ``git-remote-https``,
    ``ssh`` and ``git-upload-pack`` are git's children and die with it. The group is signalled before its leader is
    reaped, so that the number cannot have passed to somebody else.

    ``timeout``: seconds until the deadline. ``silence``: a command that writes nothing for so long is ended before.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        timeout: float,
        silence: float | None = None,
        on_errors: Callable[[bytes], None] = lambda _chunk: None,
    ) -> None:
        self._command = command
        self._folder = folder
        self._environment = environment
        self._timeout = timeout
        self._silence = timeout if silence is None else silence
        self._on_errors = on_errors
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._output = bytearray()
        self._errors = bytearray()

    def run(self) -> Completed:
        """Start, wait, end. Raises `TimeoutError` at the deadline, `OSError` when nothing could be started."""
        deadline = time.monotonic() + self._timeout
        with self._lock:
            if self._killed:
                return Completed(-signal.SIGKILL, "", "")
            process = self._process = self._start()
        try:
            in_time = self._collect(process, deadline)
        finally:
            status = self._end(process)
        if not in_time:
            raise TimeoutError(f"not done after {self._timeout:g} s, or silent for {self._silence:g} s")
        return Completed(status, _text(self._output), _text(self._errors))

    def kill(self) -> None:
        """End the command and its descendants now; one that has not started never will."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                _kill_group(self._process.pid)

    def _start(self) -> subprocess.Popen[bytes]:
        git = Git(self._folder)
        try:
            started = git.execute(
                self._command, as_process=True, env=self._environment, start_new_session=True, shell=False
            )
        except GitCommandNotFound as error:
            raise FileNotFoundError(str(error)) from error
        process = started.proc
        # The wrapper would send SIGTERM to the leader alone when it is collected; ending is this class's business.
        started.proc = None
        if process is None:
            raise ChildProcessError("GitPython started no process")
        return process

    def _collect(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Read both streams until the leader exits (true), is silent for too long or passes the deadline (false)."""
        with selectors.DefaultSelector() as selector, _exit_of(process.pid) as exited:
            selector.register(exited, selectors.EVENT_READ)
            for stream, sink in self._streams(process):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ, sink)
            while (left := deadline - time.monotonic()) > 0:
                ready = selector.select(min(left, self._silence))
                if not ready:
                    return False
                for key, _ in ready:
                    if key.fd == exited:
                        return True
                    if not _read_once(key.fd, key.data):
                        selector.unregister(key.fileobj)
        return False

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Kill what is left of the group, reap the leader, read what it had still written."""
        _kill_group(process.pid)
        with _exit_of(process.pid) as exited:
            select.select([exited], [], [], _GRACE)
        with self._lock:
            status = process.poll()
            self._process = None
        if status is None:
            log.error("git process does not die", extra={"pid": process.pid})
            status = -signal.SIGKILL
        for stream, sink in self._streams(process):
            with stream:
                os.set_blocking(stream.fileno(), False)
                while _read_once(stream.fileno(), sink):
                    pass
        return status

    def _streams(self, process: subprocess.Popen[bytes]) -> Iterator[tuple[IO[bytes], Callable[[bytes], None]]]:
        if process.stdout is not None:
            yield process.stdout, self._keep_output
        if process.stderr is not None:
            yield process.stderr, self._keep_errors

    def _keep_output(self, chunk: bytes) -> None:
        self._output += chunk
        del self._output[:-_KEPT]

    def _keep_errors(self, chunk: bytes) -> None:
        self._errors += chunk
        del self._errors[:-_KEPT]
        self._on_errors(chunk)


@contextmanager
def _exit_of(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when the process exits, without reaping it (pidfd_open(2))."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _read_once(descriptor: int, sink: Callable[[bytes], None]) -> bool:
    """Pass on what is there; false at the end of the stream, and when there is nothing yet."""
    try:
        chunk = os.read(descriptor, _KEPT)
    except BlockingIOError:
        return False
    if chunk:
        sink(chunk)
    return bool(chunk)


def _text(stream: bytearray) -> str:
    return stream.decode("utf-8", "replace")
