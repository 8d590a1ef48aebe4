"""The agent as a process. What a server needs is not imported here: there is an agent beside every OPA."""

from __future__ import annotations

from reconciler.agent.agent import Agent, AgentConfig
from reconciler.agent.scope import ALL, Scope
from reconciler.core.shards import Shard
from reconciler.settings import AgentSettings, Settings
from regops import compose
from regops.process import process_registry


async def serve_agent(settings: Settings) -> None:
    """An agent. Runs until cancelled."""
    own = settings.agent
    config = AgentConfig(
        datacentre=own.datacentre,
        id=own.id,
        state_dir=own.state,
        host=own.host,
        port=own.port,
        scope=_scope(own),
        opa_url=own.opa or None,
        min_opa_version=own.min_opa_version or None,
    )
    tracing = compose.open_tracer(settings.tracing, service="regops-agent", instance=own.id)
    async with compose.open_store(settings.etcd) as store, tracing as tracer:
        keyspace = compose.keyspace(settings.etcd)
        agent = Agent(store, config, keyspace=keyspace, registry=process_registry(), tracer=tracer)
        await agent.run()


def _scope(own: AgentSettings) -> Scope:
    if own.shard:
        return Scope.of_shard(Shard.parse(own.shard))
    return Scope.of_projects(own.projects) if own.projects else ALL
