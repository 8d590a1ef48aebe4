"""``regops history``, ``diff`` and ``at``: who changed which policy when, what changed, and what was live at a time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from regops.commands.errors import one_line
from regops.commands.policies import PolicyArgument, path_of
from regops.commands.table import table
from regops.commands.target import Target, get, target_options
from regops.commands.times import parse_time

_SUBJECT = 60
_COMMIT = 12


@click.command(
    epilog="""\b
Examples:
  regops history                       the latest changes of all policies
  regops history projects/billing      every version of one
  regops history billing --limit 100 --json
""",
)
@click.argument("policy", required=False, type=PolicyArgument())
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many versions.")
@click.option("--json", "as_json", is_flag=True, help="Print the versions as JSON.")
@target_options
@one_line
def history(target: Target, policy: str | None, limit: int, *, as_json: bool) -> None:
    """Show the versions of a POLICY (`platform`, or a project's name), or the latest changes of all, newest first.

    STATE is applied (it was live), held (it could not go live: the reason follows) or superseded (a newer version was
    there before it was looked at); * marks the version that is live now, ? a state that follows from Git alone.
    """
    items, missing = asyncio.run(_versions(target, policy, limit))
    if as_json:
        click.echo(json.dumps(items, indent=2, ensure_ascii=False))
    else:
        click.echo(versions_table(items, every=policy is None))
    if missing:
        click.echo(f"Note: {missing}", err=True)


@click.command(
    epilog="""\b
Examples:
  regops diff billing                  the last change of what is live
  regops diff billing 3                what is live, compared with version 3
  regops diff billing 3 5
  regops diff billing live head        what waits in the branch
""",
)
@click.argument("policy", type=PolicyArgument())
@click.argument("old", required=False, metavar="[FROM]")
@click.argument("new", required=False, metavar="[TO]")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /policies/{…}/diff.")
@target_options
@one_line
def diff(target: Target, policy: str, old: str | None, new: str | None, *, as_json: bool) -> None:
    """Show what changed in a POLICY from version FROM to version TO.

    Both are numbers of `regops history`, `live` (what etcd has, and TO when left out) or `head` (what the branch has).
    """
    found = asyncio.run(get(target, f"{path_of(policy)}/diff", {"from": old, "to": new}))
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else diff_text(found))


@click.command(
    epilog="""\b
Examples:
  regops at 2h                         two hours ago
  regops at 2026-01-31T12:00:00Z
  regops at 1d billing                 the text of one policy, as it was then
""",
)
@click.argument("time")
@click.argument("policy", required=False, type=PolicyArgument())
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer.")
@target_options
@one_line
def at(target: Target, time: str, policy: str | None, *, as_json: bool) -> None:
    """Show which version of each policy was live at a TIME, or the text of one POLICY at that time.

    TIME is RFC 3339 (2026-01-31T12:00:00Z), or how long ago: 30s, 15m, 2h, 7d.
    """
    when = parse_time(time)
    found = asyncio.run(get(target, "/policies" if policy is None else path_of(policy), {"at": when}))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif policy is None:
        click.echo(versions_table(found["items"], every=True) if found["items"] else f"No policy was live at {when}")
    else:
        click.echo(_text(found), nl=False)
    if found["missing"]:
        click.echo(f"Note: {found['missing']}", err=True)


def versions_table(items: list[dict[str, Any]], *, every: bool) -> str:
    """One line a version; ``every``: of several policies."""
    head = ["VERSION", "STATE", "COMMITTED", "WHO", "COMMIT", "PR", "SUBJECT"]
    rows = [_row(item) for item in items]
    if not every:
        return table(head, rows)
    return table(["POLICY", *head], [[item["policy"], *row] for item, row in zip(items, rows, strict=True)])


def diff_text(found: dict[str, Any]) -> str:
    """A difference for a person."""
    lines = [found["rego"].rstrip("\n")] if found["rego"] else []
    if found["data"]:
        lines.append(f"data of {found['policy']}:")
        lines += [_data_line(change) for change in found["data"]]
    elif found.get("data_text"):
        lines.append(found["data_text"].rstrip("\n"))
    return "\n".join(lines) or f"{_name(found['from'])} and {_name(found['to'])} of {found['policy']} are the same"


async def _versions(target: Target, policy: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
    path = "/versions" if policy is None else f"{path_of(policy)}/versions"
    found: list[dict[str, Any]] = []
    after: object = None
    while True:
        page = await get(target, path, {"limit": min(100, limit - len(found)), "after": after})
        found += page["items"]
        after = page["next"]
        if after is None or len(found) >= limit:
            return found, page["missing"]


def _row(item: dict[str, Any]) -> list[object]:
    mark = "*" if item["live"] else ""
    state = f"{item['state']}{'?' if item['inferred'] else ''}{': ' if item['reason'] else ''}{item['reason'] or ''}"
    subject = f"{'(deleted) ' if item['deleted'] else ''}{item['subject'] or ''}".partition("\n")[0]
    return [
        f"{item['version']}{mark}",
        state,
        item["ts"],
        item["actor"].partition(" <")[0],
        item["commit"][:_COMMIT],
        f"#{item['pull_request']}" if item["pull_request"] else None,
        subject if len(subject) <= _SUBJECT else f"{subject[: _SUBJECT - 1]}…",
    ]


def _data_line(change: dict[str, Any]) -> str:
    old, new = (json.dumps(change.get(side), ensure_ascii=False) for side in ("from", "to"))
    path = change["path"]
    if not path:  # data.json came or went
        return f"+ {new}" if change["from"] is None else f"- {old}" if change["to"] is None else f"~ {old} -> {new}"
    if change["op"] == "add":
        return f"+ {path}: {new}"
    return f"- {path}: {old}" if change["op"] == "remove" else f"~ {path}: {old} -> {new}"


def _name(side: dict[str, Any]) -> str:
    return f"version {side['version']}" if "version" in side else str(side["ref"])


def _text(found: dict[str, Any]) -> str:
    """The version's line as comments, then the files."""
    head = (
        f"# {found['policy']} version {found['version']}, commit {found['commit']}, {found['actor']}, {found['ts']}\n"
    )
    rego = found["rego"] if found["rego"].endswith("\n") else f"{found['rego']}\n"
    if found.get("data") is None and found.get("data_text") is None:
        return f"{head}{rego}"
    data = found.get("data_text") or json.dumps(found["data"], indent=2, ensure_ascii=False)
    return f"{head}{rego}\n# data.json\n{data}\n"
