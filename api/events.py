"""``GET /events``: what is, as server-sent events, for the page and `regops status --watch`.

Nothing is replayed: who connects gets the whole state, and from then on what became different of it. A listener that
is slow gets the newest state and not each one between, so that nothing piles up for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Final, NoReturn

from aiohttp import web

from api import keys
from api.auth import Action, Caller, authorization_of
from api.auth.claims import ends_at
from api.envelope import REQUEST_ID, STREAMED
from api.event_views import Snapshot, View, difference, event_text, json_text
from api.followed import Followed
from api.observing import Observer
from api.problems import ProblemError
from api.requests import authorized
from api.statusview import Observed
from api.ui import session
from reconciler.agent.latest import Latest
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore, Range
from reconciler.metrics import ApiMetrics

log = logging.getLogger(__name__)

HEARTBEAT: Final = 15.0
"""Seconds after which a silent stream says that it lives, and after which it is asked again, silent or not, whether its
caller may listen."""
_GATHER: Final = 0.05
"""Seconds in which changes become one."""
_LOOK_EVERY: Final = 5.0
"""Seconds after which etcd is looked at although it said nothing: it may be away."""
_TICK: Final = 1.0
"""Seconds after which it is looked whether a silent listener is still there."""
_PATIENCE: Final = 30.0
"""Seconds after which a listener that takes nothing is let go."""
_PASSES: Final = 20


class Board:
    """The newest snapshot, for any number of listeners up to ``most``. Run `run` as a task; it looks at etcd only while
    somebody listens."""

    def __init__(
        self,
        store: KeyValueStore,
        keyspace: Keyspace,
        observer: Observer,
        place: Mapping[str, str],
        *,
        metrics: ApiMetrics,
        most: int,
    ) -> None:
        self._metrics = metrics
        self._observer = observer
        self._place = place
        self._most = most
        self._listeners = 0
        self._somebody = asyncio.Event()
        self._closing = False
        self._latest: Latest[Snapshot] = Latest()
        self._news = Followed(
            store,
            *(Range(key) for key in (keyspace.status, keyspace.applied, keyspace.suspended, keyspace.leader)),
            *(Range(key, prefix=True, keys_only=True) for key in (keyspace.helds, keyspace.receipts, keyspace.alives)),
            Range(keyspace.passes, prefix=True, keys_only=True),
            decode=lambda _: None,
        )

    async def run(self) -> NoReturn:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._news.run())
            group.create_task(self._look())
        raise AssertionError("a task without an end has ended")

    async def _look(self) -> NoReturn:
        while True:
            await self._somebody.wait()
            changed = asyncio.ensure_future(self._news.changed())
            try:
                await asyncio.sleep(0)  # it listens from here on: nothing is missed while looking
                seen = await self._observer.look()
                with contextlib.suppress(RegopsError):
                    await self._observer.passes()
                passes = tuple(self._observer.last_passes[:_PASSES])
                self._latest.set(Snapshot(seen, passes, datetime.now(UTC), self._place))
                await asyncio.wait({changed}, timeout=_LOOK_EVERY)
            finally:
                changed.cancel()
            await asyncio.sleep(_GATHER)

    def _ended(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Every stream ends, now and from now on."""
        self._closing = True
        self._latest.set(Snapshot(Observed(), (), datetime.now(UTC), self._place))

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """While open, somebody listens. Raises the 503 when too many do."""
        if self._listeners >= self._most or self._closing:
            raise ProblemError(503, "unavailable", "too many listen already", headers={"Retry-After": "10"})
        self._listeners += 1
        self._metrics.listeners.inc()
        if self._listeners == 1:
            self._latest.value = None  # what was seen while nobody listened is old
        self._somebody.set()
        try:
            yield
        finally:
            self._listeners -= 1
            self._metrics.listeners.dec()
            if not self._listeners:
                self._somebody.clear()

    async def newer(self, than: Snapshot | None) -> Snapshot | None:
        """The next snapshot; ``None`` when the replica ends."""
        found = than if self._ended() else await self._latest.wait_newer(than)
        return None if self._ended() else found


async def events(request: web.Request) -> web.StreamResponse:
    """Streams until the caller leaves, its token ends, or the replica does."""
    caller = await authorized(request, None, Action.READ)
    board = request.app[keys.BOARD]
    async with board.listening():
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "X-Content-Type-Options": "nosniff",
                "X-Request-ID": request[REQUEST_ID],
            }
        )
        try:
            await response.prepare(request)
            request[STREAMED] = time.perf_counter()
            await _write(response, "retry: 2000\n\n")
            await _stream(request, response, board, caller)
            async with asyncio.timeout(_PATIENCE):
                await response.write_eof()
        except ConnectionError:
            log.debug("a listener has left")
        except TimeoutError:
            log.info("a listener takes nothing and is let go", extra={"request_id": request[REQUEST_ID]})
            if request.transport is not None:
                request.transport.abort()  # else the server would wait without end for it to take what was written
    return response


async def _stream(request: web.Request, response: web.StreamResponse, board: Board, caller: Caller) -> None:
    """Time is looked at in every turn: on a busy stream nothing ever times out."""
    sent, snapshot, ends = View(), None, ends_at(caller.claims)
    checked_at = written_at = monotonic()
    while request.transport is not None and not request.transport.is_closing():  # nothing else tells who has left
        left = ends - time.time()
        over = "token_expired" if left <= 0 else None
        if over is None and monotonic() - checked_at >= HEARTBEAT:
            over, checked_at = await _refused(request), monotonic()
        if over is not None:
            await _write(response, event_text("end", json_text({"reason": over})))
            return
        if monotonic() - written_at >= HEARTBEAT:
            await _write(response, ": alive\n\n")
            written_at = monotonic()
        try:
            async with asyncio.timeout(min(_TICK, left)):
                snapshot = await board.newer(snapshot)
        except TimeoutError:
            continue
        if snapshot is None:
            return
        view = snapshot.view(caller)
        text = difference(sent, view)
        if text:
            await _write(response, text)
            written_at = monotonic()
        sent = view


async def _refused(request: web.Request) -> str | None:
    """Why the caller may not listen any more: its token counts no longer (the issuer has withdrawn the key), or it may
    not read. While nobody can say, a stream goes on: what it tells was allowed when it began, and ends with its token.
    """
    try:
        shown = session.presented(request, authorization_of(request.headers))
        caller = await request.app[keys.VERIFIER].verify(shown)
        await request.app[keys.AUTHORIZER].authorize(caller, "GET", ("events",), policy=None, action=Action.READ)
    except ProblemError as problem:
        return {401: "unauthorized", 403: "forbidden"}.get(problem.status)
    except RegopsError:
        return None
    return None


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(_PATIENCE):
        await response.write(text.encode("utf-8", "replace"))
