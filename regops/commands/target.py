"""Which system a command speaks to: a running ``regops dev``, a server by URL, or the settings of one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click
from click.core import ParameterSource

from reconciler.core.errors import RegopsError, StalledError, StoreError
from reconciler.settings import GitSettings, Settings, load

if TYPE_CHECKING:
    import aiohttp

DEFAULT_STATE = Path(".regops/dev")
_OPTIONS = ("state", "server", "config", "token_file")
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """What the options say. Nothing is read before it is asked for."""

    state: Path
    server: str | None
    config: Path | None
    token_file: Path | None = None

    def token(self) -> str:
        """The token to show to the API: of the file, of ``REGOPS_TOKEN``, or the admin's of a running `regops dev`."""
        if self.token_file is not None:
            try:
                return self.token_file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise StalledError(
                    f"{self.token_file}: {error.strerror}", remedy="Name a file with a token."
                ) from error
        if os.environ.get("REGOPS_TOKEN"):
            return os.environ["REGOPS_TOKEN"].strip()
        if self.server or self.config:
            raise StalledError(
                "this server asks for a token",
                reason="Unauthorized",
                remedy="Give one with --token-file FILE or in REGOPS_TOKEN.",
            )
        return str(self._ready()["tokens"]["admin"])

    def url(self) -> str:
        """Where the API is."""
        if self.server:
            return self.server.rstrip("/") if "://" in self.server else f"http://{self.server.rstrip('/')}"
        if self.config:
            own = load(self.config).server
            return own_url(own.host, own.port)
        return str(self._ready()["api"])

    def settings(self) -> Settings:
        """Settings to reach etcd and Git with."""
        if self.config:
            return load(self.config)
        if self.server:
            raise StalledError(
                "this command speaks to etcd and not to a server's API, so --server (REGOPS_SERVER) does not help it",
                reason="InvalidSettings",
                remedy="Give --config FILE with the settings of that server, or --state.",
            )
        ready = self._ready()
        settings = load(None)
        git = settings.git.model_copy(
            update={
                "remote": ready["git"],
                "branch": ready.get("branch", settings.git.branch),
                "path": ready.get("path", settings.git.path),
            }
        )
        etcd = settings.etcd.model_copy(update={"endpoints": tuple(ready["etcd"])})
        return settings.model_copy(update={"git": git, "etcd": etcd})

    def mirror(self) -> tuple[Path, GitSettings]:
        """The mirror of the server on this machine, running or not, and what its repository is like."""
        if self.config:
            settings = load(self.config)
            return settings.server.state / settings.git.mirror, settings.git
        settings = load(None)
        with contextlib.suppress(StalledError):
            ready = self._ready()
            told: dict[str, Any] = {name: ready[name] for name in ("branch", "path") if name in ready}
            settings = settings.model_copy(update={"git": settings.git.model_copy(update=told)})
        return self.state / "server" / settings.git.mirror, settings.git

    def told(self, name: str) -> list[str]:
        """This entry of a running `regops dev`'s ready file, one or several. `StalledError` where it has none."""
        found = self._ready().get(name)
        if found is None:
            raise StalledError(
                f"this `regops dev` has no {name}", remedy="Start it so that it has: `regops dev --help`."
            )
        return [str(each) for each in (found if isinstance(found, list) else [found])]

    def _ready(self) -> dict[str, Any]:
        file = self.state / "ready.json"
        try:
            document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StalledError(
                f"no running regops found in {self.state.absolute()}",
                reason="NotRunning",
                remedy="Start `regops dev`; of one that was started in another folder give that folder's .regops/dev "
                "with --state PATH or REGOPS_STATE; or give --server URL or --config FILE.",
            ) from error
        return document


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``--state``, ``--server``, ``--config`` and ``--token-file``, handed over as one ``target``.

    Those of a subcommand win over those of its group, so they may stand in either place.
    """

    def run(
        *args: Any,
        state: Path | None,
        server: str | None,
        config: Path | None,
        token_file: Path | None,
        **kwargs: Any,
    ) -> Any:
        context = click.get_current_context()
        own = any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in _OPTIONS)
        inherited = isinstance(context.obj, Target) and not own
        given = Target(state or DEFAULT_STATE, server, config, token_file)
        return command(*args, target=context.obj if inherited else given, **kwargs)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    folder = click.Path(path_type=Path)
    run = click.option("--config", type=folder, envvar="REGOPS_CONFIG", help="Settings file of a server.")(run)
    run = click.option("--token-file", type=folder, help="File with the token for the API (or REGOPS_TOKEN).")(run)
    run = click.option("--server", metavar="URL", envvar="REGOPS_SERVER", help="Address of a server's API.")(run)
    return click.option(
        "--state",
        type=folder,
        envvar="REGOPS_STATE",
        help=f"Folder of a running `regops dev`.  [default: {DEFAULT_STATE}]",
    )(run)


def own_url(host: str, port: int) -> str:
    """Where a listener on ``host`` is reached from this machine: any address means loopback too."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 not bound to
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def get_status(target: Target) -> dict[str, Any]:
    """The document of ``GET /status``. Raises `StoreError` when there is no answer, or none of regops."""
    return await get(target, "/status", having="conditions")


async def post(
    target: Target, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """POST to a server's API, and its answer. Raises `StoreError`, and `StalledError` for what it refuses."""
    return await _ask(target, "POST", path, body, headers)


async def get(
    target: Target, path: str, query: Mapping[str, object] | None = None, *, having: str | None = None
) -> dict[str, Any]:
    """GET from a server's API; what is ``None`` in the query is left out. Raises the same, also for an answer without
    the member ``having``."""
    said = urlencode({name: value for name, value in (query or {}).items() if value is not None})
    document = await _ask(target, "GET", f"{path}?{said}" if said else path, None)
    if having is not None and having not in document:
        raise _unavailable(f"{target.url()}{path} is no answer of regops")
    return document


async def _ask(
    target: Target,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    more: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    import aiohttp  # noqa: PLC0415 commands that do not ask a server start quicker without it

    url, headers = f"{target.url()}{path}", {**(more or {}), "Authorization": f"Bearer {target.token()}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT)) as session,
            session.request(method, url, headers=headers, json=body) as answer,
        ):
            if answer.status >= 400:  # noqa: PLR2004 errors of HTTP
                raise await refused(url, answer)
            document = await answer.json()
    except aiohttp.ClientConnectorError as error:
        raise _unavailable(f"{url} does not answer: {error.os_error.strerror or error.os_error}") from error
    except TimeoutError as error:
        raise _unavailable(f"{url} does not answer within {_TIMEOUT:g} s") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise _unavailable(f"{url} is no answer of regops: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise _unavailable(f"{url} is no answer of regops")
    return document


async def refused(url: str, answer: aiohttp.ClientResponse) -> RegopsError:
    """The problem that a server answers, as an error with its own words."""
    try:
        problem = await answer.json(content_type=None)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        return _unavailable(f"{url} answers {answer.status} {answer.reason}")
    if problem["code"] in {"unauthorized", "forbidden"}:
        remedy = "Give another token with --token-file FILE."
        return StalledError(f"{url}: {problem['detail']}", reason="Unauthorized", remedy=remedy)
    if problem["code"] == "unavailable":
        return StoreError(f"{url}: {problem['detail']}", reason="ServerUnavailable", remedy="Try again.")
    places = "".join(f"\n  {place_of(each)}" for each in problem.get("errors", ()))
    return StalledError(f"{problem['detail']}{places}")


def place_of(error: Mapping[str, Any]) -> str:
    """One of a problem's errors: ``file:line:column: message``."""
    place = ":".join(str(error[part]) for part in ("file", "line", "column") if error.get(part) is not None)
    return f"{place}: {error['message']}"


def _unavailable(message: str) -> StoreError:
    return StoreError(
        message,
        reason="ServerUnavailable",
        remedy="Is the server running? Name another with --server URL or --state FOLDER.",
    )
