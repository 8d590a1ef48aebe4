"""Long pure work beside the event loop, so that requests and heartbeats are served meanwhile."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE: Final = 500
"""Policies that are looked through on the loop itself: a millisecond or two, less than a thread may have to wait."""
_SWITCH_SECONDS: Final = 0.0005
_GARBAGE: Final = (20_000, 10, 10)


async def aside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``work`` returns, from a thread where ``size`` policies are many. ``work`` is pure, or what it changes is
    used by nobody else until it has ended."""
    if size <= AT_ONCE:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def share_the_process() -> None:
    """Let the event loop in soon while a thread computes, and look for garbage less often; for the whole process.

    The interpreter's own 5 ms are waited for at each step of a request: reading, looking, answering. Its full garbage
    collections stop everything for 0.1 s where 10,000 policies are known, and one came with nearly every pass: few
    cycles are made here, so a larger first generation costs little memory and puts them off.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(*_GARBAGE)
