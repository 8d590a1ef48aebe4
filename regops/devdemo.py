"""The demonstration of `regops dev`: the lines to copy, and with ``--once`` the same change pushed by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final

import aiohttp

from reconciler.core.errors import RegopsError, StalledError
from regops.devstate import git

_FLIP_SECONDS: Final = 15.0
_FILE: Final = "projects/billing/rego.rego"
_LINES: Final = ("refund_window_days := 30", "refund_window_days := 14")
_QUERY: Final = "/v1/data/projects/billing/authz/allow"
_INPUT: Final = {
    "claims": {"sub": "ann", "roles": ["billing_agent"], "project": "billing"},
    "action": "refund",
    "refund": {"amount": 40, "currency": "EUR", "age_days": 20, "sold_by": "bob"},
}
Say = Callable[[str], None]


def welcome(document: dict[str, Any], text: str | None) -> str:
    """Addresses, and the lines to copy. ``text`` is the policy that they change, as it is at the head of the branch;
    ``None`` for a repository that does not have it."""
    addresses = f"""
  Page    {document["page"]}   (this link logs in)
  API     {document["api"]}/docs   (a token: regops dev token --role platform_admin)
  OPA     {", ".join(document["opa"])}
  Git     {document["git"]} (branch {document["branch"]}, folder {document["path"]})
  etcd    {", ".join(document["etcd"])}
  MongoDB {document["mongo"]}
{_router(document)}"""
    lines = _push_lines(document, text) if _change(text or "") else _clone_lines(document)
    return f"{addresses}\n{lines}\n\nCtrl-C ends everything. What is applied shows up here:\n"


async def flip(session: aiohttp.ClientSession, document: dict[str, Any], folder: Path, say: Say) -> None:
    """Push the demonstration's change and wait for the other decision."""
    opa = _asked(document) + _QUERY
    before = await _until(lambda: _decision(session, opa), lambda answer: answer is not None)
    await asyncio.to_thread(_push, document, folder, say)
    pushed = monotonic()
    say(f"before the push:  {opa} → {json.dumps(before)}")
    after = await _until(lambda: _decision(session, opa), lambda answer: answer is not None and answer != before)
    say(f"after the push:   {opa} → {json.dumps(after)}")
    say(f"git push returned → OPA decides by the new rule: {(monotonic() - pushed) * 1000:.0f} ms")
    await asyncio.sleep(0.3)  # the line with the stages is on its way


def policy_text(document: dict[str, Any], bare: Path) -> str | None:
    """The policy that the demonstration changes, in the bare repository at ``bare``; ``None`` where it is not there."""
    try:
        return git("show", f"{document['branch']}:{document['path']}/{_FILE}", folder=bare)
    except (StalledError, OSError):
        return None


def _change(text: str) -> tuple[str, str] | None:
    """Which line to replace by which: whichever way the last change went, the next one goes back."""
    return next(((old, new) for old, new in (_LINES, _LINES[::-1]) if old in text), None)


def _push_lines(document: dict[str, Any], text: str | None) -> str:
    old, new = _change(text or "") or _LINES
    query = json.dumps({"input": _INPUT}, separators=(",", ":"))
    file = f"{document['path']}/{_FILE}"
    commit = f'git -c user.name=me -c user.email=me@localhost commit -am "{new}"'
    answers = "true to false" if new == _LINES[1] else "false to true"
    return f"""Copy these three lines into another terminal: clone, change a policy and push, ask OPA

  git clone {document["git"]} my-policies && cd my-policies
  sed -i 's/{old}/{new}/' {file} && {commit} && git push
  curl -s {_asked(document)}{_QUERY} -d '{query}'

The push changes the answer from {answers}."""


def _clone_lines(document: dict[str, Any]) -> str:
    return f"""Change a policy in a clone and push; then ask OPA

  git clone {document["git"]} my-policies
  curl -s {_asked(document)}/v1/data/platform"""


def _asked(document: dict[str, Any]) -> str:
    """Who answers for every project: the router, where there are shards."""
    return str(document.get("router") or document["opa"][0])


def _router(document: dict[str, Any]) -> str:
    if "router" not in document:
        return ""
    count = len(document["opa"])
    return f"""  Router  {document["router"]}   (asks the right one of {count} shards; only to try it out: an
          installation has HAProxy or Envoy there, configured by: regops shards haproxy, regops shards envoy)
"""


def _push(document: dict[str, Any], folder: Path, say: Say) -> None:
    clone = folder / "once"
    shutil.rmtree(clone, ignore_errors=True)
    git("clone", "-q", "-b", document["branch"], document["git"], str(clone), folder=folder)
    file = clone / document["path"] / _FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    change = _change(text)
    if change is None:
        raise StalledError(
            f"the repository has no {_FILE} with `{_LINES[0]}`", remedy="--once works with the seeded one: add --reset."
        )
    file.write_text(text.replace(*change), encoding="utf-8")
    say(f"pushing a change of {_FILE}: {change[0]} → {change[1]}")
    git("commit", "-q", "-a", "-m", f"Billing: {change[1]}", folder=clone)
    git("push", "-q", "origin", document["branch"], folder=clone)


async def _decision(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with session.post(url, json={"input": _INPUT}) as answer:
            return (await answer.json()).get("result")
    except (aiohttp.ClientError, TimeoutError):
        return None


async def _until(ask: Callable[[], Awaitable[Any]], good: Callable[[Any], bool]) -> Any:
    try:
        async with asyncio.timeout(_FLIP_SECONDS):
            while not good(answer := await ask()):  # noqa: ASYNC110 another process changes it
                await asyncio.sleep(0.005)
            return answer
    except TimeoutError as error:
        raise RegopsError(f"the decision did not change within {_FLIP_SECONDS:g} s; see the logs") from error
