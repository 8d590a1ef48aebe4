"""How the leader learns of a push that another replica has seen: by its mailbox, or by a key that it watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from reconciler.agent.mirror import Backoff
from reconciler.core.errors import RegopsError
from reconciler.core.ports import KeyValueStore, Put, Transaction
from reconciler.triggers import HOOKED, Kind, Mailbox

log = logging.getLogger(__name__)


class Told:
    """Tells the leader of accepted pushes and of webhooks: in this process by its mailbox, elsewhere by ``key``.

    What was taken is passed on, however long etcd is away: a host does not send a hook twice, and while hooks come the
    leader hardly polls.
    """

    def __init__(self, store: KeyValueStore, key: str, mailbox: Mailbox, *, leads: Callable[[], bool]) -> None:
        self._store = store
        self._key = key
        self._mailbox = mailbox
        self._leads = leads
        self._word: bytes | None = None
        """What waits to be written: one word, since all of them say *look*."""
        self._filled = asyncio.Event()

    def pushed(self, commit: str) -> None:
        """Called with each new head."""
        if self._leads():
            self._mailbox.put(Kind.API)
        elif self._word is None or not self._word.startswith(HOOKED):  # a hook says as much, and has a trace
            self._wait(commit.encode())

    def hooked(self, trace: str | None) -> None:
        """Called with each webhook."""
        if self._leads():
            self._mailbox.put(Kind.HOOK, trace)
        elif trace is not None:
            self._wait(b"%b %b" % (HOOKED, trace.encode()))
        elif self._word is None or not self._word.startswith(HOOKED):
            self._wait(HOOKED)

    def _wait(self, word: bytes) -> None:
        self._word = word
        self._filled.set()

    async def run(self) -> NoReturn:
        """Pass on what waits, until cancelled; what etcd does not take is tried again until it does. A word that is
        written twice makes the leader look twice."""
        backoff = Backoff()
        while True:
            await self._filled.wait()
            word = self._word
            if word is None:
                self._filled.clear()
                continue
            try:
                await self._store.commit(Transaction((), (Put(self._key, word),)))
            except RegopsError as error:
                log.warning("leader not told of a push yet", extra={"reason": error.reason})
                await backoff.sleep()
            else:
                backoff.reset()
                if self._word is word:
                    self._word = None
