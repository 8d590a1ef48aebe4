"""The real servers that regops runs beside it: etcd and OPA, found or built.

In this order: the one that ``REGOPS_ETCD`` or ``REGOPS_OPA`` names; one on ``PATH`` that is new enough; the one built
before; one built now from the modules that ``tools/go.mod`` and ``go.sum`` pin. Standard library only, so that
``python3 -m regops.toolchain build`` works before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from regops.gobuild import Say, ToolError, build, fetch_go, find_go, output_of, version_of

__all__ = ["TOOLS", "Tool", "ToolError", "Toolchain", "ensure", "find", "main"]

_LOCK_SECONDS: Final = 3600.0
_LOCK_POLL_SECONDS: Final = 0.2
_SOURCES: Final = ("go.mod", "go.sum", "etcd/main.go")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: the Go package that it is built from, the oldest version that does, and how it tells its version."""

    name: str
    package: str
    oldest: tuple[int, int]
    tell_version: str

    @property
    def variable(self) -> str:
        """The environment variable that names an installed one."""
        return f"REGOPS_{self.name.upper()}"

    @property
    def wanted(self) -> str:
        """For messages: ``etcd 3.5 or newer``."""
        return f"{self.name} {'.'.join(map(str, self.oldest))} or newer"


TOOLS: Final[Mapping[str, Tool]] = {
    "etcd": Tool("etcd", "./etcd", (3, 5), "--version"),
    "opa": Tool("opa", "github.com/open-policy-agent/opa", (1, 4), "version"),
}


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Where tools come from: ``source`` holds ``go.mod``, ``home`` takes what is built, ``environ`` is passed on."""

    source: Path
    home: Path
    environ: Mapping[str, str]

    @classmethod
    def here(cls) -> Toolchain:
        """Of this checkout (``tools/`` and ``.tools/``), or of this installation (the user's cache folder)."""
        package = Path(__file__).resolve().parent
        shipped = package / "_tools"
        if not shipped.is_dir():
            return cls(package.parent / "tools", package.parent / ".tools", os.environ)
        cache = os.environ.get("XDG_CACHE_HOME")
        root = Path(cache) if cache else Path.home() / ".cache"
        return cls(shipped, root / "regops" / "tools", os.environ)

    def find(self, name: str) -> Path | None:
        """An existing tool, or ``None`` when it must be built first.

        Raises `ToolError` when the environment names one that cannot be used: a choice is never passed over in silence.
        """
        tool = TOOLS[name]
        return self._named(tool) or self._on_path(tool) or self._built(tool)

    def ensure(self, name: str, say: Say) -> Path:
        """An existing tool, or one that is built now (minutes); ``say`` takes lines about how far that is.

        Of several callers, in any process, one builds and the others wait for it. Raises `ToolError`.
        """
        tool = TOOLS[name]
        if (existing := self.find(name)) is not None:
            return existing
        try:
            with self._lock(tool, say):
                return self._built(tool) or self._build(tool, say)
        except ToolError as error:
            remedy = f"{error.remedy}; or install {tool.wanted} and set {tool.variable} to its path"
            raise ToolError(error.message, remedy) from error
        except OSError as error:
            remedy = f"See to the folder {self.home}; or install {tool.wanted} and set {tool.variable} to its path"
            raise ToolError(f"{name} could not be built: {error}", remedy) from error

    def _named(self, tool: Tool) -> Path | None:
        text = self.environ.get(tool.variable)
        if not text:
            return None
        path = Path(text).absolute()
        if self._new_enough(tool, path):
            return path
        raise ToolError(
            f"{tool.variable} names {path}, which is no {tool.wanted} that can be run",
            f"Set it to the path of {tool.wanted}, or unset it",
        )

    def _on_path(self, tool: Tool) -> Path | None:
        found = shutil.which(tool.name, path=self.environ.get("PATH"))
        return Path(found).absolute() if found and self._new_enough(tool, Path(found)) else None

    def _built(self, tool: Tool) -> Path | None:
        binary, stamp = self._places(tool)
        with contextlib.suppress(OSError):
            if stamp.read_text("utf-8") == self._key() and os.access(binary, os.X_OK):
                return binary
        return None

    def _new_enough(self, tool: Tool, path: Path) -> bool:
        return version_of(output_of([path, tool.tell_version], self.environ)) >= tool.oldest

    def _places(self, tool: Tool) -> tuple[Path, Path]:
        """The built program, and the stamp that says from which pinned modules."""
        binary = self.home / "bin" / tool.name
        return binary, binary.with_suffix(".built-from")

    def _key(self) -> str:
        """Changes when the pinned modules do, and when a checkout moves to another kind of machine."""
        digest = hashlib.sha256(f"{sys.platform} {platform.machine()}\n".encode())
        for name in _SOURCES:
            digest.update(hashlib.sha256((self.source / name).read_bytes()).digest())
        return digest.hexdigest()

    @contextlib.contextmanager
    def _lock(self, tool: Tool, say: Say) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _LOCK_SECONDS
        waiting = False
        with (self.home / "lock").open("w", encoding="utf-8") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ToolError(f"another build holds {file.name}", "End it") from None
                if not waiting:
                    say(f"{tool.name}: another build is running, waiting for it")
                    waiting = True
                time.sleep(_LOCK_POLL_SECONDS)
            yield

    def _build(self, tool: Tool, say: Say) -> Path:
        say(f"{tool.name}: building it from source, once; this takes minutes")
        started = time.monotonic()
        binary, stamp = self._places(tool)
        key = self._key()
        fresh = self.home / "fresh" / tool.name
        shutil.rmtree(fresh.parent, ignore_errors=True)
        for folder in (fresh.parent, binary.parent):
            folder.mkdir(parents=True, exist_ok=True)
        go = find_go(self.source, self.environ, say) or fetch_go(self.source, self.home, self.environ, say)
        build(go, self.source, tool.package, fresh, say)
        if not self._new_enough(tool, fresh):
            raise ToolError(f"the {tool.name} just built is no {tool.wanted} that can be run", "See tools/go.mod")
        # In this order, so that a stamp never stands beside a program that it does not describe.
        stamp.unlink(missing_ok=True)
        fresh.replace(binary)
        stamp.write_text(key, "utf-8")
        say(f"{tool.name}: built in {time.monotonic() - started:.0f} s: {binary}")
        self._tidy()
        return binary

    def _tidy(self) -> None:
        """Once no tool is missing, remove what only a build needs: the Go that pip brought and its caches are large."""
        with contextlib.suppress(ToolError):
            if not all(self.find(name) for name in TOOLS):
                return
        for name in ("fresh", "pip", "go", "gopath", "gocache"):
            shutil.rmtree(self.home / name, ignore_errors=True)


def find(name: str) -> Path | None:
    """`Toolchain.find` of this checkout or installation."""
    return Toolchain.here().find(name)


def ensure(name: str, say: Say) -> Path:
    """`Toolchain.ensure` of this checkout or installation. It blocks, for minutes when it builds."""
    return Toolchain.here().ensure(name, say)


def _say(line: str) -> None:
    sys.stdout.write(f"tools: {line}\n")
    sys.stdout.flush()


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # an exception, so that a build's processes are ended on the way out


def main(arguments: list[str]) -> int:
    """``build`` makes sure of every tool and prints where each is; exit code 1 with the reason and the remedy."""
    if arguments != ["build"]:
        sys.stderr.write("usage: python3 -m regops.toolchain build\n")
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    toolchain = Toolchain.here()
    try:
        for name in TOOLS:
            _say(f"{name} is {toolchain.ensure(name, _say)}")
    except ToolError as error:
        sys.stderr.write(f"tools: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
