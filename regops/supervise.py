"""Child processes that are kept running: started, watched, started again, ended with their whole process group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from reconciler.core.errors import StalledError

log = logging.getLogger(__name__)

_GRACE = 2.5
_GRACE_LAST = 1.5
_BACKOFF = (0.2, 5.0)
_TRIES = 3
_LOG_LIMIT = 10 * 1024 * 1024
_LOG_TAIL = 400


@dataclass(frozen=True, slots=True)
class Program:
    """What to run under a name, and how to tell that it answers."""

    name: str
    words: Sequence[str]
    log: Path
    answers: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Keeps programs running while ``async with`` lasts; then ends them in reverse order.

    ``say`` takes lines for a person; ``changed`` is called with the pids after every start. Programs inherit
    ``environment`` and add their own; those named in ``last`` end after all others.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        changed: Callable[[dict[str, int]], None],
        *,
        last: frozenset[str] = frozenset(),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._last = last
        self._environment = environment
        self._say = say
        self._changed = changed
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ends: Counter[str] = Counter()
        self._ending = False

    def pids(self) -> dict[str, int]:
        """The processes as they are now."""
        return {name: process.pid for name, process in self._running.items()}

    async def start(self, program: Program, seconds: float) -> None:
        """Start and wait until it answers. Raises `TimeoutError` after ``seconds``, and `StalledError` for a program
        that ends again and again; both name the log."""
        began = monotonic()
        _rotate(program.log)
        await self._spawn(program)
        self._keepers.append(asyncio.create_task(self._keep(program), name=f"keep {program.name}"))
        try:
            async with asyncio.timeout(seconds):
                while not await program.answers():
                    if self._ends[program.name] >= _TRIES:
                        raise StalledError(f"{program.name} ends as soon as it starts; {_last_words(program.log)}")
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise TimeoutError(f"{program.name} does not answer; {_last_words(program.log)}") from error
        self._say(f"  {program.name} ready after {monotonic() - began:.1f} s")

    async def stop(self) -> None:
        """End everything: SIGTERM, then SIGKILL to the group of who is left; the ``last`` ones after the others."""
        self._ending = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        stores = [process for name, process in self._running.items() if name in self._last]
        others = [process for name, process in self._running.items() if name not in self._last]
        await _end(others, _GRACE)
        await _end(stores, _GRACE_LAST)

    async def _spawn(self, program: Program) -> None:
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as output:
            self._running[program.name] = await asyncio.create_subprocess_exec(
                *program.words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**self._environment, **program.environment},
            )
        self._changed(self.pids())

    async def _keep(self, program: Program) -> None:
        delay = _BACKOFF[0]
        while True:
            began = monotonic()
            process = self._running[program.name]
            status = await process.wait()
            if self._ending:
                return
            kill_group(process.pid)
            self._ends[program.name] += 1
            delay = _BACKOFF[0] if monotonic() - began > _BACKOFF[1] else min(delay * 2, _BACKOFF[1])
            self._say(f"{program.name} ended ({_how(status)}) and is started again; its log: {program.log}")
            await asyncio.sleep(delay)
            await self._spawn(program)


async def _end(processes: Sequence[asyncio.subprocess.Process], grace: float) -> None:
    for process in processes:
        _signal(process, signal.SIGTERM)
    waits = [asyncio.ensure_future(process.wait()) for process in processes]
    if waits:
        await asyncio.wait(waits, timeout=grace)
    for process in processes:
        kill_group(process.pid)
    await asyncio.gather(*waits)


def kill_group(pid: int) -> None:
    """SIGKILL to a process group that we made; nothing when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def started_at(pid: int) -> str | None:
    """The start time of a process in the kernel's ticks (proc(5), field 22), ``None`` when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def _how(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit code {status}"


def _last_words(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    return f"its log is {file}" + (f": {said[-1][-_LOG_TAIL:]}" if said else "")


def _rotate(file: Path) -> None:
    if file.exists() and file.stat().st_size > _LOG_LIMIT:
        file.replace(file.with_suffix(".log.1"))
