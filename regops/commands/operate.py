"""``regops suspend`` and ``resume``: a person's words to every replica."""

from __future__ import annotations

import asyncio
import json

import click

from regops.commands.errors import one_line
from regops.commands.target import Target, target_options
from regops.commands.words import open_words


@click.command(
    epilog="""\b
Examples:
  regops suspend --reason "incident 4711"
  regops suspend --server https://regops.example.com --token-file token
  regops suspend --json                       {"suspended": true, "changed": true}
""",
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at the status.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
@target_options
@one_line
def suspend(target: Target, reason: str, *, as_json: bool) -> None:
    """Stop applying commits, in every replica, until `regops resume`. What is live stays.

    `regops status` shows who suspended, when and why, and what is waiting.
    """
    changed = asyncio.run(_suspend(target, reason))
    if as_json:
        click.echo(json.dumps({"suspended": True, "changed": changed}))
    else:
        click.echo("suspended" if changed else "was suspended already")


@click.command(
    epilog="""\b
Examples:
  regops resume
  regops resume --json       {"suspended": false, "changed": true}
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
@target_options
@one_line
def resume(target: Target, *, as_json: bool) -> None:
    """Go on applying commits after `regops suspend`; the newest commit is applied at once."""
    changed = asyncio.run(_resume(target))
    if as_json:
        click.echo(json.dumps({"suspended": False, "changed": changed}))
    else:
        click.echo("resumed" if changed else "was not suspended")


async def _suspend(target: Target, reason: str) -> bool:
    async with open_words(target) as words:
        return await words.suspend(reason)


async def _resume(target: Target) -> bool:
    async with open_words(target) as words:
        return await words.resume()
