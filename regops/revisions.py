"""Revisions of a clone as sources of their own, for as long as a command looks at them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.pair import Pair, commit_pair, incomplete
from reconciler.adapters.git.worktree import commit_folder, commit_of
from reconciler.core.errors import TransientError
from reconciler.core.model import PolicyName
from reconciler.core.ports import Source
from reconciler.settings import Settings

TestFiles = Callable[[str], Awaitable[Mapping[PolicyName, Mapping[str, bytes]]]]
"""The unit tests of a commit: by policy, by name."""


@contextlib.asynccontextmanager
async def open_snapshot(
    settings: Settings, folder: Path, *, path: str, revision: str | None
) -> AsyncIterator[tuple[Source, str]]:
    """A working tree, or a commit of the repository around it, as a source of its own; with its head."""
    async with open_tested_snapshot(settings, folder, path=path, revision=revision) as (source, newest, _):
        yield source, newest


@contextlib.asynccontextmanager
async def open_tested_snapshot(
    settings: Settings, folder: Path, *, path: str, revision: str | None
) -> AsyncIterator[tuple[Source, str, TestFiles]]:
    """The same, with its unit tests."""
    with tempfile.TemporaryDirectory(prefix="regops-check-") as scratch:
        repository = Path(scratch, "snapshot.git")
        if revision is None:
            await asyncio.to_thread(commit_folder, folder, path, repository)
        else:
            await asyncio.to_thread(commit_of, folder, revision, repository)
        async with _open_scratch(settings, Path(scratch), repository, path) as source:
            yield source, await source.fetch(), source.unit_tests


@contextlib.asynccontextmanager
async def open_pair(
    settings: Settings, folder: Path, *, path: str, base: str, head: str | None
) -> AsyncIterator[tuple[Source, Pair, TestFiles]]:
    """A change and what it goes to, as a source of its own, with the unit tests of each."""
    with tempfile.TemporaryDirectory(prefix="regops-check-") as scratch:
        repository = Path(scratch, "pair.git")
        pair = await asyncio.to_thread(commit_pair, folder, path, base, head, repository)
        async with _open_scratch(settings, Path(scratch), repository, pair.path) as source:
            try:
                await source.fetch()
            except TransientError as error:
                if pair.partial:
                    raise incomplete(str(folder), partial=True) from error
                raise
            yield source, pair, source.unit_tests


@contextlib.asynccontextmanager
async def _open_scratch(settings: Settings, scratch: Path, repository: Path, path: str) -> AsyncIterator[GitSource]:
    """A mirror of a repository that was just made, in the same folder."""
    source = GitSource(
        remote=str(repository),
        mirror=scratch / "mirror.git",
        branch="main",
        path=path,
        fetch_timeout=settings.git.fetch_timeout,
    )
    try:
        yield source
    finally:
        await source.aclose()
