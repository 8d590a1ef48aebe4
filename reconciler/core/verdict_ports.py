"""What outlives a process of what the compiler has said: see `reconciler.verdicts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from reconciler.core.model import BlobIds, PolicyName, Verdict


@dataclass(frozen=True, slots=True)
class VerdictKey:
    """What a verdict was given for: a policy's version beside a platform's (``None`` where there was none).

    A store adds what else a verdict depends on, the same for a whole process: settings, OPA's version, our own rules.
    """

    policy: PolicyName
    blobs: BlobIds
    platform: BlobIds | None


class VerdictStore(Protocol):
    """Verdicts that are kept beyond a restart. A loss costs the work of finding them again and nothing else, so no
    method raises for a store that is broken, full or gone: it has nothing then."""

    async def find(self, keys: Sequence[VerdictKey]) -> Mapping[VerdictKey, Verdict]:
        """Those of the keys' verdicts that are known."""
        ...

    async def keep(self, verdicts: Mapping[VerdictKey, Verdict]) -> None:
        """Remember these; the same again is no error."""
        ...
