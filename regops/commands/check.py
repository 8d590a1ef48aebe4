"""``regops check``: the validation of a pass, on files or a commit, without a server; and the review of a change."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from reconciler.core.errors import StalledError
from reconciler.core.live import LiveState
from reconciler.core.model import FileError, Tree
from reconciler.resolution import Resolution
from reconciler.settings import Settings, load
from regops import compose
from regops.checking.document import as_json as as_json_text
from regops.checking.findings import Review
from regops.checking.github import as_annotations
from regops.checking.markdown import as_markdown
from regops.checking.running import Wanted, review
from regops.checking.text import as_text
from regops.commands.errors import no_verdict
from regops.commands.places import from_root, inside
from regops.revisions import open_snapshot


@click.command(
    epilog="""\b
Examples:
  regops check                       the working tree in this folder
  regops check ../policy-repo        another one
  regops check --commit HEAD~1       a commit, without checking it out
  regops check --json | jq .invalid  for a program
\b
A pull request, or any two revisions:
  regops check --base origin/main                       the files, since they left origin/main
  regops check --base v1 --head v2 --min-coverage 80
  regops check --base origin/main --replay decisions.ndjson
  regops check --base origin/main --output github --output markdown=comment.md
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
@click.option("--base", metavar="REV", help="Show what changed since this revision was left; judge the merge with it.")
@click.option("--head", metavar="REV", help="With --base: the other revision.  [default: the files in the folder]")
@click.option("--no-tests", is_flag=True, help="With --base: leave the Rego unit tests out.")
@click.option("--min-coverage", type=click.FloatRange(0, 100), metavar="PERCENT", help="With --base: of what changes.")
@click.option(
    "--replay",
    multiple=True,
    metavar="FILE",
    help="With --base: a decision log of OPA; which recorded decisions would change? - is standard input.",
)
@click.option("--replay-limit", type=click.IntRange(1), metavar="N", help="Replay the first N decisions only.")
@click.option("--examples", type=click.IntRange(0, 100), default=3, show_default=True, help="Shown of each rule.")
@click.option(
    "--output",
    "outputs",
    multiple=True,
    metavar="FORMAT[=FILE]",
    help="With --base: text, github (annotations), markdown (a comment) or json; may be repeated.  [default: text]",
)
@click.option("--config", type=click.Path(path_type=Path), envvar="REGOPS_CONFIG", help="Settings file.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
@no_verdict
def check(
    folder: Path,
    commit: str | None,
    path: str | None,
    config: Path | None,
    base: str | None,
    head: str | None,
    min_coverage: float | None,
    replay: tuple[str, ...],
    replay_limit: int | None,
    examples: int,
    outputs: tuple[str, ...],
    *,
    no_tests: bool,
    as_json: bool,
) -> None:
    """Check whether policies would go live, as a sync would do it.

    Prints file:line:column for each error and exits with 1 when a policy is invalid. The same grammar, limits,
    namespace rules and compiler as in a server; needs the `opa` command (`make setup` builds it) and no server.

    With --base it reviews a change: what it creates, updates and deletes, what it would break elsewhere once it is
    merged, whether the Rego unit tests pass and what they cover, and with --replay which recorded decisions flip. What
    is invalid or fails without the change too is a warning, and so is a deletion that the guard would block; exit code
    1 means that the change brings an error, that a test fails by it or covers too little.

    Exit code 2 says that there is no verdict: wrong usage, no such revision, a decision log that cannot be read.
    """
    settings = load(config)
    path = inside(path) if path is not None else settings.git.path
    if base is not None:
        if commit is not None:
            raise click.UsageError("--commit is for a check without --base: name the revision with --head")
        wanted = Wanted(
            folder=folder,
            path=path,
            base=base,
            head=head,
            tests=not no_tests,
            min_coverage=min_coverage,
            replay=replay,
            replay_limit=replay_limit,
            examples=examples,
        )
        _review(settings, wanted, (*outputs, *(["json"] if as_json else [])))
        return
    if head or replay or outputs or no_tests or min_coverage is not None:
        raise click.UsageError("--head, --replay, --output, --no-tests and --min-coverage need --base")

    async def run() -> tuple[Tree, Resolution]:
        async with (
            open_snapshot(settings, folder, path=path, revision=commit) as (source, newest),
            compose.open_judge(settings, source) as judge,
        ):
            tree = await source.tree(newest)
            return tree, await judge.resolve(tree, LiveState())

    tree, resolution = asyncio.run(run())
    if not tree.found:
        raise StalledError(f"there is no folder {path!r} in {folder}", remedy="Name it with --path.")
    report = _Report(tree, resolution, path if commit else from_root(folder, path))
    click.echo(report.as_json() if as_json else report.as_text())
    if resolution.held:
        raise SystemExit(1)


def _review(settings: Settings, wanted: Wanted, outputs: tuple[str, ...]) -> None:
    """A review in each form that is asked for; progress of what takes long on standard error."""
    forms = [_form(text) for text in outputs or ("text",)]
    shows = sys.stderr.isatty()

    def say(text: str) -> None:
        if shows:
            click.echo(f"{text} …", err=True)

    told = 0

    def tick(done: int) -> None:
        nonlocal told
        if done - told >= _EVERY:
            told = done
            click.echo(f"{done} decisions replayed", err=True)

    found = asyncio.run(review(settings, wanted, say, tick))
    for render, file in forms:
        text = render(found)
        if file is None:
            click.echo(text)
        else:
            try:
                file.write_text(f"{text}\n", encoding="utf-8")
            except OSError as error:
                raise StalledError(f"{file} cannot be written: {error.strerror}") from error
    if not found.passed:
        raise SystemExit(1)


def _form(text: str) -> tuple[Callable[[Review], str], Path | None]:
    name, _, file = text.partition("=")
    if name not in _FORMS:
        raise click.UsageError(f"--output {text!r}: choose one of {', '.join(_FORMS)}, maybe with =FILE")
    return _FORMS[name], Path(file) if file else None


_FORMS: Final[dict[str, Callable[[Review], str]]] = {
    "text": as_text,
    "github": as_annotations,
    "markdown": as_markdown,
    "json": as_json_text,
}
_EVERY: Final = 10_000
"""Decisions between two words of progress."""


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
                {"policy": name, "reason": held.reason, "errors": [self._error(error) for error in held.errors]}
                for name, held in sorted(self._held.items())
            ],
            "warnings": [self._error(warning) for warning in self._warnings],
            "ignored_files": [f"{self._path}/{file}" for file in self._ignored],
        }
        return json.dumps(document, indent=2, ensure_ascii=False)

    def _error(self, error: FileError) -> dict[str, Any]:
        return {**asdict(error), "file": f"{self._path}/{error.file}"}

    def _line(self, error: FileError, kind: str) -> str:
        place = ":".join(str(part) for part in (error.file, error.line, error.column) if part is not None)
        return f"{self._path}/{place}: {kind}: {error.message}"

    def _summary(self) -> str:
        policies = "1 policy" if self._total == 1 else f"{self._total} policies"
        if not self._held:
            return f"{policies}, all valid"
        return f"{policies}, {len(self._held)} invalid: {', '.join(sorted(self._held))}"
