"""``regops audit``: who did what, and what came of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from regops.commands.errors import one_line
from regops.commands.policies import PolicyArgument
from regops.commands.table import table
from regops.commands.target import Target, get, target_options
from regops.commands.times import parse_time

_PAGE = 1000


@click.command(
    epilog="""\b
Examples:
  regops audit                                  the last 100 events
  regops audit --policy billing --since 7d
  regops audit --actor ann --result forbidden
  regops audit --since 2026-01-31T00:00:00Z --until 2026-02-01T00:00:00Z --limit 10000 --json
""",
)
@click.option("--policy", type=PolicyArgument(), metavar="POLICY", help="Of one policy.")
@click.option("--actor", metavar="NAME", help="Of one caller: the `sub` of its token, or a commit's author.")
@click.option("--action", metavar="WORD", help="put, patch, delete, rollback, sync, suspend, resume, confirm, …")
@click.option("--result", metavar="WORD", help="created, updated, deleted, unchanged, forbidden, conflict, …")
@click.option("--since", metavar="TIME", help="From this time on: RFC 3339, or how long ago (30s, 15m, 2h, 7d).")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many events.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON.")
@target_options
@one_line
def audit(
    target: Target,
    policy: str | None,
    actor: str | None,
    action: str | None,
    result: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """Show audit events of all replicas, newest first. Needs the token of a platform admin, and MongoDB.

    The audit log of each server is the record; what this shows is its copy in MongoDB.
    """
    query = {
        "policy": policy,
        "actor": actor,
        "action": action,
        "result": result,
        "since": parse_time(since) if since else None,
        "until": parse_time(until) if until else None,
    }
    events = asyncio.run(_events(target, query, limit))
    if as_json:
        click.echo(json.dumps(events, indent=2, ensure_ascii=False))
    elif events:
        click.echo(table(["TIME", "ACTOR", "ACTION", "RESOURCE", "RESULT", "COMMIT", "REQUEST"], _rows(events)))
    else:
        click.echo("No event fits")


async def _events(target: Target, query: dict[str, str | None], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = await get(target, "/audit", {**query, "limit": min(_PAGE, limit - len(found)), "after": after})
        found += page["items"]
        after = page["next"]
        if after is None or len(found) >= limit:
            return found


def _rows(events: list[dict[str, Any]]) -> list[list[object]]:
    return [
        [
            event["ts"],
            event["actor"],
            event["action"],
            event["resource"],
            event["result"],
            (event.get("commit") or "")[:12],
            event["request_id"],
        ]
        for event in events
    ]
