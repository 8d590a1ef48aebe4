"""Recorded inputs, asked of the old and of the new policies: whose decisions change?

Two OPAs load what would be live of either revision, as a fleet would. Inputs of one rule are asked together, many in
one query; where one of them fails, that lot is asked one by one, so that a mistake in a rule is its own decision's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from reconciler.core.errors import StalledError, TransientError
from regops.checking.decisions import Decision, Skipped, Unreadable, read
from regops.checking.findings import Example, Flips, Replay

LOT: Final = 200
"""Inputs that are asked together."""
_LOT_BYTES: Final = 1 << 20
_OPEN: Final = 8
"""Lots that are under way at once."""
_RULES: Final = 500
_START_SECONDS: Final = 60.0
_ANSWER_SECONDS: Final = 120.0
_SHOWN: Final = 400
_UNREADABLE: Final = 10
_UNDEFINED: Final = object()

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Failed:
    """The rule failed for this input; equal failures are equal decisions."""

    message: str


@dataclass(slots=True)
class _Tally:
    """What was counted of one rule."""

    inputs: int = 0
    flips: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class _Counted:
    """What was counted of all."""

    rules: dict[tuple[str, ...], _Tally] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    differed: int = 0
    nondeterministic: int = 0
    done: int = 0


async def replay(
    opa: Path,
    bundles: tuple[bytes, bytes],
    files: Sequence[str],
    *,
    limit: int | None,
    examples: int,
    progress: Progress = lambda _: None,
) -> Replay:
    """Ask every decision in ``files`` (the first ``limit``) again. Raises `StalledError` when none of them can be read,
    `TransientError` when OPA fails."""
    counted = _Counted()
    async with evaluator(opa, bundles[0]) as old, evaluator(opa, bundles[1]) as new:
        running: deque[asyncio.Task[None]] = deque()
        try:
            for lot in _lots(files, limit, counted):
                running.append(asyncio.ensure_future(_compare(old, new, lot, counted, examples)))
                if len(running) >= _OPEN:
                    await running.popleft()
                    progress(counted.done)
            while running:
                await running.popleft()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    if counted.unreadable_count and not counted.done and not counted.skipped:
        raise StalledError(
            f"{counted.unreadable[0]}; nothing in {', '.join(files)} is a decision",
            remedy="Name a decision log of OPA: one JSON object a line with path, input and result.",
        )
    return _result(counted)


def _result(counted: _Counted) -> Replay:
    rules = []
    for path, each in counted.rules.items():
        policy, rule = "/".join(path[: _depth(path)]), "/".join(path[_depth(path) :])
        rules.append(Flips(policy, rule, each.inputs, each.flips, tuple(each.examples)))
    rules.sort(key=lambda each: (-each.flips, each.policy, each.rule))
    return Replay(
        rules=tuple(rules),
        skipped=dict(counted.skipped),
        differed=counted.differed,
        unreadable=tuple(counted.unreadable),
        unreadable_count=counted.unreadable_count,
        nondeterministic=counted.nondeterministic,
    )


def _depth(path: Sequence[str]) -> int:
    """How many segments name the policy."""
    return 2 if path[0] == "projects" else 1


# --- what is read ----------------------------------------------------------------------------------------------------


def _lots(files: Sequence[str], limit: int | None, counted: _Counted) -> Iterator[list[Decision]]:
    """Decisions of one rule together; what cannot be asked is counted."""
    waiting: dict[tuple[str, ...], list[Decision]] = {}
    taken = 0
    for each in (found for name in files for found in read(name)):
        if isinstance(each, Unreadable):
            counted.unreadable_count += 1
            if len(counted.unreadable) < _UNREADABLE:
                counted.unreadable.append(each.place)
            continue
        if limit is not None and taken >= limit:
            break
        taken += 1
        if isinstance(each, Skipped):
            counted.skipped[each.why] += 1
            continue
        lot = waiting.setdefault(each.path, [])
        lot.append(each)
        if len(lot) >= LOT or len(waiting) > _RULES:
            yield waiting.pop(each.path)
    yield from waiting.values()


# --- what is asked ---------------------------------------------------------------------------------------------------


async def _compare(old: Evaluator, new: Evaluator, lot: list[Decision], counted: _Counted, examples: int) -> None:
    """Lots of one rule may end in another order than they were read: examples are those of the first lots to end."""
    before, after = await asyncio.gather(old.decide(lot), new.decide(lot))
    tally = counted.rules.setdefault(lot[0].path, _Tally())
    for decision, was, is_ in zip(lot, before, after, strict=True):
        tally.inputs += 1
        counted.done += 1
        counted.nondeterministic += decision.nondeterministic
        recorded = decision.result if decision.defined else _UNDEFINED
        counted.differed += not _same(recorded, was)
        if _same(was, is_):
            continue
        tally.flips += 1
        if len(tally.examples) < examples:
            tally.examples.append(Example(decision.id, _text(was), _text(is_), _shortened(decision.input)))


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if one is _UNDEFINED or other is _UNDEFINED or isinstance(one, _Failed) or isinstance(other, _Failed):
        return bool(one == other)
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _text(value: Any) -> str | None:
    if value is _UNDEFINED:
        return None
    return f"error: {value.message}" if isinstance(value, _Failed) else _shortened(value)


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


class Evaluator:
    """One OPA with one revision."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http

    async def decide(self, lot: Sequence[Decision]) -> list[Any]:
        """The decision of each, `_UNDEFINED` where there is none."""
        if all(each.has_input for each in lot):
            together = await self._together(lot)
            if together is not None:
                return together
        return [await self._one(each) for each in lot]

    async def _together(self, lot: Sequence[Decision]) -> list[Any] | None:
        """All in one query; ``None`` where one of them fails: then nobody knows which."""
        reference = "data" + "".join(f"[{json.dumps(segment)}]" for segment in lot[0].path)
        query = f"result = [o | i := input[k]; v := {reference} with input as i; o := [k, v]]"
        body = json.dumps({"query": query, "input": [each.input for each in lot]}).encode()
        status, document = await self._post("/v1/query", body)
        if status != 200:  # noqa: PLR2004 OK
            return None
        found: list[Any] = [_UNDEFINED] * len(lot)
        for index, value in document["result"][0]["result"] if document.get("result") else ():
            found[index] = value
        return found

    async def _one(self, decision: Decision) -> Any:
        body = json.dumps({"input": decision.input} if decision.has_input else {}).encode()
        path = "/".join(quote(segment, safe="") for segment in decision.path)
        status, document = await self._post(f"/v1/data/{path}", body)
        if status != 200:  # noqa: PLR2004 OK
            return _Failed(str(document.get("message") or status))
        return document.get("result", _UNDEFINED)

    async def _post(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        try:
            async with self.http.post(URL(f"http://opa{path}", encoded=True), data=body, headers=headers) as answer:
                return answer.status, json.loads(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise TransientError(f"the OPA that replays does not answer: {type(error).__name__}") from error


@contextlib.asynccontextmanager
async def evaluator(opa: Path, bundle: bytes) -> AsyncIterator[Evaluator]:
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
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        connector = aiohttp.UnixConnector(str(folder / "api.sock"))
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True) as http:
                await _until_ready(http, process, folder / "log")
                yield Evaluator(http)
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
