"""``regops dev``: the whole system on one machine, every part a process of its own, supervised from one terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
import click

from reconciler.agent.opa_config import opa_config
from reconciler.core.errors import RegopsError, StalledError
from regops import devwatch, toolchain
from regops.commands.errors import one_line
from regops.commands.target import DEFAULT_STATE
from regops.commands.token import token
from regops.devstate import DevState, git
from regops.supervise import Program, Supervisor

_START_SECONDS = 60.0
_FLIP_SECONDS = 15.0
DEMO_FILE = "projects/billing/rego.rego"
DEMO_LINES = ("refund_window_days := 30", "refund_window_days := 14")
DEMO_QUERY = "/v1/data/projects/billing/authz/allow"
DEMO_INPUT = {
    "claims": {"sub": "ann", "roles": ["billing_agent"], "project": "billing"},
    "action": "refund",
    "refund": {"amount": 40, "currency": "EUR", "age_days": 20, "sold_by": "bob"},
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    state: Path
    remote: str | None
    branch: str
    path: str
    opas: int
    auto_ports: bool
    reset: bool
    ready_file: Path | None
    once: bool


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[COMMAND]",
    epilog="""\b
Examples:
  regops dev                         everything, on the usual ports; Ctrl-C ends it
  regops dev --ports auto --opas 3   three OPAs, on free ports
  regops dev --git URL               with a policy repository of your own
  regops dev --once                  start, push one change, show the decision flip, end
  regops dev token --project billing a token for its API
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
@click.option("--branch", default="main", show_default=True, help="The branch to follow.")
@click.option("--path", "path", default="policies", show_default=True, help="Folder of the policies in it.")
@click.option(
    "--opas", type=click.IntRange(1, 32), default=1, show_default=True, help="How many OPAs, each with agent."
)
@click.option("--ports", type=click.Choice(["usual", "auto"]), default="usual", show_default=True)
@click.option("--reset", is_flag=True, help="Forget the former state first.")
@click.option("--ready-file", type=click.Path(path_type=Path), help="Written (JSON) when every process answers.")
@click.option("--once", is_flag=True, help="Push one change, print the decision before and after, and end.")
@click.pass_context
@one_line
def dev(context: click.Context, /, ports: str, **options: Any) -> None:
    """Run the whole system here: etcd, OPA, a MongoDB-compatible server, a policy repository, server and agent."""
    if context.invoked_subcommand is not None:
        return
    raise SystemExit(asyncio.run(_main(Options(auto_ports=ports == "auto", **options))))


dev.add_command(token)


async def _main(options: Options) -> int:
    task = asyncio.ensure_future(_Dev(options).run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0


class _Dev:
    """One run of the command."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._state = DevState(options.state)
        self._supervisor = Supervisor(_say, self._started, last=frozenset({"etcd", "mongo"}))
        self._document: dict[str, Any] = {}

    async def run(self) -> int:
        """Start everything, wait, end everything."""
        tools = {name: await asyncio.to_thread(toolchain.ensure, name, _say) for name in ("etcd", "opa")}
        ended = self._state.open(reset=self._options.reset)
        if ended:
            _say(f"ended what a former run had left: {', '.join(ended)}")
        began = monotonic()
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
                await self._start(tools, session)
                _say(f"ready after {monotonic() - began:.1f} s")
                return await self._go(session)
        finally:
            self._state.unready(self._options.ready_file)
            await self._supervisor.stop()
            self._state.close()

    async def _go(self, session: aiohttp.ClientSession) -> int:
        watching = asyncio.create_task(devwatch.narrate(self._document, _say))
        try:
            if self._options.once:
                return await self._flip(session)
            _say(_welcome(self._document, self._options.path))
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

    async def _start(self, tools: dict[str, Path], session: aiohttp.ClientSession) -> None:
        options, folder = self._options, self._state.folder
        indexes = range(options.opas)
        names = ["api", "etcd", "etcd-peer", "mongo", *(f"{kind}-{i}" for i in indexes for kind in ("agent", "opa"))]
        usual = {"api": 8080, "etcd": 2379, "etcd-peer": 2380, "mongo": 27017}
        usual |= {f"{kind}-{i}": base + i for i in indexes for kind, base in (("agent", 8282), ("opa", 8181))}
        ports = self._state.ports(names, None if options.auto_ports else usual)
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        remote = options.remote
        if remote is None:
            remote = await asyncio.to_thread(self._state.repository, options.branch, options.path)
        programs = _Programs(folder, ports, urls, session, tools, remote, options)
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
            "mongo": f"mongodb://127.0.0.1:{ports['mongo']}",
        }
        self._started(self._supervisor.pids())

    # --- once --------------------------------------------------------------------------------------------------------

    async def _flip(self, session: aiohttp.ClientSession) -> int:
        """Push the demonstration's change and wait for the other decision."""
        opa = self._document["opa"][0] + DEMO_QUERY
        before = await _until(lambda: _decision(session, opa), lambda answer: answer is not None)
        clone = self._state.folder / "git" / "once"
        await asyncio.to_thread(self._change, clone)
        pushed = monotonic()
        _say(f"before the push:  {opa} → {json.dumps(before)}")
        after = await _until(lambda: _decision(session, opa), lambda answer: answer is not None and answer != before)
        _say(f"after the push:   {opa} → {json.dumps(after)}")
        _say(f"git push returned → OPA decides by the new rule: {(monotonic() - pushed) * 1000:.0f} ms")
        await asyncio.sleep(0.3)  # the line with the stages is on its way
        return 0

    def _change(self, clone: Path) -> None:
        shutil.rmtree(clone, ignore_errors=True)
        git("clone", "-q", "-b", self._options.branch, self._document["git"], str(clone), folder=self._state.folder)
        file = clone / self._options.path / DEMO_FILE
        if not file.is_file():
            raise StalledError(f"the repository has no {DEMO_FILE}", remedy="--once works with the seeded repository.")
        text = file.read_text(encoding="utf-8")
        old, new = DEMO_LINES if DEMO_LINES[0] in text else DEMO_LINES[::-1]
        file.write_text(text.replace(old, new), encoding="utf-8")
        _say(f"pushing a change of {DEMO_FILE}: {old} → {new}")
        git("commit", "-q", "-a", "-m", f"Billing: {new}", folder=clone)
        git("push", "-q", "origin", self._options.branch, folder=clone)


@dataclass(frozen=True, slots=True)
class _Programs:
    """The command line, environment and sign of life of each process."""

    folder: Path
    ports: dict[str, int]
    urls: dict[str, str]
    session: aiohttp.ClientSession
    tools: dict[str, Path]
    remote: str
    options: Options

    def etcd(self) -> Program:
        peer = self.urls["etcd-peer"]
        words = [str(self.tools["etcd"]), "--name", "dev", "--data-dir", str(self.folder / "etcd")]
        words += ["--listen-client-urls", self.urls["etcd"], "--advertise-client-urls", self.urls["etcd"]]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"dev={peer}"]
        words += ["--max-request-bytes", "2097152", "--quota-backend-bytes", str(2 * 1024**3), "--log-level", "warn"]
        words += ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"]
        words += ["--heartbeat-interval", "50", "--election-timeout", "250"]
        return Program("etcd", words, self._log("etcd"), self._http(f"{self.urls['etcd']}/readyz"))

    def mongo(self) -> Program:
        settings = self.folder / "mongo.toml"
        settings.touch()
        words = [sys.executable, "-m", "secantus", "--config", str(settings), "--host", "127.0.0.1"]
        words += ["--port", str(self.ports["mongo"]), "--storage-path", str(self.folder / "mongo")]
        words += ["--log-level", "WARNING", "--cache-size", "64M", "--sync-on-commit"]
        return Program("mongo", words, self._log("mongo"), self._tcp(self.ports["mongo"]))

    def server(self) -> Program:
        environment = {
            **self._common(),
            "REGOPS_GIT_REMOTE": self.remote,
            "REGOPS_GIT_BRANCH": self.options.branch,
            "REGOPS_GIT_PATH": self.options.path,
            "REGOPS_GIT_POLL_INTERVAL": "1",
            "REGOPS_SERVER_PORT": str(self.ports["api"]),
            "REGOPS_SERVER_STATE": str(self.folder / "server"),
            "REGOPS_SERVER_ID": "server",
            "REGOPS_OPA_BINARY": str(self.tools["opa"]),
        }
        words = [sys.executable, "-m", "regops", "server"]
        return Program("server", words, self._log("server"), self._http(f"{self.urls['api']}/readyz"), environment)

    def agent(self, index: int) -> Program:
        name = f"agent-{index}"
        environment = {
            **self._common(),
            "REGOPS_AGENT_PORT": str(self.ports[name]),
            "REGOPS_AGENT_ID": name,
            "REGOPS_AGENT_STATE": str(self.folder / name),
            "REGOPS_AGENT_OPA": self.urls[f"opa-{index}"],
        }
        words = [sys.executable, "-m", "regops", "agent"]
        return Program(name, words, self._log(name), self._http(f"{self.urls[name]}/readyz"), environment)

    def opa(self, index: int) -> Program:
        name = f"opa-{index}"
        config = self.folder / f"{name}.yaml"
        config.write_text(opa_config(self.urls[f"agent-{index}"]), encoding="utf-8")
        words = [str(self.tools["opa"]), "run", "--server", "--addr", f"127.0.0.1:{self.ports[name]}"]
        words += ["--config-file", str(config), "--skip-version-check", "--shutdown-grace-period", "1"]
        words += ["--log-level", "error"]
        return Program(name, words, self._log(name), self._http(f"{self.urls[name]}/health"))

    def _common(self) -> dict[str, str]:
        """No setting of the user's shell may move the ports or folders of a child."""
        groups = ("REGOPS_GIT_", "REGOPS_ETCD_", "REGOPS_SERVER_", "REGOPS_AGENT_")
        cleared = {name: "" for name in os.environ if name.startswith(groups)}
        if cleared:
            raise StalledError(
                f"{', '.join(sorted(cleared))} would change what dev starts", remedy="Unset it for `regops dev`."
            )
        return {"REGOPS_ETCD_ENDPOINTS": self.urls["etcd"], "PYTHONUNBUFFERED": "1"}

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _http(self, url: str) -> Callable[[], Awaitable[bool]]:
        async def answers() -> bool:
            try:
                async with self.session.get(url) as answer:
                    return answer.status == 200  # noqa: PLR2004 OK
            except (aiohttp.ClientError, TimeoutError):
                return False

        return answers

    def _tcp(self, port: int) -> Callable[[], Awaitable[bool]]:
        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return True

        return answers


def _welcome(document: dict[str, Any], path: str) -> str:
    query = json.dumps({"input": DEMO_INPUT}, separators=(",", ":"))
    file = f"{path}/{DEMO_FILE}"
    return f"""
  API     {document["api"]}/status
  OPA     {", ".join(document["opa"])}
  Git     {document["git"]}
  etcd    {", ".join(document["etcd"])}
  MongoDB {document["mongo"]}

Copy these three lines into another terminal: clone, change a policy and push, ask OPA

  git clone {document["git"]} my-policies && cd my-policies
  sed -i 's/{DEMO_LINES[0]}/{DEMO_LINES[1]}/' {file} && git -c user.name=me -c user.email=me@localhost commit -am "Shorter refunds" && git push
  curl -s {document["opa"][0]}{DEMO_QUERY} -d '{query}'

Ctrl-C ends everything. What is applied shows up here:
"""  # noqa: E501 lines to be copied whole


async def _decision(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with session.post(url, json={"input": DEMO_INPUT}) as answer:
            return (await answer.json()).get("result")
    except (aiohttp.ClientError, TimeoutError):
        return None


async def _until(ask: Callable[[], Awaitable[Any]], good: Callable[[Any], bool]) -> Any:
    try:
        async with asyncio.timeout(_FLIP_SECONDS):
            while not good(answer := await ask()):  # noqa: ASYNC110 another process changes it
                await asyncio.sleep(0.005)
            return answer
    except TimeoutError as error:
        raise RegopsError(f"the decision did not change within {_FLIP_SECONDS:g} s; see the logs") from error


def _say(line: str) -> None:
    stamp = "" if line.startswith(("\n", " ")) else f"{datetime.now().astimezone():%H:%M:%S}  "
    click.echo(f"{stamp}{line}")
    sys.stdout.flush()
