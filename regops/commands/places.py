"""Folders that a person names on the command line."""

from __future__ import annotations

import click


def inside(path: str) -> str:
    """A folder inside a repository, as the setting git.path has it: ``./policies/`` is ``policies``."""
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not parts or ".." in parts or path.startswith("/"):
        raise click.UsageError(f"--path {path!r}: name a folder inside the repository, such as policies")
    return "/".join(parts)
