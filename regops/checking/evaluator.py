"""An OPA of its own that is asked recorded inputs, as a fleet's OPA with the same bundle would answer them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from reconciler.core.errors import TransientError
from regops.checking.decisions import Decision

_START_SECONDS: Final = 60.0
LOT_SECONDS: Final = 60.0
"""What a lot may take; then its inputs are asked one by one."""
ONE_SECONDS: Final = 30.0
"""What one input may take; then it has no decision."""
UNDEFINED: Final = object()
"""No decision."""
_ODD: Final = re.compile(r"[+-]?[0-9]+|")
"""Segments of a path that OPA's Data API reads as numbers, or leaves out: only it can say what they lead to."""
_PLACE: Final = re.compile(r"(?: at)? ?\S+\.rego:\d+(?::\d+)?:?")


@dataclass(frozen=True, slots=True)
class Failed:
    """The rule failed for this input. Equal failures are equal decisions: ``message`` has no places in files, which
    move whenever a line does."""

    message: str


class Evaluator:
    """One OPA with one revision."""

    def __init__(
        self, http: aiohttp.ClientSession, lot_seconds: float = LOT_SECONDS, one_seconds: float = ONE_SECONDS
    ) -> None:
        self.http = http
        self._lot_seconds = lot_seconds
        self._one_seconds = one_seconds

    async def decide(self, lot: Sequence[Decision]) -> list[Any]:
        """The decision of each, `UNDEFINED` where there is none."""
        if all(each.has_input for each in lot) and not any(_ODD.fullmatch(each) for each in lot[0].path):
            together = await self._together(lot)
            if together is not None:
                return together
        return [await self._one(each) for each in lot]

    async def _together(self, lot: Sequence[Decision]) -> list[Any] | None:
        """All in one query; ``None`` where one of them fails or takes too long: then nobody knows which."""
        reference = "data" + "".join(f"[{json.dumps(segment)}]" for segment in lot[0].path)
        query = f"result = [o | i := input[k]; v := {reference} with input as i; o := [k, v]]"
        try:
            body = json.dumps({"query": query, "input": [each.input for each in lot]}, allow_nan=False).encode()
            status, document = await self._post("/v1/query", body, self._lot_seconds)
        except (TimeoutError, ValueError):
            return None
        if status != 200:  # noqa: PLR2004 OK
            return None
        found: list[Any] = [UNDEFINED] * len(lot)
        for index, value in document["result"][0]["result"] if document.get("result") else ():
            found[index] = value
        return found

    async def _one(self, decision: Decision) -> Any:
        path = "/".join(quote(segment, safe="") for segment in decision.path)
        try:
            body = json.dumps({"input": decision.input} if decision.has_input else {}, allow_nan=False).encode()
            status, document = await self._post(f"/v1/data/{path}", body, self._one_seconds)
        except TimeoutError:
            return Failed(f"no decision within {self._one_seconds:g} s")
        except ValueError:
            return Failed("a number in the input is too large")
        if status != 200:  # noqa: PLR2004 OK
            return _failure(document, status)
        return document.get("result", UNDEFINED)

    async def _post(self, path: str, body: bytes, seconds: float) -> tuple[int, dict[str, Any]]:
        """Raises `TimeoutError` after ``seconds``, `TransientError` when OPA is away."""
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(seconds),
                self.http.post(URL(f"http://opa{path}", encoded=True), data=body, headers=headers) as answer,
            ):
                status, text = answer.status, await answer.read()
            return status, json.loads(text)
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            raise TransientError(f"the OPA that replays does not answer: {type(error).__name__}") from error


def _failure(document: dict[str, Any], status: int) -> Failed:
    """What went wrong, in OPA's words: the outer message is the same for whatever goes wrong in a rule."""
    errors = [each for each in document.get("errors") or () if isinstance(each, dict)]
    told = {f"{each.get('code', '')}: {_placeless(each.get('message'))}" for each in errors}
    if told:
        return Failed("; ".join(sorted(told)))
    said = str(document.get("message") or status)
    return Failed(_placeless(said.partition("\n")[0]))  # below it stands what else could have been asked for


def _placeless(message: object) -> str:
    return " ".join(_PLACE.sub("", str(message)).split())


@contextlib.asynccontextmanager
async def evaluator(
    opa: Path, bundle: bytes, *, lot_seconds: float = LOT_SECONDS, one_seconds: float = ONE_SECONDS
) -> AsyncIterator[Evaluator]:
    """An OPA of its own with this bundle, on a socket in a folder of its own, as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="regops-replay-") as scratch:
        folder = Path(scratch)
        (folder / "bundle.tar.gz").write_bytes(bundle)
        words = [
            "run",
            "--server",
            "--addr",
            f"unix://{folder / 'api.sock'}",
            "--bundle",
            str(folder / "bundle.tar.gz"),
        ]
        words += ["--log-level", "error", "--skip-version-check"]
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(str(opa), *words),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ.get("PATH", ""), "HOME": scratch},
            )
        timeout = aiohttp.ClientTimeout(total=None)  # each question has its own
        connector = aiohttp.UnixConnector(str(folder / "api.sock"))
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True) as http:
                await _until_ready(http, process, folder / "log")
                yield Evaluator(http, lot_seconds, one_seconds)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _until_ready(http: aiohttp.ClientSession, process: asyncio.subprocess.Process, log: Path) -> None:
    try:
        async with asyncio.timeout(_START_SECONDS):
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get("http://opa/health?bundles") as answer:
                        if answer.status == 200:  # noqa: PLR2004 OK
                            return
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise TransientError(f"the OPA that replays is not ready within {_START_SECONDS:g} s") from error
    said = (await asyncio.to_thread(log.read_text, "utf-8", "replace"))[-300:].strip()
    raise TransientError(f"the OPA that replays ended at once: {said}")
