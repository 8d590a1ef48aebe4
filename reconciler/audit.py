"""The audit trail: one event for every attempt to write, whatever its end.

The log line is the record, written before the answer. Before commits are sent they are noted in a journal on disk, so
that a replica that dies between push and log writes the event when it starts again, from the commit's own trailers.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, TextIO

from reconciler.core.errors import StalledError, TransientError
from reconciler.edits import Write

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
    """What was sent to the remote and is not in the audit log yet. One line a commit, flushed to disk.

    What a former process left lies in a file of its own until `forget`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._left = folder / f"{JOURNAL}.left"
        self._open: Counter[str] = Counter()
        self._writing = asyncio.Lock()

    async def intends(self, commits: Mapping[str, Write]) -> None:
        """These commits are about to be sent. Raises `TransientError` when that cannot be noted."""
        lines = [
            {"request_id": write.request_id, "commit": commit, "actor": write.actor, "policy": write.policy}
            for commit, write in commits.items()
        ]
        async with self._writing:
            self._open.update(line["request_id"] for line in lines)
            await asyncio.to_thread(self._append, lines)

    async def logged(self, request_id: str) -> None:
        """The event of this request is in the log. The file is emptied whenever nothing is open any more."""
        if request_id not in self._open:
            return
        del self._open[request_id]
        async with self._writing:
            if not self._open:
                await asyncio.to_thread(self._path.unlink, missing_ok=True)

    def left(self) -> dict[str, list[dict[str, str]]]:
        """What a former process had sent and perhaps not logged: request id → its commits, oldest first. To be called
        before anything is sent. A line that was torn by the crash is left out."""
        if self._path.exists():
            with self._left.open("ab") as left:
                left.write(self._path.read_bytes())
                left.flush()
                os.fsync(left.fileno())
            self._path.unlink()
        found: dict[str, list[dict[str, str]]] = {}
        for line in self._left.read_text(encoding="utf-8").splitlines() if self._left.exists() else ():
            try:
                entry = json.loads(line)
                found.setdefault(entry["request_id"], []).append(entry)
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def forget(self) -> None:
        """What was left has been dealt with."""
        self._left.unlink(missing_ok=True)

    def _append(self, lines: list[dict[str, str]]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
                file.flush()
                os.fdatasync(file.fileno())
        except OSError as error:
            raise TransientError(
                "the audit journal cannot be written", reason="AuditFailed", remedy="Make room in server.state."
            ) from error
