"""``regops test``: the Rego unit tests of a tree, by OPA."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from reconciler.core.live import LiveState
from reconciler.core.plan import Target
from reconciler.settings import Settings, load
from regops import compose
from regops.checking.opa_test import bench
from regops.checking.tested import files_of
from regops.commands.errors import one_line
from regops.commands.places import inside
from regops.revisions import open_tested_snapshot


@click.command(
    name="test",
    epilog="""\b
Examples:
  regops test                 the policy repository in this folder
  regops test ../policies -v  another one, every test by name
  regops test --json | jq '.[] | select(.fail)'
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
@click.option("--json", "as_json", is_flag=True, help="Print OPA's results as JSON: a list, one member for each test.")
@click.option("--config", type=click.Path(path_type=Path), envvar="REGOPS_CONFIG", help="Settings file.")
@one_line
def rego_test(folder: Path, path: str | None, config: Path | None, *, verbose: bool, as_json: bool) -> None:
    """Run the Rego unit tests (`*_test.rego`) of a policy repository.

    By `opa test -b`, of what production loads: each policy's `rego.rego` and `data.json`, with the tests beside them,
    without the refused builtins and without the variables of the environment. The exit code is OPA's: 0 when all pass,
    2 when one fails, 1 when something does not compile.
    """
    settings = load(config)
    path = inside(path) if path is not None else settings.git.path
    told = ("--format", "json") if as_json else ("-v",) if verbose else ()
    raise SystemExit(asyncio.run(_run(settings, folder, path, told)))


async def _run(settings: Settings, folder: Path, path: str, told: Sequence[str]) -> int:
    places = open_tested_snapshot(settings, folder, path=path, revision=None)
    async with places as (source, newest, test_files), compose.open_judge(settings, source) as judge:
        tree = await source.tree(newest)
        valid = (await judge.resolve(tree, LiveState())).targets
        targets = {name: valid.get(name) or Target(blobs, 1) for name, blobs in tree.policies.items()}
        files = await files_of(source, targets, await test_files(newest), held=())
    if not files.tests:
        click.echo(f"no tests: there is no *_test.rego beside a policy below {folder / path}", err="json" in told)
    async with bench(compose.opa_binary(settings), files, settings.policy.refused_builtins, path) as made:
        process = await asyncio.create_subprocess_exec(*made.words(*told), cwd=made.folder, env=made.environment)
        return await process.wait()
