"""Which system a command speaks to: a running ``regops dev``, a server by URL, or the settings of one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from reconciler.core.errors import StalledError, StoreError
from reconciler.settings import Settings, load

DEFAULT_STATE = Path(".regops/dev")


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
        if "REGOPS_TOKEN" in os.environ:
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
            return self.server.rstrip("/")
        if self.config:
            own = load(self.config).server
            return f"http://{own.host}:{own.port}"
        return str(self._ready()["api"])

    def settings(self) -> Settings:
        """Settings to reach etcd and Git with."""
        if self.config:
            return load(self.config)
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

    def _ready(self) -> dict[str, Any]:
        file = self.state / "ready.json"
        try:
            document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StalledError(
                f"no running regops found in {self.state}",
                reason="NotRunning",
                remedy="Start `regops dev`, name its folder with --state, or give --server URL or --config FILE.",
            ) from error
        return document


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options ``--state``, ``--server`` and ``--config``, handed over as one ``target``."""

    def run(
        *args: Any, state: Path, server: str | None, config: Path | None, token_file: Path | None, **kwargs: Any
    ) -> Any:
        return command(*args, target=Target(state, server, config, token_file), **kwargs)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    folder = click.Path(path_type=Path)
    run = click.option("--config", type=folder, envvar="REGOPS_CONFIG", help="Settings file of a server.")(run)
    run = click.option("--token-file", type=folder, help="File with the token for the API (or REGOPS_TOKEN).")(run)
    run = click.option("--server", metavar="URL", envvar="REGOPS_SERVER", help="Address of a server's API.")(run)
    return click.option(
        "--state",
        type=folder,
        envvar="REGOPS_STATE",
        default=DEFAULT_STATE,
        show_default=True,
        help="Folder of a running `regops dev`.",
    )(run)


async def get_json(target: Target, path: str) -> dict[str, Any]:
    """GET a JSON document of a server. Raises `StoreError` when it cannot be asked."""
    import aiohttp  # noqa: PLC0415 commands that do not ask a server start quicker without it

    url, headers = f"{target.url()}{path}", {"Authorization": f"Bearer {target.token()}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(url, headers=headers, raise_for_status=True) as answer,
        ):
            document: dict[str, Any] = await answer.json()
            return document
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise StoreError(
            f"{url} does not answer: {str(error) or type(error).__name__}",
            reason="ServerUnavailable",
            remedy="Is the server running? Name another with --server or --state.",
        ) from error
