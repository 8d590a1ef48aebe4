"""The application: typed keys, one middleware, ONE route table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry

from api import keys, policies, problems, status
from api.statusview import Observed
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import KeyValueStore
from reconciler.metrics import ApiMetrics


def create_app(
    *,
    store: KeyValueStore,
    keyspace: Keyspace,
    mirror: keys.Mirrored,
    source: Mapping[str, str],
    registry: CollectorRegistry,
    waits_for: Callable[[], Mapping[str, str]] = dict,
) -> web.Application:
    """The HTTP face of one replica. ``source`` is {remote, branch, path}, shown while no leader has told its own.

    ``waits_for``: what else keeps the replica from being ready, by outside system (see `api.status.readyz`).
    """
    app = web.Application(middlewares=[problems.middleware(ApiMetrics(registry))])
    app[keys.STORE] = store
    app[keys.KEYSPACE] = keyspace
    app[keys.MIRROR] = mirror
    app[keys.SOURCE] = source
    app[keys.REGISTRY] = registry
    app[keys.WAITS_FOR] = waits_for
    app[keys.LAST_SEEN] = [Observed()]
    app.add_routes(
        [
            web.get("/healthz", status.healthz),
            web.get("/readyz", status.readyz),
            web.get("/metrics", status.metrics),
            web.get("/status", status.status),
            web.get("/policies", policies.list_policies),
            web.get("/policies/platform", policies.get_platform),
            web.get("/policies/{project}", policies.get_project),
        ]
    )
    return app
