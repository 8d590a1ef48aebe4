"""What the commands about the whole system print: conditions, policies, agents, passes, a commit's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from reconciler.core.times import rfc3339
from regops.commands.table import table
from regops.commands.target import place_of

_COMMIT: Final = 12
_SHOWN: Final = 10
_CELL: Final = 80
"""Characters of a cell whose whole text stands elsewhere."""
_STAGES: Final = {
    "pushed": "pushed",
    "seen": "seen",
    "fetched": "fetched",
    "validated": "validated",
    "applied": "applied in etcd",
    "enforced_first": "enforced by the first OPA",
    "enforced_everywhere": "enforced by every OPA",
}


def status_page(status: Mapping[str, Any]) -> str:
    """`regops status`."""
    source = status["source"]
    lines = [
        f"Source:     {source['remote']} (branch {source['branch']}, folder {source['path']})",
        f"Applied:    {status['last_applied_revision'] or 'nothing yet'}   {status['last_applied_at'] or ''}".rstrip(),
        f"Attempted:  {status['last_attempted_revision'] or '-'}",
        f"Sync:       {status['sync']['status']}",
        f"Health:     {status['health']['status']}",
        f"Policies:   {status['policies']['live']} live, {status['policies']['held']} held",
        f"OPAs:       {fleet_words(status)}",
    ]
    if status["suspended"]:
        lines.append(f"Suspended:  nothing is applied until `regops resume`{_suspension(status.get('suspension'))}")
    rows = [[c["type"], c["status"], c["reason"], c["message"]] for c in status["conditions"]]
    lines += ["", table(["CONDITION", "STATUS", "REASON", "MESSAGE"], rows)]
    for held in status["held"]:
        lines += ["", f"{held['policy']} is held ({held['reason']}):", *(f"  {place_of(e)}" for e in held["errors"])]
    if status["blocked_deletions"]:
        commit = (status["last_attempted_revision"] or "").rpartition(":")[2]
        lines += ["", "Deletions that wait for a person:", *(f"  {name}" for name in status["blocked_deletions"])]
        lines.append(f"If they are meant: regops sync --confirm {commit}")
    if status.get("warnings"):
        lines += ["", "Warnings:", *(f"  {text}" for text in status["warnings"][:_SHOWN])]
    if status["ignored_files"]:
        lines += ["", f"Ignored files: {', '.join(status['ignored_files'][:_SHOWN])}"]
    if status.get("foreign_keys"):
        lines += ["", f"Foreign keys in etcd, not enforced: {', '.join(status['foreign_keys'][:_SHOWN])}"]
        lines.append("To delete them: regops sync --remove-foreign")
    known = all(each["reason"] != "StoreUnavailable" for each in status["conditions"])
    return "\n".join([*lines, "", fleet_table(status["agents"], known=known)])


def status_line(status: Mapping[str, Any]) -> str:
    """The same in one line, for a log of what changes."""
    revision = (status["last_applied_revision"] or "nothing").rpartition(":")[2][:_COMMIT]
    now = rfc3339(datetime.now(UTC))
    words = [now, status["sync"]["status"], status["health"]["status"], revision]
    policies = status["policies"]
    return "  ".join([*words, f"{policies['live']} live, {policies['held']} held", fleet_words(status)])


def fleet_words(status: Mapping[str, Any]) -> str:
    """How many OPAs enforce what is applied; a server of before tells no totals."""
    counts = status.get("fleet")
    if counts is None or not counts["agents"]:
        return "no agent has reported yet" if counts is not None else f"{len(status['agents'])}"
    words = [f"{counts['current']} of {counts['agents']} enforce what is applied"]
    words += [f"{counts[name]} {says}" for name, says in _COUNTED.items() if counts[name]]
    return ", ".join(words)


_COUNTED: Final = {"behind": "behind", "unknown": "unknown", "stale": "stale", "errors": "with an error"}


def fleet_now(document: Mapping[str, Any]) -> str:
    """`regops fleet`; a server of before tells nothing of what it does not know."""
    missing = document.get("missing")
    if missing and not document["agents"]:
        return f"Missing: {missing}"
    shown = fleet_table(document["agents"])
    return f"{shown}\n\nMissing: {missing}" if missing else shown


def fleet_table(agents: Sequence[Mapping[str, Any]], *, known: bool = True) -> str:
    """What each OPA enforces now; the lag where the server tells it. ``known``: whether its etcd can be read."""
    if not agents:
        return "No agent has reported yet" if known else "Which OPAs there are is not known: etcd cannot be read"
    lag = any("behind_since" in agent for agent in agents)
    rows = [
        [
            agent["id"],
            agent["datacentre"],
            agent["scope"],
            (agent["enforced_revision"] or "unknown").rpartition(":")[2][:_COMMIT],
            agent["since"],
            *([_lag(agent)] if lag else []),
            agent["opa_version"],
            _quiet(agent, known=known),
        ]
        for agent in agents
    ]
    head = ["AGENT", "DATACENTRE", "SCOPE", "ENFORCES", "SINCE", *(["LAG"] if lag else []), "OPA", "ERROR"]
    return table(head, rows)


def _lag(agent: Mapping[str, Any]) -> str:
    since = agent.get("behind_since")
    if since is None:
        return ""
    passes = agent.get("behind_by")
    return f"{age(since)}{'' if passes is None else f', {passes} passes' if passes != 1 else ', 1 pass'}"


def fleet_then(document: Mapping[str, Any]) -> str:
    """What each OPA enforced at a time."""
    rows = [
        [
            agent["id"],
            agent["datacentre"],
            agent["scope"],
            (agent["commit"] or "unknown")[:_COMMIT],
            agent["since"],
            agent["to"] or "",
            agent["error"] or _doubt(agent),
        ]
        for agent in document["agents"]
    ]
    shown = table(["AGENT", "DATACENTRE", "SCOPE", "ENFORCED", "SINCE", "UNTIL", "NOTE"], rows) if rows else ""
    if not document["missing"]:
        return shown or "No agent had reported"
    return f"{shown}\n\nMissing: {document['missing']}" if shown else f"Not recorded: {document['missing']}"


def policies_table(items: Sequence[Mapping[str, Any]]) -> str:
    """Of each policy what is live, what is held, who enforces it."""
    if not items:
        return "No policy is live or held"
    rows = [
        [
            item["policy"],
            item["sync"]["status"],
            item["health"]["status"],
            (item["commit"] or "")[:_COMMIT],
            item["since"],
            item["actor"],
            f"{item['agents']['current']}/{item['agents']['total']}",
            _held(item["held"]),
        ]
        for item in items
    ]
    return table(["POLICY", "SYNC", "HEALTH", "COMMIT", "SINCE", "AUTHOR", "OPAS", "HELD"], rows)


def _held(held: Mapping[str, Any] | None) -> str:
    if held is None:
        return ""
    said = f"{held['reason']}: {place_of(held['errors'][0])}" if held["errors"] else str(held["reason"])
    first = said.partition("\n")[0]
    return said if first == said and len(said) <= _CELL else f"{first[: _CELL - 1].rstrip()}…"


def policy_page(item: Mapping[str, Any]) -> str:
    """One policy."""
    lines = [policies_table([item])]
    if item["held"]:
        lines += ["", f"Held since commit {item['held']['commit'][:_COMMIT]} ({item['held']['reason']}):"]
        lines += [f"  {place_of(each)}" for each in item["held"]["errors"]]
    return "\n".join([*lines, "", fleet_table(item["enforced_by"])])


def passes_table(items: Sequence[Mapping[str, Any]]) -> str:
    """What the leader's passes did."""
    if not items:
        return "No pass has written anything yet"
    rows = [
        [
            each["seen_at"],
            _outcome(each),
            (each["commit"] or "")[:_COMMIT],
            each["trigger"],
            _seconds(each["seconds"]["total"]),
            _enforced(each),
            _what(each),
            _who(each),
        ]
        for each in items
    ]
    return table(["SEEN", "OUTCOME", "COMMIT", "TRIGGER", "APPLIED IN", "ENFORCED IN", "POLICIES", "BY"], rows)


def _outcome(each: Mapping[str, Any]) -> str:
    times = f" x{each['count']}" if each["count"] > 1 else ""
    return f"{each['outcome']}{times}{': ' + each['reason'] if each['reason'] else ''}"


def _what(each: Mapping[str, Any]) -> str:
    if each["outcome"] != "applied":
        return str(each["message"])
    words = [f"{each[name]} {name}" for name in ("created", "updated", "deleted", "healed", "held") if each[name]]
    held, words = words[-1:] if each["held"] else [], words[:-1] if each["held"] else words
    changed = _named(", ".join(words), [change["policy"] for change in each["changes"]], each["changes_more"])
    holds = each.get("holds") or []
    told = _named(", ".join(held), holds, each["held"] - len(holds))
    return ", ".join(each for each in (changed, told) if each) or "none changed"


def _named(words: str, names: Sequence[str], untold: int) -> str:
    """The first of those that the words are about, in brackets."""
    more = len(names) - 1 + untold
    return f"{words} ({names[0]}{f' and {more} more' if more > 0 else ''})" if words and names else words


def _confirmed(each: Mapping[str, Any]) -> str:
    return f"; deletions confirmed by {each['confirmed_by']}" if each.get("confirmed_by") else ""


def _who(each: Mapping[str, Any]) -> str:
    if each.get("confirmed_by"):
        return f"{each['confirmed_by']} (confirmed)"
    names = list(dict.fromkeys(commit["author"].partition(" <")[0] for commit in each["commits"]))
    return ", ".join(names[:2]) + (" …" if len(names) > 2 else "")  # noqa: PLR2004 a line's worth


def _enforced(each: Mapping[str, Any]) -> str:
    found = each["enforced"]
    if not found or not found["agents"]:
        return ""
    taken = each["seconds"]
    seconds = None if None in {taken["total"], taken["enforced"]} else taken["total"] + taken["enforced"]
    return _seconds(seconds) if seconds is not None else f"{found['enforced']} of {found['agents']} OPAs"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} s"


def trace_page(found: Mapping[str, Any]) -> str:
    """One commit's way."""
    lines = [
        f"Commit:   {found['revision']}",
        f"Author:   {found['author']}",
        f"Subject:  {found['subject']}",
        f"State:    {_STATES[found['state']]}",
    ]
    entry, passes = found["pass"], found.get("passes") or ()
    if entry:
        lines.append(f"Applied:  by {entry['leader']}, which was triggered by {entry['trigger']}{_confirmed(entry)}")
    if len(passes) > 1 or (passes and not entry):
        lines += [f"Pass:     {each['applied_at']}  {each['trigger']}: {_what(each)}" for each in passes]
    for each in found["policies"]:
        lines.append(f"Policy:   {each['policy']}  {each['state']}{': ' + each['reason'] if each['reason'] else ''}")
        lines += [f"            {error}" for error in each["errors"]]
    if found["policies_more"]:
        lines.append(f"          and {found['policies_more']} that this token may not read")
    lines += ["", table(["STAGE", "TIME", "AFTER"], _stages(found["stages"]))]
    rows = [
        [each["id"], each["datacentre"], each["scope"], each["state"], each["at"], _seconds(each["seconds"])]
        for each in found["agents"]
    ]
    if rows:
        lines += ["", table(["AGENT", "DATACENTRE", "SCOPE", "STATE", "ENFORCED", "AFTER ETCD"], rows)]
    return "\n".join([*lines, *(f"Note: {note}" for note in found["missing"])])


_STATES: Final = {
    "pending": "pending: in Git, not applied yet",
    "held": "held: it could not go live",
    "live": "live",
    "deleted": "live: it deleted a policy",
    "superseded": "superseded: a newer version is live",
    "applied": "applied: it changes no policy",
    "not_in_branch": "not in the branch",
    "unknown": "unknown: etcd cannot be read",
}


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Each with the time since the one before that is known; a push has no exact time of its own."""
    rows, before = [], None
    for each in stages:
        at = datetime.fromisoformat(each["at"]) if each["at"] else None
        gap = "" if at is None or before is None else f"{(at - before).total_seconds():+.3f} s"
        rows.append([_STAGES.get(each["stage"], each["stage"]), each["at"] or "not yet, or not known", gap])
        before = at or before
    return rows


def age(text: str) -> str:
    """How long ago a time was, in one unit."""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _suspension(word: Mapping[str, Any] | None) -> str:
    """Who, when and why; nothing where the server does not tell or the record cannot be read."""
    if not word or not word.get("by"):
        return ""
    return f" (by {word['by']} at {word['at']}{': ' if word['reason'] else ''}{word['reason']})"


def _doubt(agent: Mapping[str, Any]) -> str:
    """Why it is not known what was enforced."""
    return f"{agent['reason']}; before: {agent['last_commit'][:_COMMIT]}" if agent["reason"] else ""


def _quiet(agent: Mapping[str, Any], *, known: bool) -> str:
    """What is wrong with an agent, or with what is known of it."""
    if not known or agent.get("reason") == "unobserved":
        return "not known: etcd cannot be read"
    if agent["error"]:
        return str(agent["error"])
    if not agent["alive"]:
        return "silent"
    return "stale: etcd is out of its reach" if agent["stale"] else ""
