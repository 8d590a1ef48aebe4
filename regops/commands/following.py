"""`regops status --watch`: the server's events, joined to the document of `GET /status` as it is now."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from reconciler.core.errors import RegopsError, StalledError, TransientError
from regops.commands.target import Target, refused

if TYPE_CHECKING:
    import aiohttp

_CONNECT = 10.0
_SILENCE = 60.0
"""Seconds without a word, of which a server says one every 15, after which the connection counts as lost."""


class Followed:
    """The status, event by event."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self._whole = False
        self._agents: dict[str, dict[str, Any]] = {}

    @property
    def whole(self) -> bool:
        """Whether the agents have come too, which follow the status that a server begins with."""
        return self._whole and "conditions" in self.document

    def happened(self, name: str, data: Any) -> bool:
        """Take an event in; whether the document is another one since. Raises when the server ends the stream."""
        if name == "end":
            raise _ended(data)
        if name == "status":
            self.document = {**data, "agents": self._listed()}
        elif name == "agents":
            self._agents |= {f"{each['datacentre']}/{each['id']}": each for each in data["agents"]}
            for gone in data["removed"]:
                self._agents.pop(gone, None)
            self._whole = True
            self.document = {**self.document, "agents": self._listed()}
        return name in {"status", "agents"}

    def _listed(self) -> list[dict[str, Any]]:
        return [self._agents[name] for name in sorted(self._agents)]


async def follow(target: Target) -> AsyncIterator[dict[str, Any]]:
    """The document each time it changes, as long as the connection lasts.

    Raises `TransientError` when it is lost or the server is away, `StalledError` for what the server refuses.
    """
    import aiohttp  # noqa: PLC0415 commands that do not ask a server start quicker without it

    url, headers = f"{target.url()}/events", {"Authorization": f"Bearer {target.token()}"}
    timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT, sock_read=_SILENCE)
    followed = Followed()
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as answer:
            if answer.status >= 400:  # noqa: PLR2004 errors of HTTP
                raise await refused(url, answer)
            async for events in _events(answer.content):
                changed = [followed.happened(name, data) for name, data in events]
                if any(changed) and followed.whole:
                    yield followed.document
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise _lost(url, f"{type(error).__name__}") from error
    raise _lost(url, "the server has ended the stream")


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[list[tuple[str, Any]]]:
    """Name and JSON of the server-sent events that came together; comments are none. A line may be long."""
    name, data, rest = "", "", b""
    async for chunk in stream.iter_any():
        found: list[tuple[str, Any]] = []
        *lines, rest = (rest + chunk).split(b"\n")
        for line in (raw.decode() for raw in lines):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = value
            elif not line and data:
                found.append((name, json.loads(data)))
                name, data = "", ""
        yield found


def _ended(data: Any) -> RegopsError:
    if data.get("reason") == "token_expired":
        return StalledError("the token has expired", reason="Unauthorized", remedy="Get a new one, and start again.")
    return StalledError("this token may not follow the status any more", reason="Unauthorized", remedy="Ask an admin.")


def _lost(url: str, why: str) -> TransientError:
    return TransientError(f"{url} is lost: {why}", reason="ServerUnavailable")


async def again(target: Target, told: Any, pause: float = 1.0) -> AsyncIterator[dict[str, Any]]:
    """`follow`, connecting again and again once it was connected; ``told`` gets each failure's words.

    Raises the first failure, and what a server refuses.
    """
    connected = False
    while True:
        try:
            async for document in follow(target):
                connected = True
                yield document
        except TransientError as error:
            if not connected:
                raise
            told(str(error))
        await asyncio.sleep(pause)
