"""What makes a pass run: a trigger says *look*, never *what*. All of them end in one one-slot mailbox.

`Mailbox` coalesces; `watch_files` looks at the reference files of a local remote; `DriftWatch` looks at etcd, where a
hand edit, a request, a confirmation or a resume makes the loop look too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from time import monotonic
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from reconciler.core.errors import CompactedError, DivergedError, RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Range, WatchBatch
from reconciler.core.tracing import context_in

log = logging.getLogger(__name__)


HOOKED: Final = b"hook"
"""How the value of the key ``pushed`` begins when a webhook came to a replica that does not lead; its trace context may
follow."""


class Kind(StrEnum):
    """Why the loop looks; the values are metric labels."""

    START = "start"
    POLL = "poll"
    PUSH = "push"
    HOOK = "hook"
    DRIFT = "drift"
    REQUEST = "request"
    API = "api"
    """A push of this very replica was accepted: the head is at hand."""
    PROVEN = "proven"
    """What a changed platform waited for is known."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """One look: its (first) kind, and when the first of the joined triggers was seen. Unless ``fetch``, all of them
    were of the kind whose head is at hand."""

    kind: Kind
    seen_at: datetime
    fetch: bool = True
    trace: str | None = None
    """The trace context that it came with."""


class Mailbox:
    """One slot: triggers that arrive while a pass runs become one more pass, however many they are."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._slot: Trigger | None = None
        self.hooked_at: float | None = None
        """When a webhook came last (`monotonic`); ``None`` when none did, or since one failed to come."""
        self._filled = asyncio.Event()

    def put(self, kind: Kind, trace: str | None = None) -> None:
        """Ask for a look. Never blocks; to be called in the event loop's thread."""
        fetch = kind is not Kind.API
        if kind is Kind.HOOK:
            self.hooked_at = monotonic()
        if self._slot is None:
            self._slot = Trigger(kind, self._clock(), fetch, trace)
            self._filled.set()
        else:
            self._slot = replace(self._slot, fetch=self._slot.fetch or fetch, trace=self._slot.trace or trace)

    def emptied(self) -> str | None:
        """Forget what waits, since a look that covers it begins now; the trace context that it came with. What was put
        while this replica did not lead may have waited for days."""
        waiting, self._slot = self._slot, None
        self._filled.clear()
        return waiting.trace if waiting else None

    async def take(self, timeout: float) -> Trigger:  # noqa: ASYNC109 the time-out is an answer: a poll
        """The waiting trigger, or a poll after ``timeout`` seconds without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._filled.wait()
        self._filled.clear()
        trigger, self._slot = self._slot, None
        return trigger or Trigger(Kind.POLL, self._clock())


class Suspicious(Protocol):
    """The reconciler, as far as the drift watch knows it."""

    def invalidate(self) -> None:
        """Forget what is known of etcd."""
        ...

    async def wrote(self, revision: int) -> bool:
        """Whether the revision is an own write."""
        ...


class DriftWatch:
    """Watches the policies' keys and a person's words in etcd; whatever the loop did not write itself is a trigger."""

    def __init__(
        self,
        store: KeyValueStore,
        keyspace: Keyspace,
        mailbox: Mailbox,
        reconciler: Suspicious,
        *,
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._keyspace = keyspace
        self._mailbox = mailbox
        self._reconciler = reconciler
        self._restarted = restarted

    async def run(self) -> None:
        """Watch until cancelled. Where it begins, and after every gap, everything is looked at."""
        while True:
            try:
                await self._follow()
            except (CompactedError, DivergedError) as error:
                log.warning("drift watch starts over", extra={"reason": error.reason})
            except RegopsError as error:
                log.warning("drift watch failed", extra={"reason": error.reason, "error": str(error)})
                await asyncio.sleep(1)
            self._restarted()

    async def _follow(self) -> None:
        keys = self._keyspace
        words = (Range(keys.requested), Range(keys.confirmed), Range(keys.suspended), Range(keys.pushed))
        now = (await self._store.read(Range(keys.applied))).revision
        self._look(Kind.DRIFT)  # only now: whatever was read before ``now`` may lack an edit that no event will tell of
        async with self._store.watch(Range(keys.policies, prefix=True), *words, from_revision=now + 1) as batches:
            await self._each(batches)

    async def _each(self, batches: AsyncIterator[WatchBatch]) -> None:
        async for batch in batches:
            if batch.resumed:
                self._look(Kind.DRIFT)
            foreign = [event for event in batch.events if not await self._reconciler.wrote(event.kv.mod_revision)]
            if foreign:
                drift = any(event.kv.key.startswith(self._keyspace.policies) for event in foreign)
                words = [event.kv.value for event in foreign if event.kv.key == self._keyspace.pushed]
                hooks = [word for word in words if word.startswith(HOOKED)]
                trace = context_in(hooks[-1].removeprefix(HOOKED).decode("ascii", "replace")) if hooks else None
                kind = Kind.DRIFT if drift else Kind.HOOK if hooks else Kind.REQUEST
                # A word that something was pushed says nothing of etcd: it need not be read whole again.
                self._look(kind, trace, forget=len(words) < len(foreign))

    def _look(self, kind: Kind, trace: str | None = None, *, forget: bool = True) -> None:
        if forget:
            self._reconciler.invalidate()
        self._mailbox.put(kind, trace)


@contextlib.asynccontextmanager
async def watch_files(remote: str, mailbox: Mailbox) -> AsyncIterator[bool]:
    """While open, a push to a local ``remote`` is a trigger; yields whether the remote is one that can be watched.

    Only a hint: polling goes on, so a remote that cannot be watched costs time and nothing else.
    """
    folder = _git_folder(remote)
    if folder is None:
        yield False
        return
    loop = asyncio.get_running_loop()
    observer = Observer()

    def pushed() -> None:
        loop.call_soon_threadsafe(mailbox.put, Kind.PUSH)

    handler = _References(pushed)
    try:
        observer.schedule(handler, str(folder), recursive=False)
        observer.schedule(handler, str(folder / "refs"), recursive=True)
        observer.start()
    except OSError as error:
        log.warning("remote cannot be watched, polling only", extra={"remote": remote, "error": str(error)})
        yield False
        return
    try:
        yield True
    finally:
        observer.stop()
        await asyncio.to_thread(observer.join, 2)


class _References(FileSystemEventHandler):
    """Calls back when a reference has its new value: Git writes ``x.lock`` first and renames it."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Watchdog's one entry for all kinds; called in its own thread."""
        if event.event_type in {"opened", "closed_no_write"} or event.is_directory:
            return
        path = Path(str(event.dest_path or event.src_path))
        if path.suffix != ".lock" and ("refs" in path.parts or path.name in {"packed-refs", "HEAD"}):
            with contextlib.suppress(RuntimeError):  # the loop was closed while the event was on its way
                self._changed()


def _git_folder(remote: str) -> Path | None:
    """The Git folder of a remote on this machine, ``None`` for any other."""
    parts = urlsplit(remote)
    if parts.scheme not in {"", "file"} or (not parts.scheme and ":" in remote.split("/", maxsplit=1)[0]):
        return None
    path = Path(unquote(parts.path)) if parts.scheme else Path(remote)
    for folder in (path / ".git", path):
        if (folder / "refs").is_dir():
            return folder.resolve()
    return None
