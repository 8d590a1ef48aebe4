"""``regops dev``: the whole system on one machine, every part a process of its own, supervised from one terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import click
from click.core import ParameterSource

from reconciler.settings import load
from regops import devdemo, devwatch, toolchain
from regops.commands.errors import one_line
from regops.commands.show import show
from regops.commands.target import DEFAULT_STATE
from regops.commands.token import token
from regops.devenvironment import inherited
from regops.devprograms import Options, Programs
from regops.devrouter import route
from regops.devsettle import forget_former, settle
from regops.devstate import DevState
from regops.issuer import Issuer, ready_entries
from regops.issuer import serve as serve_keys
from regops.supervise import Supervisor

_START_SECONDS = 60.0


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[COMMAND]",
    epilog="""\b
Examples:
  regops dev                         everything, on the usual ports; Ctrl-C ends it
  regops dev --ports auto --opas 3   three OPAs, on free ports
  regops dev --shards 4              four OPAs with a part of the projects each, and a router
  regops dev --git URL               with a policy repository of your own
  regops dev --once                  start, push one change, show the decision flip, end
  regops dev token --project billing a token for its API
  regops dev show api                where its API is
  regops dev --reset                 begin again with the policies of policies-example/
""",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    envvar="REGOPS_STATE",
    default=DEFAULT_STATE,
    show_default=True,
    help="Folder of everything that it keeps.",
)
@click.option("--git", "remote", metavar="URL", help="An existing policy repository instead of the seeded one.")
@click.option("--branch", default="main", show_default=True, metavar="NAME", help="The branch to follow.")
@click.option(
    "--path", "path", default="policies", show_default=True, metavar="FOLDER", help="Folder of the policies in it."
)
@click.option(
    "--opas", type=click.IntRange(1, 32), default=1, show_default=True, help="How many OPAs, each with agent."
)
@click.option(
    "--shards",
    type=click.IntRange(1, 32),
    metavar="N",
    help="Instead N OPAs with a shard of the projects each, and a router in front of them (for trying out only).",
)
@click.option(
    "--ports",
    type=click.Choice(["usual", "auto"]),
    default="usual",
    show_default=True,
    help="8080 (API), 8090 (keys), 8180 (router), 8181 (OPA), 8282 (agent), 2379, 2380 (etcd), 27017 (MongoDB); or "
    "free ones, kept.",
)
@click.option("--reset", is_flag=True, help="Forget the former state first: its repository, etcd, everything.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written (JSON) when every process answers.")
@click.option("--once", is_flag=True, help="Push one change, print the decision before and after, and end.")
@click.pass_context
@one_line
def dev(context: click.Context, /, ports: str, **options: Any) -> None:
    """Run the whole system here: etcd, OPA, a MongoDB-compatible server, a policy repository, server and agent.

    It prints where everything is and three lines to copy, then each applied commit with its timings, what is held and
    what goes wrong. Ctrl-C, or SIGTERM, ends all of it; what was pushed is there again the next time. The log of each
    process lies in STATE/logs. Settings of the groups policy, guard, loop and api may be given as REGOPS_ variables.
    """
    if context.invoked_subcommand is not None:
        return
    if options["shards"] is not None:
        if context.get_parameter_source("opas") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--opas and --shards exclude each other: each shard has one OPA here")
        options["opas"] = options["shards"]
    raise SystemExit(asyncio.run(_main(Options(auto_ports=ports == "auto", **options))))


dev.add_command(token)
dev.add_command(show)


async def _main(options: Options) -> int:
    task = asyncio.ensure_future(_Dev(options).run())
    loop = asyncio.get_running_loop()
    ends = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # no nohup: the terminal was closed
        ends.append(signal.SIGHUP)
    for number in ends:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):  # the terminal may be closed
            _say(f"ended; the next run on {options.state} goes on where this one was")
        return 0


class _Dev:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state = DevState(options.state)
        environment, self._left_out = inherited(os.environ)
        place = {"REMOTE": options.remote or "", "BRANCH": options.branch, "PATH": options.path}
        load(None, environment | {f"REGOPS_GIT_{name}": value for name, value in place.items()})
        self._supervisor = Supervisor(_say, self._started, last=frozenset({"etcd", "mongo"}), environment=environment)
        self._document: dict[str, Any] = {}
        self._began = datetime.now(UTC)

    async def run(self) -> int:
        """Start everything, wait, end everything."""
        if self._left_out:
            _say(f"left out of what is started here: {', '.join(self._left_out)}")
        ended = self._state.open(reset=self._options.reset)
        if ended:
            _say(f"ended what a former run had left: {', '.join(ended)}")
        try:
            self._state.unready(self._options.ready_file)
            tools = {name: await asyncio.to_thread(toolchain.ensure, name, _say) for name in ("etcd", "opa")}
            began = monotonic()
            async with contextlib.AsyncExitStack() as stack:
                timeout = aiohttp.ClientTimeout(total=2)
                session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
                issuer = Issuer.open(self._state.folder, create=True)
                ports = self._ports()
                jwks_url = await stack.enter_async_context(serve_keys(issuer, ports["issuer"]))
                if self._options.shards is not None:
                    opas = [f"http://127.0.0.1:{ports[f'opa-{i}']}" for i in range(self._options.opas)]
                    await stack.enter_async_context(route(opas, ports["router"]))
                await self._start(tools, session, ports, jwks_url)
                self._document |= ready_entries(issuer, jwks_url, "billing")
                ticket = await asyncio.to_thread(self._state.ticket, self._document["tokens"]["admin"])
                self._document["page"] = f"{self._document['api']}/login?ticket={ticket}"
                await forget_former(self._document)
                await settle(session, self._document)
                self._started(self._supervisor.pids())
                _say(f"ready after {monotonic() - began:.1f} s")
                return await self._go(session)
        finally:
            self._state.unready(self._options.ready_file)
            await self._supervisor.stop()
            self._state.close()

    async def _go(self, session: aiohttp.ClientSession) -> int:
        if not self._options.once:
            text = await asyncio.to_thread(devdemo.policy_text, self._document, self._state.bare)
            _say(devdemo.welcome(self._document, None if self._options.remote else text))
        watching = asyncio.create_task(devwatch.narrate(self._document, _say, self._began))
        try:
            if self._options.once:
                await devdemo.flip(session, self._document, self._state.folder / "git", _say)
                return 0
            await watching
            return 0
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _started(self, pids: dict[str, int]) -> None:
        self._state.remember(pids)
        if self._document:
            self._document["pids"] = {"dev": os.getpid(), **pids}
            self._state.ready(self._document, self._options.ready_file)

    # --- starting ----------------------------------------------------------------------------------------------------

    def _ports(self) -> dict[str, int]:
        usual = {"api": 8080, "issuer": 8090, "etcd": 2379, "etcd-peer": 2380, "mongo": 27017}
        indexes = range(self._options.opas)
        if self._options.shards is not None:
            usual["router"] = 8180
        usual |= {f"{kind}-{i}": base + i for i in indexes for kind, base in (("agent", 8282), ("opa", 8181))}
        return self._state.ports(list(usual), None if self._options.auto_ports else usual)

    async def _start(
        self, tools: dict[str, Path], session: aiohttp.ClientSession, ports: dict[str, int], jwks_url: str
    ) -> None:
        options, folder = self._options, self._state.folder
        indexes = range(options.opas)
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        secret = await asyncio.to_thread(self._state.secret)
        remote = options.remote
        if remote is None:
            remote = await asyncio.to_thread(self._state.repository, options.branch, options.path)
        programs = Programs(folder, ports, urls, session, tools, remote, jwks_url, options)
        await asyncio.gather(
            self._supervisor.start(programs.etcd(), _START_SECONDS),
            self._supervisor.start(programs.mongo(), _START_SECONDS),
            self._supervisor.start(programs.server(), _START_SECONDS),
            *(self._supervisor.start(programs.agent(i), _START_SECONDS) for i in indexes),
            *(self._supervisor.start(programs.opa(i), _START_SECONDS) for i in indexes),
        )
        self._document = {
            "api": urls["api"],
            "git": remote,
            "branch": options.branch,
            "path": options.path,
            "etcd": [urls["etcd"]],
            "opa": [urls[f"opa-{i}"] for i in indexes],
            "agents": [urls[f"agent-{i}"] for i in indexes],
            "mongo": f"mongodb://127.0.0.1:{ports['mongo']}",
            "webhook_secret": secret,
            **({"router": urls["router"]} if "router" in urls else {}),
        }


def _say(line: str) -> None:
    stamp = "" if line.startswith(("\n", " ")) else f"{datetime.now().astimezone():%H:%M:%S}  "
    click.echo(f"{stamp}{line}")
    sys.stdout.flush()
