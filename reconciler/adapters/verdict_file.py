"""`VerdictFile`: the port `VerdictStore` in one SQLite file below the server's state folder.

Its rows are keyed by a digest of everything that a verdict depends on, so nothing in it is ever out of date: an other
OPA, other settings or other rules of ours ask for other keys. What was not asked for in a month is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from reconciler.core.errors import RegopsError
from reconciler.core.model import FileError, Verdict
from reconciler.core.verdict_ports import VerdictKey

log = logging.getLogger(__name__)

MOST: Final = 500_000
"""Rows that are kept, those used last: about 30 MB."""
_DAYS: Final = 30
_ASKED: Final = 500
"""Keys of one statement; SQLite takes 999 in its oldest versions."""
_BUSY_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 60.0
"""How long a file that cannot be used is left alone."""
_NONSENSE: Final = (ValueError, KeyError, TypeError)
"""What reading a row raises that we did not write."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, used INTEGER NOT NULL, said TEXT NOT NULL) WITHOUT ROWID
"""

T = TypeVar("T")


class VerdictFile:
    """One file, used by one process; close it with `aclose`.

    ``fingerprint`` names everything that all verdicts depend on beside their keys, as it is at the time: the OPA may be
    exchanged while the process runs. A file that is damaged is made anew; one that cannot be used (full
    disk, no permission) is done without, and tried again a minute later.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Callable[[], Awaitable[str]],
        *,
        most: int = MOST,
        today: Callable[[], int] = lambda: int(time.time() // 86400),
    ) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._most = most
        self._today = today
        self._connection: sqlite3.Connection | None = None
        self._pruned = 0
        self._paused_until = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verdicts")

    async def find(self, keys: Sequence[VerdictKey]) -> Mapping[VerdictKey, Verdict]:
        """See `VerdictStore.find`."""
        digests = await self._digests(keys)
        return await self._run(lambda file: self._find(file, digests), {})

    async def keep(self, verdicts: Mapping[VerdictKey, Verdict]) -> None:
        """See `VerdictStore.keep`."""
        digests = await self._digests(list(verdicts))
        rows = [(digest, self._today(), _encoded(verdicts[key])) for digest, key in digests.items()]
        await self._run(lambda file: self._keep(file, rows), None)

    async def aclose(self) -> None:
        """Close the file. May be called again."""
        with contextlib.suppress(RuntimeError):  # closed already
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _digests(self, keys: Sequence[VerdictKey]) -> dict[bytes, VerdictKey]:
        try:
            fingerprint = (await self._fingerprint()).encode()
        except RegopsError:  # whoever asks the compiler itself is told
            return {}
        return {_digest(fingerprint, key): key for key in keys}

    # --- in the thread -----------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        if time.monotonic() < self._paused_until:
            return otherwise
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work, otherwise)

    def _guarded(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        try:
            try:
                return work(self._opened())
            except (sqlite3.DatabaseError, *_NONSENSE) as error:
                if isinstance(error, sqlite3.OperationalError):  # full, locked, read-only: the file may be sound
                    raise
                log.warning("the file of verdicts is damaged and made anew", extra={"error": str(error)})
                self._remove()
                return work(self._opened())
        except (sqlite3.Error, OSError, *_NONSENSE) as error:
            self._close()
            self._paused_until = time.monotonic() + _PAUSE_SECONDS
            log.warning("verdicts cannot be kept", extra={"file": str(self._path), "error": str(error)})
            return otherwise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            self._connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", _SCHEMA):
                self._connection.execute(statement)
            self._prune(self._connection)
        return self._connection

    def _prune(self, file: sqlite3.Connection) -> None:
        self._pruned = self._today()
        file.execute("DELETE FROM verdicts WHERE used < ?", (self._today() - _DAYS,))
        (rows,) = file.execute("SELECT count(*) FROM verdicts").fetchone()
        if rows > self._most:
            oldest = "SELECT key FROM verdicts ORDER BY used LIMIT ?"
            file.execute(f"DELETE FROM verdicts WHERE key IN ({oldest})", (rows - self._most,))  # noqa: S608 constant

    def _find(self, file: sqlite3.Connection, digests: Mapping[bytes, VerdictKey]) -> dict[VerdictKey, Verdict]:
        found: dict[VerdictKey, Verdict] = {}
        wanted, today = list(digests), self._today()
        for start in range(0, len(wanted), _ASKED):
            lot = wanted[start : start + _ASKED]
            marks = ",".join("?" * len(lot))
            rows = file.execute(f"SELECT key, used, said FROM verdicts WHERE key IN ({marks})", lot).fetchall()  # noqa: S608 marks
            found.update({digests[key]: _decoded(said) for key, _, said in rows})
            stale = [(today, key) for key, used, _ in rows if used != today]
            if stale:
                with _transaction(file):
                    file.executemany("UPDATE verdicts SET used = ? WHERE key = ?", stale)
        return found

    def _keep(self, file: sqlite3.Connection, rows: Sequence[tuple[bytes, int, str]]) -> None:
        if self._pruned != self._today():
            self._prune(file)
        with _transaction(file):
            file.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", rows)

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _remove(self) -> None:
        self._close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")


def _digest(fingerprint: bytes, key: VerdictKey) -> bytes:
    parts = (key.policy, key.blobs.rego, key.blobs.data or "-")
    platform = (key.platform.rego, key.platform.data or "-") if key.platform else ("-", "-")
    return hashlib.sha256(fingerprint + "\n".join(("", *parts, *platform)).encode()).digest()


def _encoded(verdict: Verdict) -> str:
    """Empty for the plain verdict that nearly all are."""
    document: dict[str, object] = {}
    if verdict.errors:
        document["errors"] = [_row(error) for error in verdict.errors]
    if verdict.warnings:
        document["warnings"] = [_row(warning) for warning in verdict.warnings]
    if verdict.rego_version != 1:
        document["rego"] = verdict.rego_version
    return json.dumps(document) if document else ""


def _row(error: FileError) -> list[object]:
    return [error.file, error.message, error.line, error.column]


def _decoded(said: str) -> Verdict:
    if not said:
        return Verdict()
    document = json.loads(said)
    errors, warnings = (tuple(FileError(*row) for row in document.get(name, ())) for name in ("errors", "warnings"))
    return Verdict(errors, warnings, document.get("rego", 1))
