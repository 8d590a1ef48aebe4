"""Verdicts of versions, from memory or from the compiler; the texts come from Git, or from an edit that is in no commit
yet. Decides nothing about what goes live: see `reconciler.validation`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from reconciler.core.model import (
    DATA_FILE,
    PLATFORM,
    REGO_FILE,
    BlobIds,
    Content,
    FileError,
    PolicyName,
    Verdict,
)
from reconciler.core.ports import Candidate, Compiler, Source
from reconciler.core.verdict_ports import VerdictKey
from reconciler.progress import Progress
from reconciler.verdicts import Verdicts

CHUNK: Final = 100
"""Policies that are read and compiled at once: bounds memory, and is the step of the progress."""
_MENTIONS: Final = 250_000
"""Texts of which it is remembered whether they name the platform."""
_READ_BYTES: Final = 8 * 2**20


class Assessor:
    """Finds verdicts, in steps, and remembers them by (policy, its blobs, the platform's blobs)."""

    def __init__(
        self,
        source: Source,
        compiler: Compiler,
        *,
        max_rego_bytes: int,
        max_data_bytes: int,
        verdicts: Verdicts,
        progress: Progress,
    ) -> None:
        self._source = source
        self._compiler = compiler
        self._limits = {REGO_FILE: max_rego_bytes, DATA_FILE: max_data_bytes}
        self._verdicts = verdicts
        self._progress = progress
        self._set: tuple[Mapping[PolicyName, BlobIds], Mapping[PolicyName, Verdict]] = ({}, {})
        self._mentions: dict[str, bool] = {}
        self._beside: Counter[BlobIds] = Counter()
        self._texts: dict[BlobIds, Content] = {}

    async def check(self) -> None:
        """Raise what hinders the compiler."""
        await self._compiler.check()

    @contextlib.contextmanager
    def beside(self, contents: Iterable[Content]) -> Iterator[None]:
        """While open, these texts can be judged by their blob ids although Git does not have them."""
        texts = {content.blob_ids(): content for content in contents}
        self._texts |= texts
        self._beside.update(texts.keys())
        try:
            yield
        finally:
            self._beside.subtract(texts.keys())
            for blobs in texts:
                if not self._beside[blobs]:
                    del self._beside[blobs], self._texts[blobs]

    async def unknown(
        self, versions: Mapping[PolicyName, BlobIds], platform: BlobIds | None
    ) -> dict[PolicyName, BlobIds]:
        """The versions whose verdict with that platform is not known yet."""
        keys = {name: VerdictKey(name, blobs, platform) for name, blobs in versions.items()}
        known = await self._verdicts.find(list(keys.values()))
        return {name: blobs for name, blobs in versions.items() if keys[name] not in known}

    async def judge(
        self,
        versions: Mapping[PolicyName, BlobIds],
        platform: BlobIds | None,
        *,
        pinned: bool = False,
        quiet: bool = False,
    ) -> dict[PolicyName, Verdict]:
        """A verdict for each version with that platform, from memory where there is one. ``quiet``: it is no work of a
        pass, and tells no progress."""
        keys = {name: VerdictKey(name, blobs, platform) for name, blobs in versions.items()}
        known = await self._verdicts.find(list(keys.values()))
        verdicts = {name: known[key] for name, key in keys.items() if key in known}
        asked = [name for name in versions if name not in verdicts]
        beside = None
        if asked and platform is not None:
            beside = Candidate(PLATFORM, await self._read(platform))
        with self._counted(0 if quiet else len(asked)) as tell:
            done = 0
            while done < len(asked):
                tell(done)
                found = await self._compile(asked[done : done + CHUNK], versions, beside)
                await self._verdicts.keep({keys[name]: verdict for name, verdict in found.items()}, pinned=pinned)
                verdicts |= found
                done += len(found)
        return verdicts

    @contextlib.contextmanager
    def _counted(self, of: int) -> Iterator[Callable[[int], None]]:
        """Tell the progress of what takes several steps."""
        if of <= CHUNK:
            yield lambda _: None
            return
        try:
            yield lambda done: self._progress.tell("validating", done, of)
        finally:
            self._progress.over()

    async def _compile(
        self, names: Sequence[PolicyName], versions: Mapping[PolicyName, BlobIds], platform: Candidate | None
    ) -> dict[PolicyName, Verdict]:
        """The verdicts of the first of these, as many as are read at once."""
        verdicts: dict[PolicyName, Verdict] = {}
        candidates = []
        for name, content in (await self._contents(names, versions)).items():
            sizes = await self._source.sizes(versions[name]) if content is None else _sizes(content)
            if errors := self._oversized(name, sizes):
                verdicts[name] = Verdict(errors)
            else:
                candidates.append(Candidate(name, content or await self._read(versions[name])))
        if candidates:
            verdicts.update(await self._compiler.validate(candidates, platform))
        return verdicts

    async def _contents(
        self, names: Sequence[PolicyName], versions: Mapping[PolicyName, BlobIds]
    ) -> dict[PolicyName, Content | None]:
        """The texts of the first of these, up to `_READ_BYTES` of them; ``None`` for what is too large to be read."""
        own = [self._texts.get(versions[name]) for name in names]
        wanted = [None if text else versions[name] for name, text in zip(names, own, strict=True)]
        found: Sequence[Content | None] = [None] * len(names)
        if any(wanted):
            found = await self._source.contents(wanted, limit=sum(self._limits.values()), budget=_READ_BYTES)
        return {name: text or read for name, text, read in zip(names, own, found, strict=False)}

    def _oversized(self, policy: PolicyName, sizes: tuple[int, int]) -> tuple[FileError, ...]:
        return tuple(
            FileError(f"{policy}/{file}", f"is {size} bytes; the limit is {self._limits[file]}: make it smaller")
            for file, size in zip((REGO_FILE, DATA_FILE), sizes, strict=True)
            if size > self._limits[file]
        )

    async def _read(self, blobs: BlobIds) -> Content:
        return self._texts.get(blobs) or await self._source.read(blobs)

    async def mentioning(self, versions: Mapping[PolicyName, BlobIds]) -> set[PolicyName]:
        """Those whose Rego text could refer to the platform: without the word (or an escape) it cannot."""
        asked = dict.fromkeys(blobs.rego for blobs in versions.values())
        known = {rego: self._mentions[rego] for rego in asked if rego in self._mentions}
        unread = [rego for rego in asked if rego not in known]
        while unread:
            limit = self._limits[REGO_FILE]
            texts = await self._source.contents([BlobIds(rego) for rego in unread], limit=limit, budget=_READ_BYTES)
            for rego, text in zip(unread, texts, strict=False):
                known[rego] = text is None or b"platform" in text.rego or b"\\u" in text.rego
            unread = unread[len(texts) :]
        self._mentions |= known
        if len(self._mentions) > _MENTIONS:  # most of it was said of versions that are no more
            self._mentions = known
        return {name for name, blobs in versions.items() if known[blobs.rego]}

    async def together(self, versions: Mapping[PolicyName, BlobIds]) -> Mapping[PolicyName, Verdict]:
        """The verdicts of one set; the last set is remembered."""
        if self._set[0] != (versions := dict(versions)):
            verdicts: dict[PolicyName, Verdict] = {}
            candidates = []
            for name, blobs in versions.items():
                text = self._texts.get(blobs)
                if errors := self._oversized(name, _sizes(text) if text else await self._source.sizes(blobs)):
                    verdicts[name] = Verdict(errors)
                else:
                    candidates.append(Candidate(name, text or await self._read(blobs)))
            verdicts.update(await self._compiler.together(candidates))
            self._set = (versions, verdicts)
        return self._set[1]

    def unpin(self) -> None:
        """What was pinned may be forgotten."""
        self._verdicts.unpin()


def _sizes(content: Content) -> tuple[int, int]:
    return len(content.rego), len(content.data or b"")
