"""Long pure work leaves the event loop to others."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from reconciler.aside import AT_ONCE, aside


async def test_few_policies_are_looked_through_on_the_loop_and_many_beside_it() -> None:
    here = threading.get_ident()
    assert await aside(AT_ONCE, threading.get_ident) == here
    assert await aside(AT_ONCE + 1, threading.get_ident) != here


async def test_the_loop_turns_while_many_policies_are_looked_through() -> None:
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    def work(seconds: float) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return "done"

    turning = asyncio.ensure_future(turn())
    try:
        assert await aside(AT_ONCE + 1, work, 0.3) == "done"
    finally:
        turning.cancel()
    assert turns > 10


@pytest.mark.parametrize("size", [1, AT_ONCE + 1])
async def test_what_the_work_raises_reaches_the_caller(size: int) -> None:
    with pytest.raises(ZeroDivisionError):
        await aside(size, lambda: 1 // 0)


def test_a_process_that_is_shared_waits_less_for_its_threads_and_looks_for_garbage_less_often() -> None:
    """In a process of its own: the settings are the interpreter's."""
    program = (
        "import gc, sys\nfrom reconciler.aside import share_the_process\n"
        "before = sys.getswitchinterval(), gc.get_threshold()[0]\nshare_the_process()\n"
        "print(sys.getswitchinterval() < before[0], gc.get_threshold()[0] > before[1], gc.isenabled())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", "True", "True"]
