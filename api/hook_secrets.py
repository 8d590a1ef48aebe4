"""What webhooks are signed with: a file of secrets, that may change while the server runs."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from reconciler.core.errors import StalledError

log = logging.getLogger(__name__)

SHORTEST: Final = 16
"""Characters of a secret; bytes of a signing token's key."""
SIGNING: Final = b"whsec_"
"""How a signing token begins (standardwebhooks.com); base64 of the key follows."""

_Mark = tuple[int, int, int]
_GONE: Final = (0, 0, 0)


class Secrets:
    """One in a line of a file, that is read again when it changes.

    A file that is emptied, cut or lost while the server runs changes nothing: what was read last goes on counting, and
    ``unusable`` is called, once for each such state of the file. To turn hooks off, take the setting away.
    """

    def __init__(self, file: Path | None, *, unusable: Callable[[], None] = lambda: None) -> None:
        """Raises `StalledError` for a file without a usable secret."""
        self._file = file
        self._unusable = unusable
        self._mark = _mark(file) if file else _GONE
        self._told: _Mark | None = None
        self._secrets = _secrets(file) if file else ()

    def now(self) -> Sequence[bytes]:
        """Those that count; none where hooks are not set up. Never raises."""
        if self._file is None:
            return ()
        mark = _mark(self._file)
        if mark != self._mark:
            try:
                self._secrets = _secrets(self._file)
                self._mark = mark
            except StalledError as error:
                self._tell(mark, error)
        return self._secrets

    def _tell(self, mark: _Mark, error: StalledError) -> None:
        if mark == self._told:
            return
        self._told = mark
        self._unusable()
        log.warning("hook secrets kept as they were", extra={"reason": error.reason, "error": str(error)})


def key_in(secret: bytes) -> bytes | None:
    """The key of a signing token; ``None`` for any other secret."""
    if not secret.startswith(SIGNING):
        return None
    try:
        return base64.b64decode(secret.removeprefix(SIGNING), validate=True)
    except binascii.Error:
        return b""


def _mark(file: Path) -> _Mark:
    """What tells one state of the file from another."""
    try:
        found = file.stat()
    except OSError:
        return _GONE
    return found.st_mtime_ns, found.st_size, found.st_ino


def _secrets(file: Path) -> Sequence[bytes]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, "cannot be read") from error
    found = [line.strip().encode() for line in text.splitlines() if line.strip()]
    if not found:
        raise _unusable(file, "has no secret in it")
    if any(len(each) < SHORTEST for each in found):
        raise _unusable(file, f"has a secret of less than {SHORTEST} characters")
    if any((key := key_in(each)) is not None and len(key) < SHORTEST for each in found):
        raise _unusable(file, f"has a signing token that is not whsec_ and base64 of {SHORTEST} bytes or more")
    return found


def _unusable(file: Path, why: str) -> StalledError:
    return StalledError(
        f"hooks.secrets_file {file} {why}",
        reason="InvalidSettings",
        remedy=f"Write one secret of {SHORTEST} characters or more in each line, such as `openssl rand -hex 32` makes.",
    )
