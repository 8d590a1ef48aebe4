"""Folders that a person names on the command line."""

from __future__ import annotations

from pathlib import Path

import click


def inside(path: str) -> str:
    """A folder inside a repository, as the setting git.path has it: ``./policies/`` is ``policies``."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not parts or ".." in parts or path.startswith("/"):
        raise click.UsageError(f"--path {path!r}: name a folder inside the repository, such as policies")
    return "/".join(parts)


def from_root(folder: Path, path: str) -> str:
    """``folder/path`` from the root of the clone around it, as Git and Git hosts name it; ``path`` where there is no
    clone."""
    start = folder.resolve()
    for each in (start, *start.parents):
        if (each / ".git").exists():
            return (start / path).relative_to(each).as_posix()
    return path
