"""``regops shards``: how callers reach the OPA of a project's shard, and which one that is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from reconciler.core.errors import StalledError
from reconciler.core.model import project_policy
from reconciler.core.shards import MOST, shard_of
from regops.commands.errors import one_line
from regops.commands.target import Target, get, target_options
from regops.gateways import envoy as envoy_gateway
from regops.gateways import haproxy as haproxy_gateway
from regops.gateways.backends import Backends, is_address


@click.group(
    short_help="Gateways that ask the right shard, and whose shard is which.",
    epilog="""\b
Examples:
  regops shards find --of 8 billing web-shop       which shard answers for them
  regops shards haproxy > haproxy.cfg              in front of the fleet of `regops dev --shards 4`
  regops shards envoy --shard-backend 1=opa-1:8181,opa-1b:8181 --shard-backend 2=opa-2:8181
""",
)
def shards() -> None:
    """Configuration for a gateway in front of shards (`regops agent --shard`), so that callers need not know them.

    A gateway asks by the path, /v1/data/projects/PROJECT/...: it computes the shard as agents do, so its configuration
    changes with addresses and with the number of shards, and never with projects. docs/sizing.md says when shards help.
    """


def _backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the OPAs are, handed over as `Backends`; and where the gateway listens."""

    def run(
        *args: Any,
        target: Target,
        shard_backends: tuple[str, ...],
        file: Path | None,
        of: int | None,
        datacentre: str | None,
        **kwargs: Any,
    ) -> Any:
        if shard_backends and file:
            raise click.UsageError("give the OPAs by --shard-backend or by --file, not both")
        try:
            if shard_backends:
                backends = Backends.of_words(shard_backends)
            elif file:
                backends = _of_file(file)
            else:
                fleet = asyncio.run(get(target, "/fleet", having="agents"))
                backends = Backends.of_fleet(fleet["agents"], of, datacentre)
        except ValueError as error:
            raise StalledError(str(error), remedy="Name each shard's OPAs: --shard-backend 1=host:port,…") from error
        return command(*args, backends=backends, **kwargs)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run = target_options(one_line(run))
    run = click.option("--datacentre", metavar="NAME", help="Whose OPAs answer first, of the fleet's.")(run)
    run = click.option("--of", type=click.IntRange(1, MOST), help="Which number of shards, where the fleet has two.")(
        run
    )
    run = click.option(
        "--file", type=click.Path(path_type=Path), help="YAML file of them: {1: [host:port, …], 2: […]}."
    )(run)
    run = click.option(
        "--shard-backend",
        "shard_backends",
        multiple=True,
        metavar="I=HOST:PORT,…",
        help="OPAs of shard I; the others stand in for the first. By default those of the fleet.",
    )(run)
    return click.option(
        "--listen",
        default="127.0.0.1:8180",
        show_default=True,
        metavar="HOST:PORT",
        callback=_address,
        help="Where the gateway listens.",
    )(run)


def _address(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if not is_address(text):
        raise click.BadParameter(f"{text!r} is no HOST:PORT")
    return text


@shards.command(
    short_help="Print a configuration for HAProxy 2.6 or newer.",
    epilog="""\b
Example:
  regops shards haproxy --listen 0.0.0.0:8180 > haproxy.cfg && haproxy -c -f haproxy.cfg
""",
)
@_backend_options
def haproxy(backends: Backends, listen: str) -> None:
    """Print a configuration for HAProxy 2.6 or newer, built with OpenSSL, in front of the shards."""
    click.echo(haproxy_gateway.configuration(backends, listen), nl=False)


@shards.command(
    short_help="Print a configuration for Envoy.",
    epilog="""\b
Example:
  regops shards envoy --listen 0.0.0.0:8180 > envoy.yaml && envoy --mode validate --config-path envoy.yaml
""",
)
@_backend_options
def envoy(backends: Backends, listen: str) -> None:
    """Print a static configuration for Envoy (API v3) in front of the shards."""
    click.echo(envoy_gateway.configuration(backends, listen), nl=False)


@shards.command(
    short_help="Tell which shard answers for a project.",
    epilog="""\b
Example:
  regops shards find --of 8 billing
""",
)
@click.option("--of", type=click.IntRange(1, MOST), required=True, help="How many shards there are.")
@click.argument("projects", nargs=-1, required=True, metavar="PROJECT…")
@one_line
def find(of: int, projects: tuple[str, ...]) -> None:
    """Tell which shard answers for each PROJECT: its name and i/n, as `regops agent --shard` takes it."""
    for project in projects:
        try:
            project_policy(project)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="PROJECT") from error
        click.echo(f"{project} {shard_of(project, of)}/{of}")


def _of_file(file: Path) -> Backends:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML") from error
    if not isinstance(document, dict) or not all(
        isinstance(index, int) and isinstance(addresses, list) for index, addresses in document.items()
    ):
        raise ValueError(f"{file} is no mapping of shards to lists of host:port")
    return Backends.of({index: [str(each) for each in addresses] for index, addresses in document.items()})
