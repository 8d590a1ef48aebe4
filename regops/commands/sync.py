"""``regops sync``: ask the leader to look now, confirm what it blocked, and say what came of it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Any

import click

from reconciler.core.conditions import VALIDATION_FAILED
from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.guards import BLOCKED
from regops.commands.errors import INTERRUPTED, one_line
from regops.commands.target import Target, target_options
from regops.commands.words import Seen, Words, open_words

_POLL_SECONDS = 0.1
_TO_THE_END = BLOCKED | {VALIDATION_FAILED, "PlatformPending"}


@click.command(
    epilog="""\b
Examples:
  regops sync                           look at the repository now
  regops sync --wait                    and say what came of it
  regops sync --wait --json             the same for a program
  regops sync --confirm 1a2b3c4         the blocked deletions of that commit are meant
  regops sync --remove-foreign --wait   delete keys that regops never wrote
""",
)
@click.option("--wait", is_flag=True, help="Wait until it is done; exit with 1 when it is not all well.")
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="SECONDS", help="How long to wait.")
@click.option("--confirm", metavar="COMMIT", help="Carry out the deletions that are blocked for this commit.")
@click.option("--remove-foreign", is_flag=True, help="Delete keys below the policies' prefix that regops never wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
@target_options
@one_line
def sync(
    target: Target, *, wait: bool, timeout: float, confirm: str | None, remove_foreign: bool, as_json: bool
) -> None:
    """Make the leader look at the repository now.

    A running server looks by itself (setting git.poll_interval), so this is for those who do not want to wait, and for
    what a person must say: that deletions which the guard has blocked are meant, and that foreign keys may go.
    """
    try:
        done = asyncio.run(_sync(target, timeout if wait else None, confirm, remove_foreign=remove_foreign))
    except KeyboardInterrupt:
        click.echo("Interrupted: the request stands, `regops status` shows what comes of it.", err=True)
        raise SystemExit(INTERRUPTED) from None
    if as_json:
        click.echo(json.dumps(done.document(), indent=2, ensure_ascii=False))
    if done.trouble is None:
        if not as_json:
            click.echo(done.text())
        return
    if as_json:
        raise SystemExit(1)
    if done.carried_out:
        click.echo(f"carried out {len(done.carried_out)} deletions: {', '.join(done.carried_out)}")
    raise done.trouble


@dataclass(frozen=True, slots=True)
class _Done:
    """What was asked for and, after waiting, what came of it."""

    token: str
    confirmed: tuple[str, ...]
    seen: Seen | None

    @property
    def carried_out(self) -> tuple[str, ...]:
        """The confirmed deletions that wait no more, as far as it was waited for."""
        if self.seen is None or self.seen.suspended is not None or not _passed(self.seen):
            return ()
        return tuple(name for name in self.confirmed if name not in self.seen.blocked_deletions)

    @property
    def trouble(self) -> RegopsError | None:
        """Why the repository's head is not live now, as far as it was waited for."""
        if self.seen is None:
            return None
        if self.seen.suspended is not None:
            by = self.seen.suspended
            why = f" ({by.reason})" if by.reason else ""
            return StalledError(
                f"nothing was applied: suspended by {by.by} at {by.at}{why}", remedy="`regops resume` goes on."
            )
        ready = self.seen.ready
        if ready is None or ready.status != "True":
            return StalledError(f"{ready.reason}: {ready.message}" if ready else "nothing is known yet")
        return None

    def text(self) -> str:
        """One line for a person."""
        said = f"confirmed {len(self.confirmed)} deletions; " if self.confirmed else ""
        if self.seen is None or self.seen.ready is None:
            return f"{said}requested; `regops status` shows what comes of it"
        return f"{said}{self.seen.ready.message}"

    def document(self) -> dict[str, Any]:
        """{requested, confirmed, done, …}: the rest only after waiting."""
        document: dict[str, Any] = {
            "requested": self.token,
            "confirmed": list(self.confirmed),
            "done": self.seen is not None,
        }
        if self.seen is None:
            return document
        return document | {
            "ready": asdict(self.seen.ready) if self.seen.ready else None,
            "suspended": self.seen.suspended is not None,
            "attempted": self.seen.attempted,
            "applied": self.seen.applied,
            "blocked_deletions": list(self.seen.blocked_deletions),
            "foreign_keys": list(self.seen.foreign_keys),
        }


def _passed(seen: Seen) -> bool:
    """Whether the pass ran to its end: what it could not apply is held or blocked then, and all else is live."""
    ready = seen.ready
    return ready is not None and (ready.status == "True" or ready.reason in _TO_THE_END)


async def _sync(target: Target, seconds: float | None, confirm: str | None, *, remove_foreign: bool) -> _Done:
    async with open_words(target) as words:
        confirmed = await words.confirm(confirm.rpartition(":")[2]) if confirm else ()
        token = await words.sync(remove_foreign=remove_foreign)
        return _Done(token, confirmed, None if seconds is None else await _handled(words, token, seconds))


async def _handled(words: Words, token: str, seconds: float) -> Seen:
    seen = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                seen = await words.look()
                if seen.handled == token:
                    return seen
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise TransientError(
            f"not done within {seconds:g} s: {_hindrance(seen)}",
            reason="Timeout",
            remedy="The request stands; `regops status` shows what comes of it.",
        ) from error


def _hindrance(seen: Seen | None) -> str:
    if seen is None:
        return "no answer"
    if not seen.led:
        return "no replica leads (is a `regops server` running?)"
    ready = seen.ready
    return f"{ready.reason}: {ready.message}" if ready and ready.status != "True" else "the leader is still at work"
