"""``GET /events``: what is, as server-sent events, for the page and `regops status --watch`.

Nothing is replayed: who connects gets the whole state, and from then on what became different of it. A listener that
is slow gets the newest state and not each one between, so that nothing piles up for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from aiohttp import web

from api import keys
from api.auth import Action, Caller, may_read
from api.auth.claims import ends_at
from api.envelope import REQUEST_ID, STREAMED
from api.followed import Followed
from api.observing import Observer
from api.passes import narrowed_pass
from api.problems import ProblemError
from api.requests import authorized, caller_of
from api.statusview import Observed, narrowed, status_document
from reconciler.agent.latest import Latest
from reconciler.core.errors import RegopsError
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PLATFORM, PolicyName
from reconciler.core.passes import PassRecord
from reconciler.core.ports import KeyValueStore, Range
from reconciler.metrics import ApiMetrics

log = logging.getLogger(__name__)

HEARTBEAT: Final = 15.0
"""Seconds after which a silent stream says that it lives; the caller's right to listen is looked at again then."""
_GATHER: Final = 0.05
"""Seconds in which changes become one."""
_LOOK_EVERY: Final = 5.0
"""Seconds after which etcd is looked at although it said nothing: it may be away."""
_TICK: Final = 1.0
"""Seconds after which it is looked whether a silent listener is still there."""
_PATIENCE: Final = 30.0
"""Seconds after which a listener that takes nothing is let go."""
_PASSES: Final = 20


@dataclass(frozen=True, slots=True)
class View:
    """What one kind of caller sees, as JSON texts: agents by ``<datacentre>/<id>``, passes by id, oldest first."""

    status: str = ""
    agents: Mapping[str, str] = field(default_factory=dict)
    passes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look. Views are made once for all who see the same."""

    seen: Observed
    passes: tuple[PassRecord, ...]
    at: datetime
    place: Mapping[str, str]
    views: dict[frozenset[str] | None, View] = field(default_factory=dict)

    def view(self, caller: Caller) -> View:
        """What this caller sees."""
        kind = None if may_read(caller, PLATFORM) else caller.projects
        if kind not in self.views:
            self.views[kind] = self._view(lambda name: may_read(caller, name))
        return self.views[kind]

    def _view(self, readable: Callable[[PolicyName], bool]) -> View:
        document = narrowed(status_document(self.seen, self.place, self.at), readable)
        agents = {f"{each['datacentre']}/{each['id']}": _json(each) for each in document.pop("agents")}
        passes = {each.id: _json(narrowed_pass(each.document(), readable)) for each in reversed(self.passes)}
        return View(_json(document), agents, passes)


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
        except (ConnectionError, TimeoutError):
            log.debug("a listener has left")
    return response


async def _stream(request: web.Request, response: web.StreamResponse, board: Board, caller: Caller) -> None:
    sent, snapshot, ends, silent = View(), None, ends_at(caller.claims), 0.0
    while True:
        left = ends - time.time()
        if left <= 0:
            await _write(response, _event("end", _json({"reason": "token_expired"})))
            return
        try:
            async with asyncio.timeout(min(_TICK, left)):
                snapshot = await board.newer(snapshot)
        except TimeoutError:
            if request.transport is None or request.transport.is_closing():
                return  # nothing else tells of a listener that has left
            silent += _TICK
            if silent >= HEARTBEAT:
                if not await _may_still(request):
                    await _write(response, _event("end", _json({"reason": "forbidden"})))
                    return
                await _write(response, ": alive\n\n")
                silent = 0.0
            continue
        if snapshot is None:
            return
        view = snapshot.view(caller)
        text = difference(sent, view)
        if text:
            await _write(response, text)
            silent = 0.0
        sent = view


async def _may_still(request: web.Request) -> bool:
    """While nobody can say, a stream goes on: what it tells was allowed when it began, and ends with its token."""
    try:
        await request.app[keys.AUTHORIZER].authorize(
            caller_of(request), "GET", ("events",), policy=None, action=Action.READ
        )
    except ProblemError as problem:
        return problem.status != 403  # noqa: PLR2004 forbidden
    except RegopsError:
        return True
    return True


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(_PATIENCE):
        await response.write(text.encode("utf-8", "replace"))


def difference(sent: View, now: View) -> str:
    """The events that lead from one view to another."""
    found = []
    if now.status != sent.status:
        found.append(_event("status", now.status))
    changed = [text for name, text in now.agents.items() if sent.agents.get(name) != text]
    removed = [name for name in sent.agents if name not in now.agents]
    if changed or removed or not sent.status:
        found.append(_event("agents", f'{{"agents": [{", ".join(changed)}], "removed": {_json(removed)}}}'))
    found += [_event("pass", text) for name, text in now.passes.items() if sent.passes.get(name) != text]
    return "".join(found)


def _event(name: str, data: str) -> str:
    return f"event: {name}\ndata: {data}\n\n"


def _json(document: Any) -> str:
    """On one line: JSON escapes line breaks."""
    return json.dumps(document, ensure_ascii=False)
