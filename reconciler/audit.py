"""The audit trail: one event for every attempt to write, whatever its end.

The log line is the record, written before the answer. Before commits are sent they are noted in a journal on disk, so
that a replica that dies between push and log writes the event when it starts again, from the commit's own trailers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

from reconciler.core.errors import StalledError, TransientError
from reconciler.edits import Write

log = logging.getLogger(__name__)

JOURNAL: Final = "audit-journal.jsonl"


def timestamp(now: datetime | None = None) -> str:
    """RFC 3339 UTC with milliseconds."""
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One attempt. ``result`` is ``created``, ``updated``, ``deleted``, ``unchanged``, ``done`` or a problem's code;
    ``recovered``: written later, from the commit."""

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
    ts: str = field(default_factory=timestamp)


class AuditSink(Protocol):
    """Where events go."""

    def emit(self, event: AuditEvent) -> None:
        """Write the event. Raises `TransientError` when it could not be written."""
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

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._stream.close()


class Journal:
    """What was sent to the remote and is not in the audit log yet. One file, one line a commit, flushed to disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._open: set[str] = set()
        self._writing = asyncio.Lock()

    async def intends(self, commits: Mapping[str, Write]) -> None:
        """These commits are about to be sent."""
        lines = [
            {"request_id": w.request_id, "commit": commit, "actor": w.actor, "policy": w.policy, "ts": timestamp()}
            for commit, w in commits.items()
        ]
        async with self._writing:
            self._open.update(line["request_id"] for line in lines)
            await asyncio.to_thread(self._append, lines)

    async def logged(self, request_id: str) -> None:
        """The event of this request is in the log. The file is emptied whenever nothing is open any more."""
        self._open.discard(request_id)
        if not self._open and not self._writing.locked():
            async with self._writing:
                if not self._open:
                    await asyncio.to_thread(self._path.unlink, missing_ok=True)

    def left(self) -> list[dict[str, Any]]:
        """What a former process had sent and perhaps not logged, oldest first; a torn last line is left out."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def _append(self, lines: list[dict[str, Any]]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fdatasync(file.fileno())
        except OSError as error:
            raise TransientError(
                "the audit journal cannot be written", reason="AuditFailed", remedy="Make room in server.state."
            ) from error
