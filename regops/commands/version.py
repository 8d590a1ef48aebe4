"""``regops version``."""

from __future__ import annotations

import json
import platform

import click

from regops import __version__


@click.command(
    epilog="""\b
Example:
  regops version --json
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def version(*, as_json: bool) -> None:
    """Print the version."""
    found = {"regops": __version__, "python": platform.python_version()}
    click.echo(json.dumps(found) if as_json else f"regops {__version__} (Python {found['python']})")
