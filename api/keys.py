"""What the handlers find in the application: typed keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry

from api.statusview import Observed
from reconciler.agent.state import MirrorState
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore
from reconciler.core.records import Record

RecordT = TypeVar("RecordT", bound=Record)


class Mirrored(Protocol):
    """The mirror, as far as handlers know it."""

    @property
    def state(self) -> MirrorState | None:
        """The newest whole state."""
        ...


STORE: web.AppKey[KeyValueStore] = web.AppKey("store")
KEYSPACE = web.AppKey("keyspace", Keyspace)
MIRROR: web.AppKey[Mirrored] = web.AppKey("mirror")
REGISTRY = web.AppKey("registry", CollectorRegistry)
SOURCE: web.AppKey[Mapping[str, str]] = web.AppKey("source")
LAST_SEEN: web.AppKey[list[Observed]] = web.AppKey("last_seen")
WAITS_FOR: web.AppKey[Callable[[], Mapping[str, str]]] = web.AppKey("waits_for")
