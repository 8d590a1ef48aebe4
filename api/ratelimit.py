"""Bounds of the write path: how many writes at once, and how many of one caller."""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final

from api.problems import ProblemError

CALLERS: Final = 10_000
"""Callers that are remembered; the one not seen for longest is forgotten first, with a full bucket."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Gate:
    """A token bucket for each caller, and a bound on writes under way."""

    def __init__(self, concurrent: int, rate: float, burst: int, *, clock: Callable[[], float] = monotonic) -> None:
        """``rate`` is writes per second of one caller, ``burst`` how many it may save up."""
        self._concurrent = concurrent
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._under_way = 0

    @contextlib.contextmanager
    def enter(self, caller: str) -> Iterator[None]:
        """While open, one more write is under way. Raises 429 or 503, both with ``Retry-After``."""
        if self._under_way >= self._concurrent:
            raise ProblemError(
                503,
                "unavailable",
                f"{self._concurrent} writes are under way in this replica",
                headers={"Retry-After": "1"},
            )
        self._spend(caller)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _spend(self, caller: str) -> None:
        now = self._clock()
        bucket = self._buckets.pop(caller, None) or _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        self._buckets[caller] = bucket
        if len(self._buckets) > CALLERS:
            self._buckets.popitem(last=False)
        if bucket.tokens < 1:
            wait = max(1, math.ceil((1 - bucket.tokens) / self._rate))
            message = f"this caller writes more than {self._rate:g} times a second"
            raise ProblemError(429, "too_many_requests", message, headers={"Retry-After": str(wait)})
        bucket.tokens -= 1
