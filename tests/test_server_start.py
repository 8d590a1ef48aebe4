"""`regops server` as a process: what is away when it starts is waited for, wrong settings end it at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.dev import until
from fixtures.etcd import EtcdServer, free_port
from fixtures.git import Remote
from fixtures.opa import find_opa


class Server:
    """One process with its own state and log."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self.log = folder / "log"
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("REGOPS_")}
        own = {"REGOPS_SERVER_PORT": str(port), "REGOPS_SERVER_STATE": str(folder / "state")}
        own |= {"REGOPS_AUTH_ISSUER": "https://issuer.example", "REGOPS_AUTH_JWKS": str(folder / "jwks.json")}
        (folder / "jwks.json").write_text('{"keys": []}')
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "regops", "server"],
                env={**inherited, "REGOPS_OPA": str(find_opa()), **own, **settings},
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )

    def ready(self, query: str = "") -> tuple[int, str]:
        """Status and body of ``/readyz``; 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz{query}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def logged(self, **wanted: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if wanted.items() <= line.items()]

    def waits(self, words: str) -> None:
        """It lives, is not ready, and says why."""
        until(lambda: self.ready()[0] == 503 and words in self.ready()[1], 20, self.log.read_text)
        assert self.process.poll() is None
        assert "Traceback" not in self.log.read_text()

    def becomes_ready(self) -> None:
        until(lambda: self.ready()[0] == 200, 20, lambda: f"{self.ready()} {self.log.read_text()}")
        assert "Traceback" not in self.log.read_text()

    def end(self) -> tuple[int, float]:
        """SIGTERM; exit code and seconds until it was gone."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15), time.monotonic() - began


@pytest.fixture
def serve(tmp_path: Path, remote: Remote, etcd: EtcdServer) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(**settings: str) -> Server:
        own = {"REGOPS_GIT_REMOTE": remote.url, "REGOPS_ETCD_ENDPOINTS": etcd.endpoint}
        started.append(Server(tmp_path, {**own, **settings}))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(10)


def test_an_etcd_that_is_away_at_the_start_is_waited_for(serve: Callable[..., Server], etcd: EtcdServer) -> None:
    etcd.stop()
    server = serve()
    server.waits("etcd: it was not read yet")
    until(lambda: server.logged(message="no lead", reason="StoreUnavailable"))
    etcd.start()
    server.becomes_ready()
    code, seconds = server.end()
    assert code == 0
    assert seconds < 5


def _demand_a_password(etcd: EtcdServer) -> None:
    """Turn authentication on, by etcd's own JSON gateway: from now on only root with this password may ask."""
    for path, body in (
        ("user/add", {"name": "root", "password": "right"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("enable", {}),
    ):
        request = urllib.request.Request(f"{etcd.endpoint}/v3/auth/{path}", json.dumps(body).encode())
        urllib.request.urlopen(request, timeout=5).close()


def test_an_etcd_that_refuses_the_password_is_told_and_asked_again(
    serve: Callable[..., Server], etcd: EtcdServer, tmp_path: Path
) -> None:
    """A refused password once left the gateway as a bare gRPC error, and the server with a traceback."""
    _demand_a_password(etcd)
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    server = serve(REGOPS_ETCD_USER="root", REGOPS_ETCD_PASSWORD_FILE=str(secret))
    server.waits("etcd: it was not read yet")
    (line, *_) = until(lambda: server.logged(message="no lead", reason="AuthenticationFailed"))
    assert "etcd.password_file" in line["error"]
    assert server.end()[0] == 0
    secret.write_text("right\n")
    serve(REGOPS_ETCD_USER="root", REGOPS_ETCD_PASSWORD_FILE=str(secret)).becomes_ready()


def test_a_git_remote_that_is_away_at_the_start_is_waited_for(serve: Callable[..., Server]) -> None:
    server = serve(REGOPS_GIT_REMOTE=f"https://127.0.0.1:{free_port()}/policies.git")
    server.waits("git: Fetching from https://127.0.0.1")
    assert server.ready("?exclude=git")[0] == 200
    assert server.logged(message="pass failed", reason="FetchFailed")


def test_an_opa_that_is_away_at_the_start_is_waited_for(serve: Callable[..., Server], tmp_path: Path) -> None:
    binary = tmp_path / "opa-of-a-volume"
    server = serve(REGOPS_OPA_BINARY=str(binary))
    server.waits(f"opa: {binary} cannot be run")
    assert server.logged(message="reconciler cannot start", reason="OpaNotFound")
    binary.symlink_to(find_opa())
    server.becomes_ready()


def test_a_server_ends_within_seconds_also_while_etcd_hangs(serve: Callable[..., Server], etcd: EtcdServer) -> None:
    server = serve()
    server.becomes_ready()
    until(lambda: server.logged(message="applied"))
    etcd.pause()
    code, seconds = server.end()
    assert code == 0
    assert seconds < 5
    assert "Traceback" not in server.log.read_text()


def test_a_state_folder_that_cannot_be_made_is_named(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = serve(REGOPS_SERVER_STATE=str(tmp_path / "file" / "state"))
    assert server.process.wait(15) == 1
    (line,) = server.log.read_text().splitlines()
    assert "REGOPS_SERVER_STATE" in line


def test_without_a_repository_a_server_ends_before_anything_is_started(serve: Callable[..., Server]) -> None:
    server = serve(REGOPS_GIT_REMOTE="")
    assert server.process.wait(15) == 1
    (line,) = server.log.read_text().splitlines()
    assert line.startswith("Error: no policy repository is configured. Set git.remote (REGOPS_GIT_REMOTE)")
