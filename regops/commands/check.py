"""``regops check``: the validation of a pass, on a working tree or a commit, without a server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import click

from reconciler.core.live import LiveState
from reconciler.core.model import FileError, Tree
from reconciler.settings import load
from reconciler.validation import Resolution
from regops import compose
from regops.commands.errors import one_line


@click.command(
    short_help="Would these policies go live? file:line:column of each error.",
    epilog="""\b
Examples:
  regops check                       the working tree in this folder
  regops check ../policy-repo        another one
  regops check --commit HEAD~1       a commit, without checking it out
  regops check --json | jq .invalid  for a program
""",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option("--commit", metavar="REV", help="Check this commit of the repository instead of the files in the folder.")
@click.option(
    "--path",
    "path",
    default=None,
    metavar="FOLDER",
    help="Folder of the policies inside it (setting git.path: policies).",
)
@click.option("--config", type=click.Path(path_type=Path), envvar="REGOPS_CONFIG", help="Settings file.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@one_line
def check(folder: Path, commit: str | None, path: str | None, config: Path | None, *, as_json: bool) -> None:
    """Check whether policies would go live, as a sync would do it.

    Prints file:line:column for each error and exits with 1 when a policy is invalid. The same grammar, limits,
    namespace rules and compiler as in a server; needs the `opa` command (`make setup` builds it) and no server.
    """
    settings = load(config)
    path = path or settings.git.path

    async def run() -> tuple[Tree, Resolution]:
        async with (
            compose.open_snapshot(settings, folder, path=path, revision=commit) as (source, head),
            compose.open_judge(settings, source) as judge,
        ):
            tree = await source.tree(head)
            return tree, await judge.resolve(tree, LiveState())

    tree, resolution = asyncio.run(run())
    if not tree.found:
        raise click.ClickException(f"there is no folder {path!r} in {folder}. Name it with --path.")
    report = _Report(tree, resolution, path)
    click.echo(report.as_json() if as_json else report.as_text())
    if resolution.held:
        raise SystemExit(1)


class _Report:
    """What a check found, for people and programs."""

    def __init__(self, tree: Tree, resolution: Resolution, path: str) -> None:
        self._total = len(tree.policies) + sum(1 for name in tree.invalid if name not in tree.policies)
        self._held = resolution.held
        self._ignored = tree.ignored
        self._warnings = resolution.warnings
        self._path = path

    def as_text(self) -> str:
        """One line an error, then a summary."""
        errors = [self._line(error, "error") for held in self._held.values() for error in held.errors]
        warnings = [self._line(warning, "warning") for warning in self._warnings]
        ignored = [f"{self._path}/{file}: ignored: not a file that regops publishes" for file in self._ignored]
        return "\n".join([*sorted(errors), *sorted(warnings), *ignored, self._summary()])

    def as_json(self) -> str:
        """{valid, policies, invalid: [{policy, reason, errors}], warnings, ignored_files}."""
        document = {
            "valid": not self._held,
            "policies": self._total,
            "invalid": [
                {"policy": name, "reason": held.reason, "errors": [asdict(error) for error in held.errors]}
                for name, held in sorted(self._held.items())
            ],
            "warnings": [asdict(warning) for warning in self._warnings],
            "ignored_files": list(self._ignored),
        }
        return json.dumps(document, indent=2, ensure_ascii=False)

    def _line(self, error: FileError, kind: str) -> str:
        place = ":".join(str(part) for part in (error.file, error.line, error.column) if part is not None)
        return f"{self._path}/{place}: {kind}: {error.message}"

    def _summary(self) -> str:
        policies = "1 policy" if self._total == 1 else f"{self._total} policies"
        if not self._held:
            return f"{policies}, all valid"
        return f"{policies}, {len(self._held)} invalid: {', '.join(sorted(self._held))}"
