"""``regops`` without its watch of a repository on the same disk: only the webhook tells it of a push."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from reconciler.triggers import Mailbox
from regops import serving
from regops.cli import main


@contextlib.asynccontextmanager
async def _unwatched(_remote: str, _mailbox: Mailbox) -> AsyncIterator[bool]:
    yield False


setattr(serving, "watch_files", _unwatched)  # noqa: B010 it is no setting, and only this comparison wants it
main()
