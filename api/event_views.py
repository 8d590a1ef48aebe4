"""What listeners of ``GET /events`` see: snapshots, narrowed for each kind of caller, and the events between two.

A snapshot makes its document and the JSON of each agent once; a kind of caller that sees less costs what it sees less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from api.auth import Caller, may_read
from api.passes import narrowed_pass
from api.statusview import Observed, narrowed, narrowed_agent, status_document
from reconciler.core.model import PLATFORM, PolicyName
from reconciler.core.passes import PassRecord

_Readable = Callable[[PolicyName], bool]


@dataclass(frozen=True, slots=True)
class View:
    """What one kind of caller sees, as JSON texts: agents by ``<datacentre>/<id>``, passes by id, oldest first."""

    status: str = ""
    agents: Mapping[str, str] = field(default_factory=dict)
    passes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Agent:
    """One of the document, and its text for those who may read everything."""

    name: str
    document: dict[str, Any]
    text: str


class Snapshot:
    """One look. Views are made once for all who see the same."""

    def __init__(self, seen: Observed, passes: Sequence[PassRecord], at: datetime, place: Mapping[str, str]) -> None:
        self._seen = seen
        self._records = passes
        self._at = at
        self._place = place
        self._views: dict[frozenset[str] | None, View] = {}
        self._narrowed: dict[tuple[str, str], str] = {}

    def view(self, caller: Caller) -> View:
        """What this caller sees."""
        kind = None if may_read(caller, PLATFORM) else caller.projects
        if kind not in self._views:
            self._views[kind] = self._view(lambda name: may_read(caller, name))
        return self._views[kind]

    def _view(self, readable: _Readable) -> View:
        status = narrowed({**self._document, "agents": []}, readable)
        del status["agents"]
        passes = {each["id"]: json_text(narrowed_pass(each, readable)) for each in self._passes}
        return View(json_text(status), self._agents_for(readable), passes)

    def _agents_for(self, readable: _Readable) -> Mapping[str, str]:
        if readable(PLATFORM):
            return {each.name: each.text for each in self._agents}
        found = ((each, narrowed_agent(each.document, readable)) for each in self._agents)
        return {each.name: self._text(each, shown) for each, shown in found if shown is not None}

    def _text(self, agent: _Agent, shown: dict[str, Any]) -> str:
        """Of what a caller is shown of an agent: its scope tells all that may be left out."""
        if shown is agent.document:
            return agent.text
        key = (agent.name, shown["scope"])
        if key not in self._narrowed:
            self._narrowed[key] = json_text(shown)
        return self._narrowed[key]

    @cached_property
    def _document(self) -> dict[str, Any]:
        return status_document(self._seen, self._place, self._at)

    @cached_property
    def _agents(self) -> Sequence[_Agent]:
        listed = self._document["agents"]
        return [_Agent(f"{each['datacentre']}/{each['id']}", each, json_text(each)) for each in listed]

    @cached_property
    def _passes(self) -> Sequence[dict[str, Any]]:
        return [each.document() for each in reversed(self._records)]


def difference(sent: View, now: View) -> str:
    """The events that lead from one view to another."""
    found = []
    if now.status != sent.status:
        found.append(event_text("status", now.status))
    changed = [text for name, text in now.agents.items() if sent.agents.get(name) != text]
    removed = [name for name in sent.agents if name not in now.agents]
    if changed or removed or not sent.status:
        found.append(event_text("agents", f'{{"agents": [{", ".join(changed)}], "removed": {json_text(removed)}}}'))
    found += [event_text("pass", text) for name, text in now.passes.items() if sent.passes.get(name) != text]
    return "".join(found)


def event_text(name: str, data: str) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {data}\n\n"


def json_text(document: Any) -> str:
    """On one line: JSON escapes line breaks."""
    return json.dumps(document, ensure_ascii=False)
