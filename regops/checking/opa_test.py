"""`opa test` in a folder of its own, where it finds nothing but what it is to test.

A pull request brings its tests along: they see no variable of the pipeline's environment, and have no builtin that no
policy may use, so that nothing leaves the machine by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reconciler.core.errors import StalledError
from regops.checking.tested import Tested, write

_SECONDS: Final = 600.0
_ASK_SECONDS: Final = 60.0
_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder with a bundle named ``name``, and how OPA is to be called there."""

    opa: Path
    folder: Path
    name: str
    environment: dict[str, str]
    capabilities: Path

    def words(self, *words: str) -> tuple[str, ...]:
        """The command that tests it; to be run in ``folder``."""
        return (str(self.opa), "test", *words, "--capabilities", str(self.capabilities), "-b", self.name)

    def remove(self, test: str) -> None:
        """Take one test away."""
        (self.folder / self.name / test).unlink()

    async def run(self, *words: str) -> tuple[int, str, str]:
        """Exit code, output, errors. Raises `StalledError` when it does not end in time."""
        return await _finish(self.words(*words), self.folder, self.environment, _SECONDS)


@contextlib.asynccontextmanager
async def bench(opa: Path, files: Tested, refused: Sequence[str], name: str = ".") -> AsyncIterator[Bench]:
    """The files as a bundle at ``name`` in a folder of its own; OPA without the ``refused`` builtins."""
    with tempfile.TemporaryDirectory(prefix="regops-test-") as scratch:
        folder, capabilities = Path(scratch, "files"), Path(scratch, "capabilities.json")
        (folder / name).mkdir(parents=True)
        environment = {each: os.environ[each] for each in ("PATH", "LD_LIBRARY_PATH") if each in os.environ}
        environment["HOME"] = scratch
        await asyncio.to_thread(write, files, folder / name, ())
        made = Bench(opa, folder, name, environment, capabilities)
        await _write_capabilities(made, refused)
        if v0 := await _v0_tests(made, files):
            await asyncio.to_thread(write, files, folder / name, v0)
        yield made


async def _write_capabilities(made: Bench, refused: Sequence[str]) -> None:
    words = (str(made.opa), "capabilities", "--current")
    code, out, err = await _finish(words, made.folder, made.environment, _ASK_SECONDS)
    if code:
        raise StalledError(f"{made.opa} does not tell its capabilities: {err.strip()[:300]}")
    document = json.loads(out)
    document["builtins"] = [each for each in document["builtins"] if each["name"] not in refused]
    document["allow_net"] = []  # schemas, which could name any host
    made.capabilities.write_text(json.dumps(document), encoding="utf-8")


async def _v0_tests(made: Bench, files: Tested) -> list[str]:
    """The tests of policies in Rego v0 that are in v0 themselves: what does not parse as v1."""
    folders = {name.rpartition("/")[0] for name in files.v0}
    asked = [name for name in files.tests if name.rpartition("/")[0] in folders]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def refused(name: str) -> bool:
        async with gate:
            words = (str(made.opa), "parse", str(made.folder / made.name / name))
            return (await _finish(words, made.folder, made.environment, _ASK_SECONDS))[0] != 0

    found = await asyncio.gather(*(refused(name) for name in asked))
    return [name for name, is_v0 in zip(asked, found, strict=True) if is_v0]


async def _finish(
    words: tuple[str, ...], folder: Path, environment: dict[str, str], seconds: float
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    except TimeoutError as error:
        message = f"opa {words[1]} did not end within {seconds:g} s"
        raise StalledError(message, remedy="Find the unit test that does not end: regops test -v.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")
