"""``regops rollback``: put an earlier version back, after a look at what that changes."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import click

from reconciler.core.errors import StalledError
from regops.commands.errors import one_line
from regops.commands.policies import PolicyArgument, path_of
from regops.commands.target import Target, get, place_of, post, target_options


@click.command(
    epilog="""\b
Examples:
  regops rollback billing              to the last applied version that is not as the live one
  regops rollback billing --to 3
  regops rollback platform --to 12 --yes
  regops rollback billing --yes --json | jq -r .commit
""",
)
@click.argument("policy", type=PolicyArgument())
@click.option("--to", "version", type=click.IntRange(min=1), metavar="VERSION", help="See `regops history POLICY`.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON, what changes to standard error.")
@target_options
@one_line
def rollback(target: Target, policy: str, version: int | None, *, yes: bool, as_json: bool) -> None:
    """Put an earlier version of a POLICY back: a new commit whose message names the version that it restores.

    Shows what changes and asks first. Nothing is written when the version would not go live any more, or when somebody
    has changed the policy meanwhile.
    """
    tried, etag = asyncio.run(_try(target, policy, version))
    if not tried["valid"]:
        places = "".join(f"\n  {place_of(error)}" for error in tried["errors"])
        raise StalledError(f"version {tried['version']} of {policy} would not go live:{places}")
    if tried["etag_before"] == tried["etag_after"]:
        same = f"{policy} is as in version {tried['version']} already: nothing to do"
        click.echo(_document(policy, tried, None) if as_json else same)
        return
    click.echo(tried["diff"], nl=False, err=as_json)
    if not yes and not click.confirm(f"Put version {tried['version']} of {policy} back?", err=True):
        click.echo("Nothing was changed.", err=True)
        raise SystemExit(1)
    done = asyncio.run(_roll_back(target, policy, tried["version"], etag))
    again = f"{policy} is as in version {tried['version']} again, by commit {done['commit']}; see `regops status`"
    click.echo(_document(policy, tried, done) if as_json else again)
    if as_json:
        return
    for warning in done["warnings"]:
        click.echo(f"Warning: {place_of(warning)}", err=True)


def _document(policy: str, tried: dict[str, Any], done: dict[str, Any] | None) -> str:
    """``changed``: whether something was written. ``commit`` is null where nothing was."""
    found = {
        "policy": policy,
        "version": tried["version"],
        "changed": done is not None,
        "commit": done["commit"] if done else None,
        "etag": tried["etag_after"],
        "warnings": done["warnings"] if done else [],
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


async def _try(target: Target, policy: str, version: int | None) -> tuple[dict[str, Any], str | None]:
    etag = await _etag(target, policy)
    return await post(target, f"{path_of(policy)}:rollback?dry_run=true", _body(version), _match(etag)), etag


async def _roll_back(target: Target, policy: str, version: int, etag: str | None) -> dict[str, Any]:
    headers = {**_match(etag), "Idempotency-Key": secrets.token_hex(16)}
    return await post(target, f"{path_of(policy)}:rollback", _body(version), headers)


async def _etag(target: Target, policy: str) -> str | None:
    """The ETag at the branch's head, where the new commit comes; ``None`` where there is no policy."""
    found = await get(target, f"{path_of(policy)}/diff", {"from": "head", "to": "head"})
    etag: str | None = found["to"]["etag"]
    return etag


def _body(version: int | None) -> dict[str, Any]:
    return {} if version is None else {"version": version}


def _match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"If-Match": etag}
