"""The newest value of something, for any number of waiting consumers: who is late sees only the last one."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Pulse:
    """Wakes everyone who waits, once per beat."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Wake all who are waiting now."""
        beaten, self._next = self._next, asyncio.Event()
        beaten.set()

    async def wait(self) -> None:
        """Until the next beat. What is checked before this call, without an ``await`` between, cannot be missed."""
        await self._next.wait()


class Latest(Generic[T]):
    """A value that is replaced as a whole; values are compared by identity."""

    def __init__(self, value: T | None = None) -> None:
        self.value = value
        self._pulse = Pulse()

    def set(self, value: T) -> None:
        """Replace the value and wake the waiting."""
        self.value = value
        self._pulse.beat()

    async def wait_newer(self, than: T | None) -> T:
        """The value as soon as it is another one than ``than`` (and not ``None``). Has no deadline of its own."""
        while self.value is None or self.value is than:
            await self._pulse.wait()
        return self.value
