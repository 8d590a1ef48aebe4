"""How far a long piece of work is: told by whoever does it, shown by whoever is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

log = logging.getLogger(__name__)

_QUIET: Final = 2.0
"""Seconds that work must have taken before it is worth a word, and between two lines of the log."""


class Progress:
    """One piece of work at a time. ``clock`` is in seconds."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._what = ""
        self._done = self._of = self._from = 0
        self._begun = self._logged = 0.0

    def tell(self, what: str, done: int, of: int) -> None:
        """``done`` of ``of`` policies; ``what`` is the stage in a person's words, such as ``validating``."""
        now = self._clock()
        if what != self._what or done < self._done:
            self._what, self._begun, self._from, self._logged = what, now, done, now
        self._done, self._of = done, of
        if now - self._logged >= _QUIET:
            self._logged = now
            log.info("progress", extra={"stage": what, "done": done, "of": of, "seconds_left": self.seconds_left()})

    def over(self) -> None:
        """The work has ended, one way or another."""
        self._what = ""
        self._done = 0

    def seconds_left(self) -> int | None:
        """At the pace so far; ``None`` while nothing can be said."""
        done, spent = self._done - self._from, self._clock() - self._begun
        return None if done <= 0 or spent <= 0 else round((self._of - self._done) * spent / done)

    def says(self) -> str | None:
        """A sentence, once the work has taken long enough; ``None`` while nothing is under way."""
        if not self._what or self._clock() - self._begun < _QUIET:
            return None
        left = self.seconds_left()
        hint = "" if left is None else f", about {left:,} s left"
        return f"{self._what}: {self._done:,} of {self._of:,} policies{hint}"


@dataclass(frozen=True, slots=True)
class Works:
    """The long pieces of work of a leader: of a pass, and beside the passes."""

    passes: Progress = field(default_factory=Progress)
    beside: Progress = field(default_factory=Progress)
