"""The folder of a ``regops dev``: who runs on it, its ports, its processes, its seeded repository, its ready file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from reconciler.core.errors import StalledError
from regops.supervise import kill_group, started_at

_MARKER = "regops-dev"
WEBHOOK_SECRET = "webhook-secret"  # noqa: S105 a file's name
PAGE_TICKETS = "page-tickets.json"
_GIT_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "regops dev",
    "GIT_AUTHOR_EMAIL": "dev@regops.invalid",
    "GIT_COMMITTER_NAME": "regops dev",
    "GIT_COMMITTER_EMAIL": "dev@regops.invalid",
}


class DevState:
    """One folder, held by one `regops dev` at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock: IO[str] | None = None

    @property
    def bare(self) -> Path:
        """Where the seeded repository lies."""
        return self.folder / "git" / "policies.git"

    def secret(self) -> str:
        """What webhooks are signed with; made once, for nobody else to read. Of a file to which somebody added others
        the first."""
        file = self.folder / WEBHOOK_SECRET
        if not file.exists():
            with _private(file) as out:
                out.write(f"{secrets.token_hex(32)}\n")
        return file.read_text(encoding="utf-8").split()[0]

    def ticket(self, token: str) -> str:
        """A ticket that logs into the page with this token, as often as it is used and as long as this run lasts:
        the next run makes another one. For nobody else to read."""
        ticket = secrets.token_urlsafe(24)
        with _private(self.folder / PAGE_TICKETS) as out:
            json.dump({ticket: token}, out)
        return ticket

    def open(self, *, reset: bool) -> list[str]:
        """Take the folder: end what a killed `dev` left behind. Returns the names of what was ended."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / _MARKER).exists():
            raise StalledError(
                f"{self.folder} is not empty and no state of regops dev", remedy="Name another folder with --state."
            )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # somebody else's folder: what is secret in it is a file of ours
            self.folder.chmod(0o700)
        (self.folder / _MARKER).touch()
        self._lock = (self.folder / "lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise StalledError(
                f"another `regops dev` runs on {self.folder}", remedy="Stop it, or name another folder with --state."
            ) from error
        ended = self._end_leftovers()
        if reset:
            for entry in self.folder.iterdir():
                if entry.name not in {_MARKER, "lock"}:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.unready(None)
        return ended

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()

    def remember(self, pids: dict[str, int]) -> None:
        """Write down the children, so that the next `dev` can end what a killed one left."""
        record = {name: {"pid": pid, "started": started_at(pid)} for name, pid in pids.items()}
        _write(self.folder / "pids.json", record)

    def _end_leftovers(self) -> list[str]:
        try:
            record = json.loads((self.folder / "pids.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        ended = []
        for name, child in record.items():
            if child["started"] is not None and started_at(child["pid"]) == child["started"]:
                kill_group(child["pid"])
                ended.append(name)
        return ended

    def ports(self, names: Iterable[str], fixed: dict[str, int] | None) -> dict[str, int]:
        """A port for each name: fixed ones (an error names one in use), or free ones, kept for the next time."""
        if fixed is not None:
            for name, port in fixed.items():
                if not _free(port):
                    raise StalledError(f"port {port} of {name} is in use", remedy="Choose free ones: --ports auto.")
            return fixed
        file = self.folder / "ports.json"
        try:
            kept: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = {}
        chosen: dict[str, int] = {}
        for name in names:
            port = kept.get(name, 0)
            while not port or port in chosen.values() or not _free(port):
                port = _any_free()
            chosen[name] = port
        _write(file, chosen)
        return chosen

    def repository(self, branch: str, path: str) -> str:
        """URL of the seeded bare repository, made from `policies-example/` the first time."""
        bare = self.bare
        if not (bare / "HEAD").exists():
            work = self.folder / "git" / "seed"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(example_folder(), work)
            if path != "policies":
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                (work / "policies").rename(work / path)
            git("init", "-q", f"--initial-branch={branch}", folder=work)
            git("add", "-A", "-f", folder=work)
            git("commit", "-q", "-m", "Policies to start with", folder=work)
            git("clone", "-q", "--bare", str(work), str(bare), folder=self.folder)
            shutil.rmtree(work)
        return f"file://{bare}"

    def ready(self, document: dict[str, Any], also: Path | None) -> None:
        """Say that everything answers. The document holds tokens: it is for nobody else to read."""
        for file in self._ready_files(also):
            _write(file, document)

    def unready(self, also: Path | None) -> None:
        """Nothing may be taken for running."""
        for file in self._ready_files(also):
            file.unlink(missing_ok=True)

    def _ready_files(self, also: Path | None) -> list[Path]:
        return [self.folder / "ready.json", *([also] if also else [])]


def example_folder() -> Path:
    """`policies-example/` of the checkout, or the copy in an installed package."""
    beside = Path(__file__).parent
    for folder in (beside.parent / "policies-example", beside / "_policies_example"):
        if folder.is_dir():
            return folder
    raise StalledError("policies-example is not installed", remedy="Use an existing repository: --git URL.")


def git(*words: str, folder: Path) -> str:
    """A git command with no configuration but ours; its output. `StalledError` with git's words when it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(  # noqa: S603 a fixed command on our own folders
        ["git", *words],  # noqa: S607 the git on PATH
        cwd=folder,
        env={**environment, **_GIT_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode:
        raise StalledError(f"git {words[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def _write(file: Path, document: object) -> None:
    """Whole or not at all: readers wait for this file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.new")
    with _private(scratch) as out:
        out.write(json.dumps(document, indent=2) + "\n")
    scratch.replace(file)


def _private(file: Path) -> IO[str]:
    """A new file that nobody else can read, not even for a moment; what had its name before is gone."""
    file.unlink(missing_ok=True)
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _any_free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
