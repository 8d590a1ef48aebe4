"""Who gives a command, as etcd keeps it and the status shows it."""

from __future__ import annotations

import getpass
import socket


def who() -> str:
    """``user@host``; the host alone where the user has no name."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()
