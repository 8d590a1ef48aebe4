"""``regops sync``, ``suspend`` and ``resume``: a person's words to the leader, written into etcd."""

from __future__ import annotations

import asyncio
import getpass
import secrets
import socket
from datetime import UTC, datetime

import click

from reconciler.core.conditions import READY, StatusRecord
from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Compare, Delete, KeyValueStore, Put, Range, Transaction
from reconciler.core.ports import Target as Counter
from reconciler.core.records import Confirmed, Requested, Suspended
from regops import compose
from regops.commands.errors import one_line
from regops.commands.target import Target, target_options

_SHORTEST = 7
_POLL_SECONDS = 0.1


@click.command(
    epilog="""\b
Examples:
  regops sync                      look at the repository now
  regops sync --wait               and say what came of it
  regops sync --confirm 1a2b3c4    the blocked deletions of that commit are meant
  regops sync --remove-foreign     delete keys that regops never wrote
"""
)
@click.option("--wait", is_flag=True, help="Wait until it is done; exit 1 when it is not all well.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@click.option("--confirm", metavar="COMMIT", help="Carry out the deletions that are blocked for this commit.")
@click.option("--remove-foreign", is_flag=True, help="Delete keys below the policies' prefix that regops never wrote.")
@target_options
@one_line
def sync(target: Target, *, wait: bool, timeout: float, confirm: str | None, remove_foreign: bool) -> None:
    """Make the leader look at the repository now."""
    click.echo(asyncio.run(_sync(target, wait=wait, seconds=timeout, confirm=confirm, remove_foreign=remove_foreign)))


@click.command(
    epilog="""\b
Example:
  regops suspend --reason "incident 4711"
"""
)
@click.option("--reason", default="", help="Why, for those who look at the status.")
@target_options
@one_line
def suspend(target: Target, reason: str) -> None:
    """Stop applying commits, in every replica, until `regops resume`. What is live stays."""
    click.echo(asyncio.run(_suspend(target, reason)))


@click.command(
    epilog="""\b
Example:
  regops resume
"""
)
@target_options
@one_line
def resume(target: Target) -> None:
    """Go on applying commits."""
    click.echo(asyncio.run(_resume(target)))


async def _sync(target: Target, *, wait: bool, seconds: float, confirm: str | None, remove_foreign: bool) -> str:
    settings = target.settings()
    keys = compose.keyspace(settings.etcd)
    async with compose.open_store(settings.etcd) as store:
        said = await _confirm(store, keys, confirm) if confirm else ""
        token = f"{_now()}-{secrets.token_hex(3)}"
        record = Requested(token=token, by=_who(), remove_foreign=remove_foreign)
        await store.commit(Transaction((), (Put(keys.requested, record.encode()),)))
        if not wait:
            return said or "requested; `regops status` shows what comes of it"
        status = await _handled(store, keys, token, seconds)
    ready = next((condition for condition in status.conditions if condition.type == READY), None)
    if ready is None or ready.status != "True":
        raise StalledError(f"{ready.reason}: {ready.message}" if ready else "nothing is known yet")
    return ready.message


async def _confirm(store: KeyValueStore, keys: Keyspace, commit: str) -> str:
    """Write the confirmation for the deletions that are blocked at ``commit``; refuses any other commit."""
    status = await _status(store, keys)
    head = (status.last_attempted_revision if status else None) or ""
    if status is None or not status.blocked_deletions:
        raise StalledError("no deletions are blocked", remedy="There is nothing to confirm.")
    if len(commit) < _SHORTEST or not head.startswith(commit.lower()):
        raise StalledError(f"deletions are blocked for commit {head}, not {commit}", remedy="Look again, then confirm.")
    confirmed = Confirmed(head, status.blocked_deletions, _who(), _now())
    await store.commit(Transaction((), (Put(keys.confirmed, confirmed.encode()),)))
    return f"confirmed {len(status.blocked_deletions)} deletions of {head}"


async def _handled(store: KeyValueStore, keys: Keyspace, token: str, seconds: float) -> StatusRecord:
    try:
        async with asyncio.timeout(seconds):
            while True:
                status = await _status(store, keys)
                if status is not None and status.last_handled_reconcile_at == token:
                    return status
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise TransientError(
            f"not done within {seconds:g} s", reason="Timeout", remedy="`regops status` shows what holds it up."
        ) from error


async def _status(store: KeyValueStore, keys: Keyspace) -> StatusRecord | None:
    kvs = (await store.read(Range(keys.status))).ranges[0]
    try:
        return StatusRecord.decode(kvs[0].value) if kvs else None
    except (ValueError, TypeError, KeyError) as error:
        raise RegopsError("the status in etcd cannot be read", reason="InvalidRecord") from error


async def _suspend(target: Target, reason: str) -> str:
    settings = target.settings()
    key = compose.keyspace(settings.etcd).suspended
    async with compose.open_store(settings.etcd) as store:
        put = Put(key, Suspended(by=_who(), reason=reason, at=_now()).encode())
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


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
