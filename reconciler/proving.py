"""What a platform that waits must be known to break: found beside the passes, so that other changes go on meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from reconciler.core.errors import RegopsError
from reconciler.metrics import LoopMetrics
from reconciler.progress import Progress
from reconciler.reconcile import PassResult
from reconciler.resolution import Pending

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


class Proving(Protocol):
    """The judge, as far as this knows it: see `reconciler.validation.Judge`."""

    async def prove(
        self, pending: Pending, *, wanted: Callable[[], bool] = ..., progress: Progress | None = None
    ) -> None:
        """Find the verdicts that are missing."""
        ...

    def unpin(self) -> None:
        """Nothing waits any more."""
        ...


class Prover:
    """Watches passes by `saw`; while a platform waits, `run` finds its verdicts and then calls ``proven``."""

    def __init__(self, judge: Proving, proven: Callable[[], None], *, progress: Progress, metrics: LoopMetrics) -> None:
        self._judge = judge
        self._proven = proven
        self._progress = progress
        self._metrics = metrics
        self._pending: Pending | None = None
        self._changed = asyncio.Event()

    def saw(self, result: PassResult) -> None:
        """A pass has ended. Neither waits nor raises."""
        pending = result.resolution.pending
        if self._pending is not None and (pending is None or pending.platform != self._pending.platform):
            self._judge.unpin()
        if pending != self._pending:
            self._pending = pending
            self._changed.set()
        self._metrics.platform_pending.set(len(pending.versions) if pending else 0)

    async def run(self) -> NoReturn:
        """While this replica leads; what waited under an earlier lead is told anew by its first pass."""
        self._pending = None
        pause = _RETRY_SECONDS
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._pending is None or await self._prove(self._pending):
                pause = _RETRY_SECONDS
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._changed.set()

    async def _prove(self, pending: Pending) -> bool:
        """One platform; given up when another one, or none, waits. Whether it need not be tried again."""
        log.info("platform waits for its projects", extra={"projects": pending.of, "unknown": len(pending.versions)})
        try:
            await self._judge.prove(pending, wanted=lambda: self._pending is pending, progress=self._progress)
        except RegopsError as error:
            log.warning("platform not validated yet", extra={"reason": error.reason, "error": str(error)})
            return False
        except Exception:  # a defect here must not end the process that applies policies
            log.exception("validating a platform failed unexpectedly")
            return False
        finally:
            self._progress.over()
        if self._pending is pending:
            self._proven()
        return True
