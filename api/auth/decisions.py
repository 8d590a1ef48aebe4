"""The platform's word on a read, remembered for a moment, so that many equal requests are one question.

What is remembered is used for requests that arrive within ``life`` seconds of the moment when it was asked for, and
only while the platform's policy in this replica's mirror is the one that it was then. So what OPA has come to decide
otherwise counts after ``life`` at the latest, a failure is never remembered, and nothing is used while nobody knows
what is live.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any, Final, Protocol

MOST: Final = 4096
"""Decisions that are remembered at once. When there are more, all are forgotten: none would live long."""

Key = tuple[bytes, str, tuple[str, ...]]
"""Digest of the token (and so of every claim), method, path: all that a question consists of."""


class Asked(Protocol):
    """Who speaks for the platform's policy; see `Narrowing`."""

    async def allow(self, question: Mapping[str, Any]) -> bool | None:
        """``False`` refuses; ``True`` and ``None`` change nothing. Raises `TransientError` when nobody can say."""
        ...


class Unknown(Enum):
    """No decision is at hand."""

    UNKNOWN = 0


UNKNOWN: Final = Unknown.UNKNOWN


@dataclass(frozen=True, slots=True)
class _Question:
    """One that was put at ``at``, while the platform's version was ``version``."""

    at: float
    version: str
    answer: asyncio.Task[bool | None]


class Decisions:
    """What was decided within the last ``life`` seconds; 0 remembers nothing.

    ``version`` names the platform's policy as this replica knows it, ``None`` while it does not.
    """

    def __init__(
        self,
        asked: Asked,
        *,
        life: float,
        version: Callable[[], str | None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._asked = asked
        self._life = life
        self._version = version
        self._clock = clock
        self._questions: dict[Key, _Question] = {}
        self._running: set[asyncio.Task[bool | None]] = set()

    def known(self, key: Key) -> bool | Unknown | None:
        """The decision where it is at hand."""
        found = self._questions.get(key)
        if found is None or not found.answer.done() or not self._counts(found):
            return UNKNOWN
        return found.answer.result()

    async def ask(self, key: Key, question: Mapping[str, Any]) -> bool | None:
        """The decision; equal questions that are put at the same time are one. Raises what `Asked.allow` raises."""
        version = self._version()
        if not key[0] or version is None or not self._life:
            return await self._asked.allow(question)
        found = self._questions.get(key)
        if found is None or not self._counts(found):
            found = _Question(self._clock(), version, self._put(key, question))
            if len(self._questions) >= MOST:
                self._questions.clear()
            self._questions[key] = found
        # Whoever goes away takes nothing from the others that wait for the same answer.
        return await asyncio.shield(found.answer)

    async def aclose(self) -> None:
        """End the questions that nobody waits for any more."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _counts(self, question: _Question) -> bool:
        return self._clock() - question.at < self._life and question.version == self._version()

    def _put(self, key: Key, question: Mapping[str, Any]) -> asyncio.Task[bool | None]:
        async def put() -> bool | None:
            return await self._asked.allow(question)

        def over(task: asyncio.Task[bool | None]) -> None:
            self._running.discard(task)
            failed = task.cancelled() or task.exception() is not None
            if failed and (found := self._questions.get(key)) and found.answer is task:
                del self._questions[key]

        task = asyncio.create_task(put())
        self._running.add(task)
        task.add_done_callback(over)
        return task


@contextlib.asynccontextmanager
async def open_decisions(asked: Asked, life: float, version: Callable[[], str | None]) -> AsyncIterator[Decisions]:
    """Until the block ends."""
    decisions = Decisions(asked, life=life, version=version)
    try:
        yield decisions
    finally:
        await decisions.aclose()
