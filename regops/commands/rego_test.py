"""``regops test``: the Rego unit tests of a tree, by OPA."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click

from reconciler.settings import load
from regops import compose
from regops.commands.errors import one_line


@click.command(
    name="test",
    epilog="""\b
Examples:
  regops test                 the policy repository in this folder
  regops test ../policies -v  another one, every test by name
""",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.option(
    "--path",
    "path",
    default=None,
    metavar="FOLDER",
    help="Folder of the policies inside it (setting git.path: policies).",
)
@click.option("-v", "--verbose", is_flag=True, help="Name every test.")
@click.option("--config", type=click.Path(path_type=Path), envvar="REGOPS_CONFIG", help="Settings file.")
@one_line
def rego_test(folder: Path, path: str | None, config: Path | None, *, verbose: bool) -> None:
    """Run the Rego unit tests (`*_test.rego`) of a policy repository.

    By `opa test -b`, which loads the tree as production does. The exit code is OPA's: 0 when all pass, 2 when one
    fails, 1 when something does not compile.
    """
    settings = load(config)
    policies = folder / (path or settings.git.path)
    if not policies.is_dir():
        raise click.ClickException(f"{policies} is no folder. Name the folder of the policies with --path.")
    if next(policies.rglob("*_test.rego"), None) is None:
        click.echo(f"no tests: there is no *_test.rego below {policies}")
    opa = compose.opa_binary(settings)
    words = [str(opa), "test", *(["-v"] if verbose else []), "-b", str(policies)]
    raise SystemExit(subprocess.run(words, check=False).returncode)  # noqa: S603 a fixed command
