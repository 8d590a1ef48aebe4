"""``regops status``, ``passes``, ``trace`` and ``fleet``: what is live, what is held and why, who enforces it when."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any, Final

import click

from reconciler.core.errors import StalledError
from reconciler.core.ports import Delete, Range, Transaction
from regops import compose
from regops.commands.errors import one_line
from regops.commands.following import again
from regops.commands.policies import PolicyArgument, path_of
from regops.commands.tables import (
    fleet_now,
    fleet_then,
    passes_table,
    policies_table,
    policy_page,
    status_line,
    status_page,
    trace_page,
)
from regops.commands.target import Target, get, get_status, target_options
from regops.commands.times import parse_time

_HEX: Final = re.compile(r"[0-9a-fA-F]{4,40}")


@click.command(
    epilog="""\b
Examples:
  regops status                              of the `regops dev` in this folder
  regops status --server http://10.0.0.5:8080
  regops status --watch                      until Ctrl-C, as it changes
  regops status --policies                   every policy in a line
  regops status billing                      one policy, and each OPA that answers for it
  regops status --json | jq .conditions
""",
)
@click.argument("policy", required=False, type=PolicyArgument())
@click.option("--policies", is_flag=True, help="Show each policy: live, held, enforced by how many OPAs.")
@click.option("--watch", "-w", is_flag=True, help="Go on showing it as it changes.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer; with --watch one line for each.")
@target_options
@one_line
def status(target: Target, policy: str | None, *, policies: bool, watch: bool, as_json: bool) -> None:
    """Show conditions, the applied commit, held policies with their errors, and each agent's receipt; or the status of
    each policy, or of one POLICY (`platform`, or a project's name).

    The exit code is 0 whenever a server answered, whatever it said: for a script, look at `.sync.status` (Synced,
    OutOfSync, Unknown) and `.health.status` (Healthy, Progressing, Degraded, Suspended, Unknown) of `--json`.
    """
    if sum((policy is not None, policies, watch)) > 1:
        raise click.UsageError("give only one of POLICY, --policies and --watch")
    if watch:
        asyncio.run(_watch(target, as_json=as_json))
        return
    if policies:
        items = asyncio.run(_policies(target))
        _print(items, policies_table(items), as_json=as_json)
    elif policy is not None:
        item = asyncio.run(get(target, f"/status{path_of(policy)}"))
        _print(item, policy_page(item), as_json=as_json)
    else:
        document = asyncio.run(get_status(target))
        _print(document, status_page(document), as_json=as_json)


def _print(document: Any, page: str, *, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else page)


async def _watch(target: Target, *, as_json: bool) -> None:
    """On a terminal the page is drawn anew; elsewhere each change is one line."""
    screen = sys.stdout.isatty() and not as_json
    async for document in again(target, lambda why: click.echo(f"{why}; trying again", err=True)):
        if as_json:
            click.echo(json.dumps(document, ensure_ascii=False))
        elif screen:
            click.clear()
            click.echo(f"{status_page(document)}\n\nWatching; Ctrl-C ends it.")
        else:
            click.echo(status_line(document))


async def _policies(target: Target) -> list[dict[str, Any]]:
    """Every page."""
    items: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = await get(target, "/status/policies", {"limit": 1000, "after": after})
        items += page["items"]
        after = page["next"]
        if after is None:
            return items


@click.command(
    epilog="""\b
Examples:
  regops passes                       the last 20
  regops passes --limit 200 --json
""",
)
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True, help="How many, newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print the passes as JSON.")
@target_options
@one_line
def passes(target: Target, limit: int, *, as_json: bool) -> None:
    """Show the passes that wrote to etcd, and those that failed, newest first.

    APPLIED IN is the time from the trigger (a push that was noticed, a webhook, a poll …) to etcd; ENFORCED IN from the
    trigger until every OPA had proven it. Etcd keeps the last 200.
    """
    items = asyncio.run(get(target, "/history", {"limit": limit}))["items"]
    _print(items, passes_table(items), as_json=as_json)


@click.command(
    epilog="""\b
Examples:
  regops trace 1f3a9c2                the commit, or its first digits
  regops trace billing                the newest commit that changed this policy
  regops trace platform --json
""",
)
@click.argument("what", metavar="COMMIT|POLICY")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /trace.")
@target_options
@one_line
def trace(target: Target, what: str, *, as_json: bool) -> None:
    """Show when a COMMIT, or the newest commit that changed a POLICY, was pushed, seen, validated and applied, and when
    each OPA proved to enforce it.

    4 to 40 hex digits are a commit; write a project of such a name as projects/NAME.
    """
    query = {"commit": what} if _HEX.fullmatch(what) else {"policy": what}
    found = asyncio.run(get(target, "/trace", query))
    _print(found, trace_page(found), as_json=as_json)


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  regops fleet
  regops fleet --json
  regops fleet --at 2h
  regops fleet --at 2026-01-31T12:00:00Z
  regops fleet forget agent-3
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print the agents as JSON.")
@click.option("--at", "time", metavar="TIME", help="As it was then: RFC 3339, or how long ago (30s, 15m, 2h, 7d).")
@target_options
@click.pass_context
@one_line
def fleet(context: click.Context, target: Target, time: str | None, *, as_json: bool) -> None:
    """Show each OPA's agent and the commit that the OPA proves to enforce, or with --at proved to enforce then.

    What was enforced is recorded in MongoDB, for 90 days (the setting `mongo.receipt_days`).
    """
    context.obj = target
    if context.invoked_subcommand is None and time is not None:
        document = asyncio.run(get(target, "/fleet", {"at": parse_time(time)}))
        click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else fleet_then(document))
    elif context.invoked_subcommand is None:
        document = asyncio.run(get(target, "/fleet", having="agents"))
        _print(document["agents"], fleet_now(document), as_json=as_json)


@fleet.command(
    short_help="Drop an agent that is gone for good.",
    epilog="""\b
Example:
  regops fleet forget agent-3 --datacentre east
""",
)
@click.argument("agent")
@click.option("--datacentre", metavar="NAME", help="Needed when two datacentres have an agent of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print which one is forgotten as JSON.")
@target_options
@one_line
def forget(target: Target, agent: str, datacentre: str | None, *, as_json: bool) -> None:
    """Drop the last receipt of an AGENT that is gone for good, so that it no longer counts.

    An agent that is alive is refused: it would report again. One that is silent for 7 days is left out by itself.
    """
    place, _, name = asyncio.run(_forget(target, agent, datacentre)).partition("/")
    click.echo(json.dumps({"forgotten": {"id": name, "datacentre": place}}) if as_json else f"{agent} is forgotten")


async def _forget(target: Target, agent: str, datacentre: str | None) -> str:
    """``<datacentre>/<id>`` of what was dropped."""
    settings = target.settings()
    keys = compose.keyspace(settings.etcd)
    async with compose.open_store(settings.etcd) as store:
        receipts, alive = (
            await store.read(
                Range(keys.receipts, prefix=True, keys_only=True), Range(keys.alives, prefix=True, keys_only=True)
            )
        ).ranges
        known = [kv.key.removeprefix(keys.receipts) for kv in receipts]
        found = [name for name in known if name == f"{datacentre or name.partition('/')[0]}/{agent}"]
        if not found:
            raise StalledError(f"no agent {agent} has reported", remedy=f"Known: {', '.join(known) or 'none'}.")
        if len(found) > 1:
            raise StalledError(f"{agent} is in several datacentres", remedy="Name one with --datacentre.")
        if f"{keys.alives}{found[0]}" in {kv.key for kv in alive}:
            raise StalledError(f"{found[0]} is alive and would report again", remedy="Stop it first.")
        await store.commit(Transaction((), (Delete(f"{keys.receipts}{found[0]}"),)))
        return found[0]
