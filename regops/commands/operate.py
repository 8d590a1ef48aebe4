"""``regops suspend`` and ``resume``: a person's words to every replica."""

from __future__ import annotations

import asyncio

import click

from regops.commands.errors import one_line
from regops.commands.target import Target, target_options
from regops.commands.words import open_words


@click.command(
    epilog="""\b
Examples:
  regops suspend --reason "incident 4711"
  regops suspend --server https://regops.example.com --token-file token
""",
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for those who look at the status.")
@target_options
@one_line
def suspend(target: Target, reason: str) -> None:
    """Stop applying commits, in every replica, until `regops resume`. What is live stays.

    `regops status` shows who suspended, when and why, and what is waiting.
    """
    click.echo(asyncio.run(_suspend(target, reason)))


@click.command(
    epilog="""\b
Example:
  regops resume
""",
)
@target_options
@one_line
def resume(target: Target) -> None:
    """Go on applying commits after `regops suspend`; the newest commit is applied at once."""
    click.echo(asyncio.run(_resume(target)))


async def _suspend(target: Target, reason: str) -> str:
    async with open_words(target) as words:
        return "suspended" if await words.suspend(reason) else "was suspended already"


async def _resume(target: Target) -> str:
    async with open_words(target) as words:
        return "resumed" if await words.resume() else "was not suspended"
