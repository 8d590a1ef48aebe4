"""Verdicts that were given: in memory, and behind that in a store that outlives the process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Final

from reconciler.core.model import Verdict
from reconciler.core.verdict_ports import VerdictKey, VerdictStore

REMEMBERED: Final = 100_000
"""Verdicts in memory, the newest."""
FLEETING_SECONDS: Final = 300.0
"""How long it is remembered that something took too long."""
_LOT: Final = 1000
"""Keys that are looked for at once: a few milliseconds of the event loop."""
_PLAIN: Final = {version: Verdict(rego_version=version) for version in (0, 1)}
"""Nearly all verdicts are one of these: they are shared."""


class Verdicts:
    """Looks first in memory. What is `pinned` stays there: whoever collects verdicts for one decision needs them all,
    however many they are."""

    def __init__(
        self,
        store: VerdictStore | None = None,
        *,
        remembered: int = REMEMBERED,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._fleeting: dict[VerdictKey, tuple[float, Verdict]] = {}
        self._store = store
        self._most = remembered
        self._known: dict[VerdictKey, Verdict] = {}
        self._pinned: dict[VerdictKey, Verdict] = {}

    async def find(self, keys: Sequence[VerdictKey]) -> dict[VerdictKey, Verdict]:
        """The verdicts that are known."""
        found: dict[VerdictKey, Verdict] = {}
        for lot in _lots(keys):
            missing = []
            for key in lot:
                verdict = self._pinned.get(key) or self._known.get(key) or self._lately(key)
                if verdict is None:
                    missing.append(key)
                else:
                    found[key] = verdict
            if missing and self._store is not None:
                kept = _shared(await self._store.find(missing))
                self._remember(kept)
                found |= kept
            elif len(keys) > _LOT:
                await asyncio.sleep(0)
        return found

    async def keep(self, verdicts: Mapping[VerdictKey, Verdict], *, pinned: bool = False) -> None:
        """Remember these."""
        shared = _shared({key: verdict for key, verdict in verdicts.items() if verdict.lasting})
        until = self._clock() + FLEETING_SECONDS
        self._fleeting = {key: kept for key, kept in self._fleeting.items() if kept[0] > self._clock()}
        self._fleeting |= {key: (until, verdict) for key, verdict in verdicts.items() if not verdict.lasting}
        if pinned:
            self._pinned |= shared
        else:
            self._remember(shared)
        if self._store is not None:
            await self._store.keep(shared)

    def unpin(self) -> None:
        """The decision is made: what was pinned is as forgettable as the rest."""
        pinned, self._pinned = self._pinned, {}
        self._remember(pinned)

    def _lately(self, key: VerdictKey) -> Verdict | None:
        until, verdict = self._fleeting.get(key, (0.0, None))
        return verdict if until > self._clock() else None

    def _remember(self, verdicts: Mapping[VerdictKey, Verdict]) -> None:
        self._known |= verdicts
        if len(self._known) > self._most:
            for key in list(islice(self._known, len(self._known) - self._most)):
                del self._known[key]


def _shared(verdicts: Mapping[VerdictKey, Verdict]) -> dict[VerdictKey, Verdict]:
    return {key: _PLAIN[found.rego_version] if _plain(found) else found for key, found in verdicts.items()}


def _plain(verdict: Verdict) -> bool:
    return not (verdict.errors or verdict.warnings) and verdict.rego_version in _PLAIN


def _lots(keys: Sequence[VerdictKey]) -> Iterator[Sequence[VerdictKey]]:
    return (keys[start : start + _LOT] for start in range(0, len(keys), _LOT))
