"""How long an agent without a sign of life still counts. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from reconciler.core.records import Receipt

FORGET_AFTER: Final = timedelta(days=7)
"""What `server.forget_agents_after` is by default."""


def forgotten(receipt: Receipt, now: datetime, after: timedelta = FORGET_AFTER) -> bool:
    """Whether the agent that wrote this receipt, and has no sign of life, has been silent for so long that it counts no
    more. It is asked of silent agents only: one that is alive always counts.

    Silence begins with the last word, `Receipt.seen_at`, never with `Receipt.since`: an OPA that enforced one commit
    for weeks was not silent meanwhile. A receipt that does not tell (of an older agent), or whose time nobody can read,
    counts until a person forgets it.
    """
    if receipt.seen_at is None:
        return False
    try:
        return now - datetime.fromisoformat(receipt.seen_at) > after
    except (ValueError, TypeError):
        return False
