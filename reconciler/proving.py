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
        if pending is None and self._pending is not None:
            self._judge.unpin()
        if pending != self._pending:
            self._pending = pending
            self._changed.set()
        self._metrics.platform_pending.set(len(pending.versions) if pending else 0)

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._pending is not None:
                await self._prove(self._pending)

    async def _prove(self, pending: Pending) -> None:
        """One platform; given up when another one, or none, waits."""
        log.info("platform waits for its projects", extra={"projects": pending.of, "unknown": len(pending.versions)})
        try:
            await self._judge.prove(pending, wanted=lambda: self._pending is pending, progress=self._progress)
        except RegopsError as error:
            log.warning("platform not validated yet", extra={"reason": error.reason, "error": str(error)})
            await asyncio.sleep(_RETRY_SECONDS)
            self._changed.set()
        else:
            if self._pending is pending:
                self._proven()
        finally:
            self._progress.over()
