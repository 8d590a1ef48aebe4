"""What every long-running process has: an end by signal, and metrics about itself."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
from collections.abc import Coroutine
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from reconciler.aside import share_the_process

_M_ARENA_MAX: Final = -8
"""See mallopt(3)."""
_ARENAS: Final = 2


async def until_signalled(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` until it ends or SIGTERM or SIGINT comes; the end is a cancellation, so that everything closes."""
    share_the_process()
    _share_the_memory()
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _share_the_memory() -> None:
    """Few arenas for many threads: what one thread frees another uses. Of glibc; elsewhere there is nothing to set."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def process_registry() -> CollectorRegistry:
    """A registry with the metrics of this process and of its interpreter."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
