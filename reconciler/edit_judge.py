"""Would an edit go live? The same verdict that the pass will give, before there is a commit.

The policy's text is not in Git yet, so the judge reads it from here; the verdict is remembered under the blob ids that
the text will have, and the pass that applies the commit finds it there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from reconciler.core.model import PLATFORM, BlobIds, Content, PolicyName, Tree, Verdict
from reconciler.validation import Judge


@dataclass(frozen=True, slots=True)
class LivePlatform:
    """The platform that is live, and whether a newer one is held back."""

    blobs: BlobIds | None
    held: bool = False


class EditJudge:
    """Judges edits with the platform that will be live beside them."""

    def __init__(self, judge: Judge, live_platform: Callable[[], Awaitable[LivePlatform]]) -> None:
        self._judge = judge
        self._live_platform = live_platform

    async def judge(self, tree: Tree, edits: Mapping[PolicyName, Content]) -> dict[PolicyName, Verdict]:
        """Each edit's verdict, as if ``tree`` had it; a platform is judged with every project that refers to it too.

        Raises `TransientError` when Git, etcd or the compiler cannot be asked.
        """
        versions = {name: content.blob_ids() for name, content in edits.items()}
        with self._judge.beside(edits.values()):
            whole = await self._judge.verdicts_in(tree, versions)
            if whole is not None:
                return whole
            if PLATFORM in versions:
                platform = await self._judge.verdict_of_platform(tree, versions[PLATFORM])
                projects = {name: blobs for name, blobs in versions.items() if name != PLATFORM}
                return {PLATFORM: platform, **await self._judge.verdicts(projects, versions[PLATFORM])}
            return await self._judge.verdicts(versions, await self._platform(tree))

    async def _platform(self, tree: Tree) -> BlobIds | None:
        """The commit's own platform, unless it is or would be held; then the live one."""
        wanted = tree.policies.get(PLATFORM)
        live = await self._live_platform()
        if wanted is None or live.held:
            return live.blobs
        if wanted == live.blobs:
            return wanted
        verdict = (await self._judge.verdicts({PLATFORM: wanted}, None))[PLATFORM]
        return wanted if verdict.valid else live.blobs
