"""The audit trail: one event for every attempt to write, whatever its end.

The log line is the record, written before the answer. Before commits are sent they are noted in a journal on disk, so
that a replica that dies between push and log writes the event when it starts again, from the commit's own trailers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, TextIO

from reconciler.core.errors import StalledError, TransientError
from reconciler.core.times import rfc3339
from reconciler.edits import Write

JOURNAL: Final = "audit-journal.jsonl"
_LATELY: Final = 4 * 2**20
"""Bytes at the end of the audit file in which the last events of a crashed process are found."""

Line = Mapping[str, str]
"""A commit in the journal: attempt, request_id, commit, actor, policy."""


def timestamp(now: datetime | None = None) -> str:
    """RFC 3339 UTC with milliseconds."""
    return rfc3339(now or datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One attempt, or one thing that the reconciler did: see `reconciler.pass_audit`. ``result`` is ``created``,
    ``updated``, ``deleted``, ``unchanged``, ``replayed``, ``done`` or a problem's code. ``recovered``: written later,
    from the commit. ``id`` tells attempts apart, also when a caller repeats its request id. ``detail``: for people."""

    actor: str
    action: str
    resource: str
    result: str
    request_id: str
    client_ip: str | None = None
    etag_before: str | None = None
    etag_after: str | None = None
    commit: str | None = None
    recovered: bool = False
    detail: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    ts: str = field(default_factory=timestamp)


class AuditSink(Protocol):
    """Where events go."""

    def emit(self, event: AuditEvent) -> None:
        """Write the event. Raises `TransientError` when it could not be written."""
        ...

    def holds(self, attempt: str) -> bool:
        """Whether the event of this attempt was written lately, as far as that can be looked up."""
        ...


class AuditLog:
    """JSON lines on standard output, or in a file of their own that is flushed to disk line by line."""

    def __init__(self, file: Path | None = None, stream: TextIO | None = None) -> None:
        self._file = file
        self._stream = stream or sys.stdout
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = file.open("a", encoding="utf-8")
            except OSError as error:
                raise StalledError(
                    f"audit.file {file} cannot be written: {error.strerror}",
                    reason="InvalidSettings",
                    remedy="Name a file that this user may write.",
                ) from error

    def emit(self, event: AuditEvent) -> None:
        """See `AuditSink`."""
        line = {"ts": event.ts, "level": "info", "logger": "audit", **asdict(event)}
        try:
            self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._stream.flush()
            if self._file is not None:
                os.fdatasync(self._stream.fileno())
        except OSError as error:
            raise TransientError("the audit event cannot be written", reason="AuditFailed") from error

    def holds(self, attempt: str) -> bool:
        """See `AuditSink`. Looks into the end of the file; what went to standard output is out of sight."""
        if self._file is None:
            return False
        with contextlib.suppress(OSError), self._file.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LATELY))
            return f'"id": "{attempt}"'.encode() in file.read()
        return False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._stream.close()


class Journal:
    """What was sent to the remote and is not in the audit log yet. One line a commit, flushed to disk, and one for each
    attempt whose event is in the log.

    What a former process left lies in a file of its own until `forget`.
    """

    def __init__(self, folder: Path, *, compact_above: int = 1024 * 1024) -> None:
        """The file is written anew when it has so many bytes: it is only emptied while nothing is open."""
        self._path = folder / JOURNAL
        self._left = folder / f"{JOURNAL}.left"
        self._compact_above = compact_above
        self._open: dict[str, list[Line]] = {}
        self._writing = asyncio.Lock()

    async def intends(self, commits: Mapping[str, Write]) -> None:
        """These commits are about to be sent. Raises `TransientError` when that cannot be noted."""
        lines = [
            {
                "attempt": write.attempt,
                "request_id": write.request_id,
                "commit": commit,
                "actor": write.actor,
                "policy": write.policy,
            }
            for commit, write in commits.items()
        ]
        async with self._writing:
            for line in lines:
                self._open.setdefault(line["attempt"], []).append(line)
            known = dict(self._open)
            await asyncio.to_thread(self._append, lines, [line for each in known.values() for line in each])
            for attempt in known.keys() - self._open.keys():  # logged while the file was perhaps written anew
                self._note(self._path, attempt)

    async def logged(self, attempt: str) -> None:
        """The event of this attempt is in the log. The file is deleted whenever nothing is open any more."""
        if not self.close(attempt) or self._open:
            return
        async with self._writing:
            if not self._open:
                await asyncio.to_thread(self._path.unlink, missing_ok=True)

    def close(self, attempt: str) -> bool:
        """The event of this attempt is in the log, and there is no time for more; whether it was open."""
        if self._open.pop(attempt, None) is None:
            return False
        self._note(self._path, attempt)
        return True

    def is_open(self, attempt: str) -> bool:
        """Whether commits of this attempt were sent, and its event is still to be logged."""
        return attempt in self._open

    def left(self) -> dict[str, list[Line]]:
        """What a former process had sent and not logged: attempt → its commits, oldest first. To be called before
        anything is sent. A line that was torn by the crash is left out."""
        if self._path.exists():
            with self._left.open("ab") as left:
                left.write(self._path.read_bytes() + b"\n")
                left.flush()
                os.fsync(left.fileno())
            self._path.unlink()
        found: dict[str, list[Line]] = {}
        for line in self._left.read_text(encoding="utf-8").splitlines() if self._left.exists() else ():
            try:
                entry = json.loads(line)
                if "done" in entry:
                    found.pop(entry["done"], None)
                else:
                    found.setdefault(entry.get("attempt", entry["request_id"]), []).append(entry)
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def recovered(self, attempt: str) -> None:
        """The event of this attempt, that was left, is in the log."""
        self._note(self._left, attempt)

    def forget(self) -> None:
        """What was left has been dealt with."""
        self._left.unlink(missing_ok=True)

    def _append(self, lines: Sequence[Line], known: Sequence[Line]) -> None:
        """Add lines to the file; one that has grown large is replaced by one with all ``known`` lines."""
        try:
            grown = self._path.exists() and self._path.stat().st_size > self._compact_above
            path = self._path.with_suffix(".new") if grown else self._path
            with path.open("w" if grown else "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in (known if grown else lines))
                file.flush()
                os.fdatasync(file.fileno())
            if grown:
                path.replace(self._path)
        except OSError as error:
            raise TransientError(
                "the audit journal cannot be written", reason="AuditFailed", remedy="Make room in server.state."
            ) from error

    @staticmethod
    def _note(path: Path, attempt: str) -> None:
        """A few bytes, not flushed: they outlive the process. Without them an event is written twice at worst."""
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"done": attempt}) + "\n")
