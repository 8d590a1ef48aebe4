"""What commands write into etcd about themselves: who said it, and when."""

from __future__ import annotations

import getpass
import socket
from datetime import UTC, datetime


def who() -> str:
    """``user@host``, for those who look at the status later."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()


def now() -> str:
    """RFC 3339, UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
