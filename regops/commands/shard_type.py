"""A shard on the command line: ``2/8``."""

from __future__ import annotations

import click

from reconciler.core.shards import Shard


class ShardType(click.ParamType[Shard]):
    """A `Shard`; wrong usage, with the rule, for anything else."""

    name = "I/N"

    def convert(self, value: str | Shard, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """As click asks for it."""
        if isinstance(value, Shard):
            return value
        try:
            return Shard.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
