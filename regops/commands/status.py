"""``regops status`` and ``regops fleet``: what is live, what is held and why, and who enforces it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from reconciler.core.errors import StalledError
from reconciler.core.ports import Delete, Range, Transaction
from regops import compose
from regops.commands.errors import one_line
from regops.commands.table import table
from regops.commands.target import Target, get, get_status, place_of, target_options
from regops.commands.times import parse_time


@click.command(
    short_help="What is live, what is held and why, who enforces it.",
    epilog="""\b
Examples:
  regops status                              of the `regops dev` in this folder
  regops status --server http://10.0.0.5:8080
  regops status --json | jq .conditions
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print the document of GET /status.")
@target_options
@one_line
def status(target: Target, *, as_json: bool) -> None:
    """Show conditions, the applied commit, held policies with their errors, and each agent's receipt.

    The exit code is 0 whenever a server answered, whatever it said: for a script, look at `.sync.status` (Synced,
    OutOfSync, Unknown) and `.health.status` (Healthy, Progressing, Degraded, Suspended, Unknown) of `--json`.
    """
    document = asyncio.run(get_status(target))
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else _page(document))


def _page(status: dict[str, Any]) -> str:
    source = status["source"]
    lines = [
        f"Source:     {source['remote']} (branch {source['branch']}, folder {source['path']})",
        f"Applied:    {status['last_applied_revision'] or 'nothing yet'}   {status['last_applied_at'] or ''}".rstrip(),
        f"Attempted:  {status['last_attempted_revision'] or '-'}",
        f"Sync:       {status['sync']['status']}",
        f"Health:     {status['health']['status']}",
        f"Policies:   {status['policies']['live']} live, {status['policies']['held']} held",
    ]
    if status["suspended"]:
        lines.append(f"Suspended:  nothing is applied until `regops resume`{_suspension(status.get('suspension'))}")
    rows = [[c["type"], c["status"], c["reason"], c["message"]] for c in status["conditions"]]
    lines += ["", table(["CONDITION", "STATUS", "REASON", "MESSAGE"], rows)]
    for held in status["held"]:
        lines += ["", f"{held['policy']} is held ({held['reason']}):", *(f"  {place_of(e)}" for e in held["errors"])]
    if status["blocked_deletions"]:
        commit = (status["last_attempted_revision"] or "").rpartition(":")[2]
        lines += ["", "Deletions that wait for a person:", *(f"  {name}" for name in status["blocked_deletions"])]
        lines.append(f"If they are meant: regops sync --confirm {commit}")
    if status["ignored_files"]:
        lines += ["", f"Ignored files: {', '.join(status['ignored_files'][:10])}"]
    if status.get("foreign_keys"):
        lines += ["", f"Foreign keys in etcd, not enforced: {', '.join(status['foreign_keys'][:10])}"]
        lines.append("To delete them: regops sync --remove-foreign")
    return "\n".join([*lines, "", _fleet(status)])


def _suspension(word: dict[str, Any] | None) -> str:
    """Who, when and why; nothing where the server does not tell or the record cannot be read."""
    if not word or not word["by"]:
        return ""
    return f" (by {word['by']} at {word['at']}{': ' if word['reason'] else ''}{word['reason']})"


def _fleet(status: dict[str, Any]) -> str:
    if not status["agents"]:
        return "No agent has reported yet"
    rows = [
        [
            agent["id"],
            agent["datacentre"],
            agent["scope"],
            (agent["enforced_revision"] or "unknown").rpartition(":")[2][:12],
            agent["since"],
            agent["opa_version"],
            agent["error"] or _quiet(agent),
        ]
        for agent in status["agents"]
    ]
    return table(["AGENT", "DATACENTRE", "SCOPE", "ENFORCES", "SINCE", "OPA", "ERROR"], rows)


def _fleet_then(document: dict[str, Any]) -> str:
    rows = [
        [
            agent["id"],
            agent["datacentre"],
            agent["scope"],
            (agent["commit"] or "unknown")[:12],
            agent["since"],
            agent["to"] or "",
            agent["error"] or _doubt(agent),
        ]
        for agent in document["agents"]
    ]
    shown = table(["AGENT", "DATACENTRE", "SCOPE", "ENFORCED", "SINCE", "UNTIL", "NOTE"], rows) if rows else "No agent"
    return f"{shown}\n\nMissing: {document['missing']}" if document["missing"] else shown


def _doubt(agent: dict[str, Any]) -> str:
    """Why it is not known what was enforced."""
    return f"{agent['reason']}; before: {agent['last_commit'][:12]}" if agent["reason"] else ""


def _quiet(agent: dict[str, Any]) -> str:
    """What is wrong with an agent that reports no error."""
    if not agent["alive"]:
        return "silent"
    return "stale: etcd is out of its reach" if agent["stale"] else ""


@click.group(
    short_help="Which commit each OPA proves to enforce.",
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
        click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else _fleet_then(document))
    elif context.invoked_subcommand is None:
        document = asyncio.run(get_status(target))
        agents = json.dumps(document["agents"], indent=2, ensure_ascii=False)
        click.echo(agents if as_json else _fleet(document))


@fleet.command(
    short_help="Drop an agent that is gone for good.",
    epilog="""\b
Example:
  regops fleet forget agent-3 --datacentre east
""",
)
@click.argument("agent")
@click.option("--datacentre", metavar="NAME", help="Needed when two datacentres have an agent of this name.")
@target_options
@one_line
def forget(target: Target, agent: str, datacentre: str | None) -> None:
    """Drop the last receipt of an AGENT that is gone for good, so that it no longer counts.

    An agent that is alive is refused: it would report again. One that is silent for 7 days is left out by itself.
    """
    asyncio.run(_forget(target, agent, datacentre))
    click.echo(f"{agent} is forgotten")


async def _forget(target: Target, agent: str, datacentre: str | None) -> None:
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
