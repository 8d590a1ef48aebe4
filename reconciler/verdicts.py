"""Verdicts that were given: in memory, and behind that in a store that outlives the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from reconciler.core.model import Verdict
from reconciler.core.verdict_ports import VerdictKey, VerdictStore

REMEMBERED: Final = 100_000
"""Verdicts in memory, the newest."""
_LOT: Final = 1000
"""Keys that are looked for at once: a few milliseconds of the event loop."""
_PLAIN: Final = {version: Verdict(rego_version=version) for version in (0, 1)}
"""Nearly all verdicts are one of these: they are shared."""


class Verdicts:
    """Looks first in memory. What is `pinned` stays there: whoever collects verdicts for one decision needs them all,
    however many they are."""

    def __init__(self, store: VerdictStore | None = None, *, remembered: int = REMEMBERED) -> None:
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
                verdict = self._pinned.get(key) or self._known.get(key)
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
        shared = _shared(verdicts)
        if pinned:
            self._pinned |= shared
        else:
            self._remember(shared)
        if self._store is not None:
            await self._store.keep({key: verdict for key, verdict in shared.items() if verdict.lasting})

    def unpin(self) -> None:
        """The decision is made: what was pinned is as forgettable as the rest."""
        pinned, self._pinned = self._pinned, {}
        self._remember(pinned)

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
