"""Webhooks: a Git host says that something was pushed. A hook only says *look*; what is there, the remote tells.

How each provider proves a hook is in `api.hook_proofs`, what it is proven with in `api.hook_secrets`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from api import keys
from api.hook_proofs import PROVIDERS, Provider
from api.hook_secrets import Secrets
from api.problems import ProblemError
from api.requests import TRACE
from reconciler.metrics import HookMetrics

MOST: Final = 1024 * 1024
"""Bytes of a body."""
_AT_ONCE: Final = 65536
"""Bytes that are parsed on the event loop."""
_SECONDS: Final = 10.0
_KINDS: Final = ("push", "repository_update")
"""What GitLab calls a push in ``object_kind``; system hooks have ``event_name`` only, and by default the second one."""
_SCP: Final = re.compile(r"(?:[^@/]+@)?([^:/]+):(?!//)(.+)")
_URLS: Final = (
    "clone_url",
    "ssh_url",
    "html_url",
    "git_url",
    "url",
    "git_http_url",
    "git_ssh_url",
    "http_url",
    "web_url",
)


class Hooks:
    """Takes hooks for one branch of one repository, which hosts may know by several URLs."""

    def __init__(
        self,
        secrets: Secrets,
        *,
        repositories: Iterable[str],
        branch: str,
        look: Callable[[str | None], None],
        metrics: HookMetrics,
    ) -> None:
        """``look`` is called for each push to the branch, with its trace context. It neither waits nor raises."""
        self._secrets = secrets
        self._repositories = {normal(url) for url in repositories if url}
        self._reference = f"refs/heads/{branch}"
        self._look = look
        self._metrics = metrics

    async def take(self, request: web.Request, provider: Provider) -> web.Response:
        """202 for a push, also for one that is none of ours; 200 for a test. Raises 401, 403, 408, 413 or 400."""
        try:
            said, why = await self._said(request, provider)
        except ProblemError as error:
            self._metrics.hooks.labels(provider.name, "refused" if error.status in {401, 403} else "malformed").inc()
            raise
        self._metrics.hooks.labels(provider.name, said).inc()
        document = {"result": said} | ({"reason": why} if why else {})
        return web.json_response(document, status=200 if said == "pong" else 202)

    async def _said(self, request: web.Request, provider: Provider) -> tuple[str, str]:
        secrets = self._secrets.now()
        if not secrets:
            raise ProblemError(403, "forbidden", "webhooks are not set up here: set hooks.secrets_file")
        body = await _raw(request)
        if not any(provider.proof(request.headers, body, secret) for secret in secrets):
            message = f"the signature or token of this {provider.name} webhook is missing or wrong"
            raise ProblemError(401, "unauthorized", message, headers={"WWW-Authenticate": "Webhook"})
        event = provider.event(request.headers)
        if event in provider.pings:
            return "pong", ""
        if event not in provider.pushes:
            return "ignored_event", f"{event or 'an event without a name'} is not looked at, only pushes are"
        payload = await _payload(request, body)
        return self._judged(payload, request.get(TRACE), strict=provider.name != "generic")

    def _judged(self, payload: Mapping[str, Any], trace: str | None, *, strict: bool) -> tuple[str, str]:
        kind = payload.get("object_kind") or payload.get("event_name", "push")
        if kind not in _KINDS:
            return "ignored_event", f"{str(kind)[:40]} is not looked at, only pushes are"
        urls = _urls_of(payload)
        if (strict or urls) and not self._repositories & urls:
            named = ", ".join(sorted(urls))[:200] or "none"
            return "ignored_repository", f"it is about {named}; see git.remote and hooks.repositories"
        about = payload.get("refs") if kind == "repository_update" else payload.get("ref")
        references = about if isinstance(about, list) else [about]
        if (strict or about is not None) and self._reference not in references:
            return "ignored_branch", f"it is about {str(about)[:100]}, and {self._reference} is followed"
        self._look(trace)
        return "looking", ""


def taking(name: str) -> Callable[[web.Request], Any]:
    """The handler of one provider."""
    provider = PROVIDERS[name]

    async def hook(request: web.Request) -> web.Response:
        return await request.app[keys.HOOKS].take(request, provider)

    return hook


async def unknown(_request: web.Request) -> web.Response:
    """404 for a host that has no hooks of its own, with those that there are."""
    named = ", ".join(f"/hooks/{name}" for name in PROVIDERS)
    raise ProblemError(404, "not_found", f"there is no such webhook; there are {named}, the last for any other host")


def normal(url: str) -> str:
    """A repository's URL as it is compared: host and path, without scheme, user, port, case and ``.git``.

    What is no URL stays as it is.
    """
    scp = _SCP.fullmatch(url)
    if scp and "://" not in url:
        host, path = scp[1], scp[2]
    else:
        try:
            parts = urlsplit(url)
        except ValueError:
            return url
        host, path = parts.hostname or "", parts.path
    return f"{host}/{path.strip('/').removesuffix('.git')}".lower()


def _urls_of(payload: Mapping[str, Any]) -> set[str]:
    found = set()
    for place in ("repository", "project"):
        said = payload.get(place)
        urls = [said] if isinstance(said, str) else [said.get(name) for name in _URLS] if isinstance(said, dict) else []
        found |= {normal(url) for url in urls if isinstance(url, str) and url}
    return found


async def _payload(request: web.Request, body: bytes) -> Mapping[str, Any]:
    """The JSON object of the body: GitHub may send it as the field of a form.

    A form's type alone makes none: it is what `curl -d` says of every body.
    """
    form = request.content_type == "application/x-www-form-urlencoded" and not body.lstrip().startswith(b"{")
    if not body.strip():
        return {}
    try:
        found = await asyncio.to_thread(_parsed, body, form) if len(body) > _AT_ONCE else _parsed(body, form)
    except (ValueError, RecursionError) as error:
        raise ProblemError(400, "validation_error", "the body is no JSON object") from error
    return found


def _parsed(body: bytes, form: bool) -> Mapping[str, Any]:
    text = body.decode()
    if form:
        text = parse_qs(text, strict_parsing=True, max_num_fields=10).get("payload", [""])[0]
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004 as JSON's own errors
    return found


async def _raw(request: web.Request) -> bytes:
    chunks, size = list[bytes](), request.content_length or 0
    try:
        async with asyncio.timeout(_SECONDS):
            while size <= MOST and (chunk := await request.content.readany()):
                chunks.append(chunk)
                size = max(size, sum(map(len, chunks)))
    except TimeoutError as error:
        message = f"the body did not arrive within {_SECONDS:g} s"
        raise ProblemError(408, "request_timeout", message, headers={"Connection": "close"}) from error
    except (ConnectionError, web.RequestPayloadError) as error:
        raise ProblemError(400, "validation_error", "the body broke off before its end") from error
    if size > MOST:
        message = f"the body is larger than {MOST} bytes"
        raise ProblemError(413, "payload_too_large", message, headers={"Connection": "close"})
    return b"".join(chunks)
