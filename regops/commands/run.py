"""``regops server`` and ``regops agent``: the two processes that run for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from reconciler.agent.opa_config import opa_config
from reconciler.core.shards import Shard
from reconciler.settings import Settings, load
from regops import compose, logs
from regops.commands.errors import one_line
from regops.commands.shard_type import ShardType
from regops.commands.target import own_url
from regops.process import until_signalled

log = logging.getLogger(__name__)

_config = click.option(
    "--config", type=click.Path(path_type=Path), envvar="REGOPS_CONFIG", help="Settings file (docs/settings.md)."
)
_level = click.option(
    "--log-level",
    envvar="REGOPS_LOG_LEVEL",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least that is logged.",
)


@click.command(
    epilog="""\b
Examples:
  regops server --config regops.yaml
  REGOPS_GIT_REMOTE=https://git.example.com/policies.git regops server
  regops server --role api             a replica that only serves
""",
)
@_config
@_level
@click.option(
    "--role",
    type=click.Choice(["all", "api", "reconciler"]),
    default="all",
    show_default=True,
    help="Serve the API, compete for the lead and apply, or both.",
)
@one_line
def server(config: Path | None, log_level: str, role: str) -> None:
    """Serve the API and keep etcd equal to the policy repository.

    Any number of replicas may run; the elected leader applies. Logs are JSON lines on standard error. SIGTERM ends it
    cleanly: a leader hands over at once.
    """
    from regops.serving import serve  # noqa: PLC0415 an agent does not carry a server

    settings = load(config)
    logs.set_up("regops-server", log_level)
    compose.opa_binary(settings)
    _until_signalled(serve(settings, api=role != "reconciler", reconciler=role != "api"))


@click.group(
    invoke_without_command=True,
    epilog="""\b
Examples:
  regops agent                              for an OPA that answers for everything
  regops agent --project billing            a sidecar: the platform and one project
  regops agent --shard 2/8                  the platform and one in eight of all projects
  regops agent opa-config > opa.yaml        the configuration of that OPA
""",
)
@_config
@_level
@click.option(
    "--project",
    "projects",
    multiple=True,
    metavar="NAME",
    help="Only this project (and the platform); may be repeated.",
)
@click.option("--shard", type=ShardType(), help="Only shard I of N, counted from 1 (and the platform).")
@click.pass_context
@one_line
def agent(
    context: click.Context, config: Path | None, log_level: str, projects: tuple[str, ...], shard: Shard | None
) -> None:
    """Serve the applied policy to the OPA beside this agent, and report what that OPA enforces.

    Without --project and --shard, and agent.projects and agent.shard in the settings, that OPA answers for everything.
    How callers reach the right shard: `regops shards`.
    """
    settings = load(config)
    if projects and shard:
        raise click.UsageError("--project and --shard exclude each other: give one of them")
    if projects or shard:
        chosen = settings.agent.model_copy(update={"projects": projects, "shard": str(shard or "")})
        settings = settings.model_copy(update={"agent": chosen})
    context.obj = settings
    if context.invoked_subcommand is None:
        from regops.agent_side import serve_agent  # noqa: PLC0415 `agent opa-config` needs none of it

        logs.set_up("regops-agent", log_level)
        _until_signalled(serve_agent(settings))


@agent.command(
    "opa-config",
    short_help="Print the configuration of the OPA to serve.",
    epilog="""\b
Example:
  regops agent opa-config > opa.yaml && opa run --server --config-file opa.yaml
""",
)
@click.pass_obj
@one_line
def print_opa_config(settings: Settings) -> None:
    """Print the configuration for the OPA that this agent serves, with its address of agent.host and agent.port."""
    click.echo(opa_config(own_url(settings.agent.host, settings.agent.port)), nl=False)


def _until_signalled(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(until_signalled(main))
