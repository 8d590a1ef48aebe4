"""``regops suspend`` and ``resume``: a person's words to every replica, written into etcd."""

from __future__ import annotations

import asyncio

import click

from reconciler.core.ports import Compare, Delete, Put, Range, Transaction
from reconciler.core.ports import Target as Counter
from reconciler.core.records import Suspended
from regops import compose
from regops.commands.errors import one_line
from regops.commands.target import Target, target_options
from regops.commands.words import now, who


@click.command(
    short_help="Stop applying commits; what is live stays.",
    epilog="""\b
Example:
  regops suspend --reason "incident 4711"
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
    short_help="Go on applying commits.",
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
    settings = target.settings()
    key = compose.keyspace(settings.etcd).suspended
    async with compose.open_store(settings.etcd) as store:
        put = Put(key, Suspended(by=who(), reason=reason, at=now()).encode())
        outcome = await store.commit(Transaction((Compare(key, Counter.CREATE, 0),), (put,)))
    return "suspended" if outcome.succeeded else "was suspended already"


async def _resume(target: Target) -> str:
    settings = target.settings()
    key = compose.keyspace(settings.etcd).suspended
    async with compose.open_store(settings.etcd) as store:
        if not (await store.read(Range(key))).ranges[0]:
            return "was not suspended"
        await store.commit(Transaction((), (Delete(key),)))
    return "resumed"
