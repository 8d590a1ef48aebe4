"""Builtins whose answers change by themselves: a replay asks them anew, so that a decision may flip without a change.

A decision log tells which decisions used one only where OPA's configuration has ``nd_builtin_cache: true``. Which
policies can use one their text tells always.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reconciler.core.model import PLATFORM, PolicyName
from reconciler.core.plan import Target
from reconciler.core.ports import Source

BUILTINS: Final = (
    "http.send",
    "io.jwt.decode_verify",
    "io.jwt.encode_sign",
    "io.jwt.encode_sign_raw",
    "net.lookup_ip_addr",
    "opa.runtime",
    "rand.intn",
    "time.now_ns",
    "uuid.rfc4122",
)
"""What OPA's capabilities call nondeterministic, but for JSON schemas, which change only where one is fetched."""
_PARSE_SECONDS: Final = 30.0


async def changing(
    opa: Path, source: Source, targets: Mapping[PolicyName, Target], asked: Collection[str]
) -> dict[str, frozenset[str]]:
    """By policy, the ones it calls: of those that were ``asked``, and of the platform where one of these names it."""
    found: dict[str, frozenset[str]] = {}
    names = [name for name in targets if str(name) in asked]
    texts = {name: (await source.read(targets[name].blobs)).rego for name in names}
    if PLATFORM in targets and any(b"platform" in text for text in texts.values()):
        texts[PLATFORM] = (await source.read(targets[PLATFORM].blobs)).rego
    for name, text in texts.items():
        if any(each.rpartition(".")[2].encode() in text for each in BUILTINS):
            tree = await _parsed(opa, text, v0=targets[name].rego_version == 0)
            if called := await asyncio.to_thread(_called, tree):
                found[str(name)] = called
    return found


def _called(tree: bytes) -> frozenset[str]:
    try:
        document = json.loads(tree)
    except ValueError:  # it compiles, so OPA gives a tree, unless it did not end in time
        return frozenset()
    return frozenset(_calls(document)) & frozenset(BUILTINS)


def _calls(tree: Any) -> Iterator[str]:
    """The name of every function that is called; what `with` replaces is not."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            terms = node.get("value") if node.get("type") == "call" else node.get("terms")
            if isinstance(terms, list) and terms and isinstance(terms[0], dict) and terms[0].get("type") == "ref":
                yield ".".join(str(part.get("value")) for part in terms[0]["value"])
            waiting += (value for key, value in node.items() if key != "target")


async def _parsed(opa: Path, text: bytes, *, v0: bool) -> bytes:
    """The syntax tree as JSON; nothing where OPA gives none."""
    words = ("parse", "--format", "json", *(["--v0-compatible"] if v0 else []), "/dev/stdin")
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(str(opa), *words, stdin=pipe, stdout=pipe, stderr=null)
    try:
        async with asyncio.timeout(_PARSE_SECONDS):
            return (await process.communicate(text))[0]
    except TimeoutError:
        return b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
