"""Which requests are traced."""

from __future__ import annotations

import pytest
from fixtures.collector import Collector
from fixtures.etcd import eventually
from fixtures.replicas import World

from reconciler.settings import TracingSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_probes_scrapes_and_streams_leave_no_span(world: World) -> None:
    """Each probe was the root of a trace that was kept, and a stream's span came when its listener left."""
    with Collector() as collector:
        async with world.replica(reconciler=False, tracing=TracingSettings(endpoint=collector.url)) as replica:
            for path in ("/healthz", "/readyz", "/metrics"):
                await replica.get(path, bearer="")
            async with replica.events() as events:
                await anext(events)
            await replica.get("/status")
            await eventually(lambda: any(each.name == "GET /status" for each in collector.spans), 15)
        names = {each.name for each in collector.spans}
        assert not names & {"GET /healthz", "GET /readyz", "GET /metrics", "GET /events"}
