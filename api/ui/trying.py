"""A decision tried from the page: asked of the OPA beside this replica, which enforces what it is asked about."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from yarl import URL

from reconciler.agent.opa_config import BUNDLE
from reconciler.core.errors import TransientError
from reconciler.core.model import PolicyName
from reconciler.core.rego_text import declared_package
from reconciler.settings import AuthSettings

INPUT_BYTES: Final = 65_536
_ANSWER_BYTES: Final = 262_144
_SECONDS: Final = 2.0
_AT_ONCE: Final = 4
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,15}")
_RULE: Final = re.compile(r"^(?:default[ \t]+)?([a-z_A-Z][A-Za-z0-9_]*)(?![A-Za-z0-9_])", re.MULTILINE)
_LOOKED_AT: Final = 262_144
"""Bytes of a policy in which rules are looked for."""
_NO_RULES: Final = frozenset({"package", "import", "default", "else", "some", "every", "not", "with", "if"})


class CannotTryError(ValueError):
    """What was asked is no question; the words are for the person who asked it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What OPA said. ``defined`` is false where no rule decides; ``result`` is JSON text; ``commit`` the bundle's
    revision that decided."""

    path: str
    defined: bool
    result: str
    commit: str | None


class Trial:
    """Asks one OPA; a few questions at once."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._base = URL(url)
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def decide(self, policy: PolicyName, rule: str, text: str) -> Decision:
        """The decision of a rule of this policy, and of no other, for an input given as JSON text.

        Raises `CannotTryError` for what is no question, `TransientError` when OPA does not answer or refuses.
        """
        path = f"{policy}/{_rule(policy, rule)}"
        value = _input(text)
        url = self._base.with_path(f"/v1/data/{path}").with_query(provenance="true")
        try:
            async with asyncio.timeout(_SECONDS), self._room:
                document = await self._ask(url, json.dumps({"input": value}).encode())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"the OPA beside this server does not answer within {_SECONDS:g} s"
            raise TransientError(message, reason="AuthorizationUnavailable") from error
        bundles = (document.get("provenance") or {}).get("bundles") or {}
        result = json.dumps(document.get("result"), indent=2, ensure_ascii=False)
        return Decision(path, "result" in document, result, (bundles.get(BUNDLE) or {}).get("revision"))

    async def _ask(self, url: URL, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with self._http.post(url, data=body, headers=headers, allow_redirects=False) as answer:
            raw = await answer.content.read(_ANSWER_BYTES + 1)
            while len(raw) <= _ANSWER_BYTES and (more := await answer.content.read(_ANSWER_BYTES)):
                raw += more
        if len(raw) > _ANSWER_BYTES:
            raise CannotTryError("the result is too long to show: ask for a rule further down")
        try:
            document = json.loads(raw)
        except ValueError as error:
            raise TransientError(
                "the OPA beside this server gives no JSON", reason="AuthorizationUnavailable"
            ) from error
        if answer.status != 200 or not isinstance(document, dict):  # noqa: PLR2004 OK
            said = document.get("message") if isinstance(document, dict) else None
            raise TransientError(f"OPA answers {answer.status}: {said or 'nothing more'}")
        return document


def rules_of(policy: PolicyName, rego: bytes) -> list[str]:
    """Paths of the policy's rules, as a suggestion for who types one: found by text, so not to be relied on.

    The time it takes grows with the text and no more, whatever is in it.
    """
    text = rego[:_LOOKED_AT].decode("utf-8", "replace")
    declared = declared_package(text)
    if declared is None:
        return []
    inner = declared.path[len(policy.split("/")) :]
    names = dict.fromkeys(name for name in _RULE.findall(text) if name not in _NO_RULES)
    return ["/".join([*inner, name]) for name in names][:100]


def _rule(policy: PolicyName, rule: str) -> str:
    wanted = rule.strip().removeprefix("/v1").removeprefix("/").removeprefix("data/").removeprefix(f"{policy}/")
    wanted = wanted.strip("/").replace(".", "/") if "/" not in wanted else wanted.strip("/")
    if not _PATH.fullmatch(wanted):
        raise CannotTryError(f"{rule[:60]!r} names no rule: write its path below the policy, such as authz/allow")
    return wanted


def _input(text: str) -> Any:
    if len(text.encode("utf-8", "replace")) > INPUT_BYTES:
        raise CannotTryError(f"the input is longer than {INPUT_BYTES // 1024} KiB")
    try:
        return json.loads(text or "null", parse_constant=_no_number)
    except json.JSONDecodeError as error:
        message = f"the input is no JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise CannotTryError(message) from error
    except (ValueError, RecursionError) as error:
        raise CannotTryError(f"the input is no JSON: {error}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


@contextlib.asynccontextmanager
async def open_trial(settings: AuthSettings) -> AsyncIterator[Trial]:
    """For as long as the block runs; connections of its own, so that a slow question holds up no authorization."""
    async with aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield Trial(http, settings.opa)
