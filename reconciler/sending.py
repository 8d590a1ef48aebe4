"""Pushing until it is known what became of it, and what is known of the remote's head."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from time import monotonic
from typing import Final, Protocol

from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.ports import Branch, PushResult, Source
from reconciler.edits import Write

JITTER: Final = 0.05
"""Seconds that somebody who was overtaken waits at most before the next attempt."""


class WriterObserver(Protocol):
    """Told what happens, for metrics and for the audit journal."""

    def pushed(self, result: str, writes: int, seconds: float) -> None:
        """A push has ended. ``result`` is a `PushResult` or ``failed``."""

    def committed(self, commits: int) -> None:
        """The remote has so many more commits."""

    async def intends(self, commits: Mapping[str, Write]) -> None:
        """These commits are about to be sent; whatever happens now, they may arrive."""


class Lookout:
    """Since when the head at hand is known to be the remote's.

    ``seen`` (monotonic seconds): the head that the mirror has was the remote's at some moment after it. ``doubted``: it
    may be an old one, so that it must be fetched before anything is said.
    """

    def __init__(self, source: Source, patience: float) -> None:
        self.seen = -float("inf")
        self.doubted = False
        self._source = source
        self._patience = patience

    async def fetch(self) -> str:
        """The remote's head, within the patience. Raises `TransientError` and what `Source.fetch` raises."""
        started = monotonic()
        try:
            async with asyncio.timeout(self._patience):
                head = await self._source.fetch()
        except TimeoutError as error:
            raise TransientError(
                f"the Git remote did not answer within {self._patience:g} s", reason="FetchTimeout"
            ) from error
        self.seen = max(self.seen, started)
        self.doubted = False
        return head


class Sender:
    """Pushes, and finds out what became of a push that was not answered."""

    def __init__(
        self, source: Source, branch: Branch, lookout: Lookout, observer: WriterObserver, patience: float
    ) -> None:
        self._source = source
        self._branch = branch
        self._lookout = lookout
        self._observer = observer
        self._patience = patience

    async def push(self, base: str, tip: str, writes: int) -> tuple[PushResult, str]:
        """Push until it is known what became of it, or patience ends; with the remote's words.

        Sending the same commits for the same base again is safe: whichever arrives first wins, and the other one finds
        the tip there already. Once the branch has left the base without the tip, the push can never succeed any more.
        That a later copy was declined says nothing about the first. Raises what surely kept it from being sent.
        """
        deadline = monotonic() + self._patience
        uncertain = False
        while True:
            started = monotonic()
            try:
                push = await self._branch.push(base, tip)
            except RegopsError:
                self._observer.pushed("failed", writes, monotonic() - started)
                if not uncertain:
                    raise
            else:
                self._observer.pushed(push.result, writes, monotonic() - started)
                if push.result is PushResult.ACCEPTED:
                    self._lookout.seen = started
                result = push.result
                # Also for the first copy: curl sends a request twice when a connection breaks that it had used before,
                # and the second one finds the branch moved by the first.
                if result is PushResult.MOVED or (uncertain and result is PushResult.DECLINED):
                    result = await self._landed(base, tip, uncertain=uncertain)
                if result is not PushResult.UNKNOWN:
                    return result, push.message
            uncertain = True
            if monotonic() >= deadline:
                return PushResult.UNKNOWN, ""
            await asyncio.sleep(random.uniform(JITTER, 5 * JITTER))  # noqa: S311 jitter is no secret

    async def _landed(self, base: str, tip: str, *, uncertain: bool) -> PushResult:
        """Where the branch is after a refused push: did it go by way of our commits, or elsewhere? While it is where
        it was, an earlier copy that is ``uncertain`` may still arrive. Raises `StalledError` when it is gone."""
        try:
            head = await self._lookout.fetch()
        except StalledError:
            if uncertain:
                return PushResult.UNKNOWN
            raise
        except RegopsError:
            return PushResult.UNKNOWN
        if await self._source.contains(head, tip):
            return PushResult.ACCEPTED
        return PushResult.UNKNOWN if uncertain and head == base else PushResult.MOVED
