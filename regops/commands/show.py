"""``regops dev show``: where a running `regops dev` has something, for the lines of a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from regops.commands.errors import one_line
from regops.commands.target import DEFAULT_STATE, Target

_ENTRIES: Final = {
    "api": "api",
    "page": "page",
    "git": "git",
    "opa": "opa",
    "router": "router",
    "agents": "agents",
    "etcd": "etcd",
    "mongo": "mongo",
    "webhook-secret": "webhook_secret",
}
"""What can be asked for, and its name in the ready file."""


@click.command(
    short_help="Print one address of the running one.",
    epilog="""\b
Examples:
  API=$(regops dev show api)                 where its API is, whatever --ports says
  regops dev show opa                        each OPA on a line of its own
  xdg-open "$(regops dev show page)"         the page; the link logs in as an admin
""",
)
@click.argument("name", type=click.Choice(tuple(_ENTRIES)), metavar="NAME")
@click.option("--state", type=click.Path(path_type=Path), help="Folder of the `regops dev`.  [default: as for dev]")
@click.pass_context
@one_line
def show(context: click.Context, *, name: str, state: Path | None) -> None:
    """Print where a running `regops dev` has NAME.

    One of: api, page (the link that logs in), git, opa, router (with --shards), agents, etcd, mongo, webhook-secret
    (what webhooks are signed with).
    """
    named = context.parent.params["state"] if context.parent else DEFAULT_STATE
    for value in Target(state or named, None, None).told(_ENTRIES[name]):
        click.echo(value)
