"""Many agents in one process, each with its own connection and watch, without HTTP, disk and OPA.

Told to begin by `benchmarks.fleet`, and answers in lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict

from prometheus_client import CollectorRegistry

from reconciler.adapters.etcd import EtcdStore
from reconciler.agent import publisher
from reconciler.agent.bundle import NO_REVISION, Bundle, content_etag
from reconciler.agent.latest import Pulse
from reconciler.agent.mirror import Mirror
from reconciler.agent.publisher import Publisher
from reconciler.agent.scope import ALL, Scope
from reconciler.agent.state import MirrorState
from reconciler.agent.witness import Identity, Offer, Witness, rfc3339_now
from reconciler.aside import share_the_process
from reconciler.core.keyspace import Keyspace
from reconciler.metrics import AgentMetrics

ACTIVATION = 0.25
"""Seconds until a bundle is active: what an OPA takes for 100 policies."""


class Crowd:
    """Counts the agents of this process that hold a commit, and tells when all do."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._times: dict[str, list[float]] = defaultdict(list)

    def arrived(self, apply: str) -> None:
        times = self._times[apply]
        times.append(time.monotonic())
        if len(times) == self._size:
            say(apply=apply, times=self._times.pop(apply))


class Light:
    """One agent."""

    def __init__(self, endpoint: str, name: str, scope: Scope, crowd: Crowd) -> None:
        self._scope, self._crowd = scope, crowd
        self._store = EtcdStore([endpoint])
        keys, changed, metrics = Keyspace(), Pulse(), AgentMetrics(CollectorRegistry())
        self._mirror = Mirror(self._store, keys, scope)
        self._witness = Witness(
            Identity("bench", name, str(scope)),
            metrics,
            hold=1e6,
            clock=time.monotonic,
            changed=changed.beat,
            stale=lambda: self._mirror.stale_since is not None,
        )
        self._publisher = Publisher(self._store, keys, self._witness.receipt, changed, metrics)

    async def run(self) -> None:
        jobs = (self._mirror.run(), self._publisher.run_receipts(), self._publisher.run_alive(), self._follow())
        await asyncio.gather(*jobs)

    async def _follow(self) -> None:
        state: MirrorState | None = None
        active: str | None = None
        while True:
            state = await self._mirror.wait_newer(state)
            if state.applied is not None:
                self._crowd.arrived(state.applied.id)
            active = await self._activated(active, state)

    async def _activated(self, active: str | None, state: MirrorState) -> str:
        """The OPA beside it: it polls, is sent what it has not, activates that, and polls with it."""
        etag, told, witness = content_etag(self._scope, state.policies), rfc3339_now(), self._witness
        commit = state.commit or NO_REVISION
        witness.offered(Offer(Bundle(etag, commit, b""), commit, told, state.applied.at if state.applied else None))
        if etag != active:
            poll = witness.polled(active, "peer")
            witness.sending(etag)
            witness.delivered("peer")
            witness.answered(poll, dropped=False)
            await asyncio.sleep(ACTIVATION)
            witness.polled(etag, "peer")
        return etag


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


async def main(endpoint: str, first: int, count: int, policies: int) -> None:
    """``policies`` 0: each agent answers for everything."""
    share_the_process()
    publisher._MOVES_ON_WITHIN = float(os.environ.get("REGOPS_BENCH_WITHIN", publisher._MOVES_ON_WITHIN))  # type: ignore[misc]  # noqa: SLF001 the experiment
    crowd = Crowd(count)
    numbers = range(first, first + count)
    scopes = [Scope.of_projects([f"p{number % policies}"]) if policies else ALL for number in numbers]
    agents = [Light(endpoint, f"a{number}", scope, crowd) for number, scope in zip(numbers, scopes, strict=True)]
    say(ready=count)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(agent.run() for agent in agents))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
