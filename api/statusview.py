"""`GET /status` from what etcd holds: pure. Flux's conditions, Argo CD's sync and health words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from reconciler.core.conditions import (
    DRIFTED,
    FETCH_FAILED,
    HEALTHY,
    PRUNE_BLOCKED,
    READY,
    RECONCILING,
    VALIDATION_FAILED,
    Condition,
    StatusRecord,
)
from reconciler.core.guards import BLOCKED
from reconciler.core.model import PLATFORM, PolicyName, policy_name, project_policy
from reconciler.core.records import Applied, Held, Receipt, Suspended
from reconciler.core.silence import FORGET_AFTER, forgotten
from reconciler.core.times import rfc3339

_NAMED: Final = 5
_NOBODY: Final[Mapping[str, int]] = dict.fromkeys(("agents", "current", "behind", "unknown", "stale", "errors"), 0)
_NAMELESS: Final = frozenset(
    {"StoreUnavailable", "NoLeader", "NoAgents", "Enforced", "ReconciliationSucceeded", "Suspended"}
)
"""Reasons whose messages name no policy, no file and no agent."""
_HIDDEN: Final = "this OPA reports an error, which a platform admin may read"


@dataclass(frozen=True, slots=True)
class Observed:
    """What one read of etcd found. ``alive`` has ``<dc>/<id>`` of the agents with a lease."""

    record: StatusRecord | None = None
    applied: Applied | None = None
    suspended: Suspended | None = None
    held: Mapping[str, Held] = field(default_factory=dict)
    live: int = 0
    receipts: tuple[Receipt, ...] = ()
    alive: frozenset[str] = frozenset()
    led: bool = False
    reachable: bool = True
    since: str | None = None
    """Since when it is not ``reachable``; before that, since when this replica looks."""
    forget_after: timedelta = FORGET_AFTER
    """How long a silent agent counts."""

    def lives(self, receipt: Receipt) -> bool:
        """Whether its agent is known to be alive now: of an etcd that cannot be read nobody knows."""
        return self.reachable and name_of(receipt) in self.alive

    def is_proven_by(self, receipt: Receipt) -> bool:
        """Whether its OPA had proven to enforce what is applied."""
        return receipt.proves(*((self.applied.commit, self.applied.digest) if self.applied else (None, None)))


def status_document(seen: Observed, source: Mapping[str, str], now: datetime) -> dict[str, Any]:
    """The document of "The status document" in docs/operations.md; revisions as ``<branch>@sha1:<commit>``."""
    agents = counted(seen, now)
    record = seen.record
    healthy = replace(_healthy(seen, agents, now), observed_generation=seen.applied.height if seen.applied else 0)
    conditions = (*_conditions(seen, now), healthy)
    branch = (record.source if record else source).get("branch", "")
    return {
        "conditions": [asdict(condition) for condition in conditions],
        "sync": {"status": _sync(seen, conditions)},
        "health": {"status": _health(seen, conditions, agents)},
        "source": {name: (record.source if record else source).get(name, "") for name in ("remote", "branch", "path")},
        "last_attempted_revision": revision(branch, record.last_attempted_revision if record else None),
        "last_applied_revision": revision(branch, seen.applied.commit if seen.applied else None),
        "last_applied_at": seen.applied.at if seen.applied else None,
        "last_handled_reconcile_at": record.last_handled_reconcile_at if record else None,
        "suspended": seen.suspended is not None,
        "suspension": asdict(seen.suspended) if seen.suspended else None,
        "policies": {"live": seen.live, "held": len(seen.held)},
        "held": [{"policy": name, **asdict(held)} for name, held in sorted(seen.held.items())],
        "blocked_deletions": list(record.blocked_deletions) if record else [],
        "ignored_files": list(record.ignored_files) if record else [],
        "foreign_keys": list(record.foreign_keys) if record else [],
        "warnings": list(record.warnings) if record else [],
        "leader": record.leader if record and seen.led else None,
        "last_apply": record.last_apply if record else None,
        "fleet": totals(agents, seen),
        "agents": [agent_of(receipt, seen, branch) for receipt in agents],
    }


def totals(receipts: Iterable[Receipt], seen: Observed) -> dict[str, Any]:
    """How many OPAs enforce the applied commit, are behind it, or prove nothing; of these how many are stale or report
    an error; the same by datacentre. Names nobody, so everybody may read it."""
    everywhere, datacentres = dict(_NOBODY), dict[str, dict[str, int]]()
    for receipt in receipts:
        marks = ["agents", agent_state(receipt, seen)]
        marks += ["stale"] * _stale(receipt, seen) + ["errors"] * bool(receipt.error)
        for counts in (everywhere, datacentres.setdefault(receipt.datacentre, dict(_NOBODY))):
            for mark in marks:
                counts[mark] += 1
    return {**everywhere, "datacentres": dict(sorted(datacentres.items()))}


def agent_state(receipt: Receipt, seen: Observed) -> str:
    """``current``: its OPA proves the applied commit; ``behind``: another one; ``unknown``: nothing, or nothing can be
    read."""
    if not seen.lives(receipt) or receipt.enforced_revision is None:
        return "unknown"
    return "current" if seen.is_proven_by(receipt) else "behind"


def narrowed(document: dict[str, Any], may_read: Callable[[PolicyName], bool]) -> dict[str, Any]:
    """The document for a caller who may not read everything: counts and states stay, what names policies that it may
    not read is left out, messages that could name them give way to numbers, and of a suspension nothing is told but its
    time: its reason is a person's free text."""
    if may_read(PLATFORM):
        return document

    def mine(path: str) -> bool:
        try:
            return may_read(policy_name("/".join(path.split("/")[:2])))
        except ValueError:
            return False

    held = [held for held in document["held"] if mine(held["policy"])]
    others = document["policies"]["held"] - len(held)
    conditions = [
        {**condition, "message": _redacted(condition, document, others)} for condition in document["conditions"]
    ]
    suspension = document["suspension"]
    return {
        **document,
        "conditions": conditions,
        "held": held,
        "blocked_deletions": [name for name in document["blocked_deletions"] if mine(name)],
        "ignored_files": [path for path in document["ignored_files"] if mine(path)],
        "foreign_keys": [],
        "suspension": {"by": "", "reason": "", "at": suspension["at"]} if suspension else None,
        "agents": narrowed_agents(document["agents"], may_read),
        "warnings": [text for text in document["warnings"] if mine(text.partition(":")[0])],
    }


def _redacted(condition: Mapping[str, Any], document: Mapping[str, Any], others: int) -> str:
    """A condition's message without names. ``others``: held policies that the caller may not read."""
    reason, fleet = condition["reason"], document["fleet"]
    if reason in _NAMELESS:
        return str(condition["message"])
    if reason == VALIDATION_FAILED or reason in BLOCKED:
        counts = {"yours": document["policies"]["held"] - others, "others": others}
        words = [
            f"{count} {'policy' if count == 1 else 'policies'} of {whose}" for whose, count in counts.items() if count
        ]
        return f"held: {', '.join(words) or 'none any more'}"
    if reason in {"Behind", "AgentsSilent"}:
        return f"of {fleet['agents']} OPAs {fleet['behind']} are behind and {fleet['unknown']} prove nothing"
    return "a platform admin may read more of it"


def narrowed_agents(agents: list[dict[str, Any]], may_read: Callable[[PolicyName], bool]) -> list[dict[str, Any]]:
    """The agents for a caller who may not read everything: no project of theirs that it may not read, and no words of
    an OPA, which name files and lines, nor where it is inside."""
    if may_read(PLATFORM):
        return agents
    found = (narrowed_agent(agent, may_read) for agent in agents)
    return [agent for agent in found if agent is not None]


def narrowed_agent(agent: dict[str, Any], may_read: Callable[[PolicyName], bool]) -> dict[str, Any] | None:
    """One of them; ``None`` for one that answers for other projects only. The very same for who may read everything."""
    if may_read(PLATFORM):
        return agent
    kind, colon, names = agent["scope"].partition(":")
    mine = [name for name in names.split(",") if _mine(name, may_read)] if kind == "projects" else []
    if kind == "projects" and not mine:
        return None
    scope = f"{kind}{colon}{','.join(mine)}" if kind == "projects" else agent["scope"]
    error = _HIDDEN if agent["error"] else agent["error"]
    return {name: value for name, value in agent.items() if name != "opa"} | {"scope": scope, "error": error}


def _mine(project: str, may_read: Callable[[PolicyName], bool]) -> bool:
    try:
        return may_read(project_policy(project))
    except ValueError:
        return False


def _conditions(seen: Observed, now: datetime) -> tuple[Condition, ...]:
    found = seen.record.conditions if seen.record else ()
    if not seen.reachable:
        return _unknown(found, "StoreUnavailable", "etcd cannot be read", _since(seen, now))
    if not found:
        return _unknown((), "Progressing", "no pass has run yet", _since(seen, now))
    if not seen.led:
        return _unknown(found, "NoLeader", "no replica leads: nothing is being applied", _since(seen, now))
    return tuple(found)


def _since(seen: Observed, now: datetime) -> str:
    """A time that stays the same from look to look, for what has no time of its own."""
    return seen.since or (seen.record.at if seen.record else "") or rfc3339(now)


def _unknown(found: Iterable[Condition], reason: str, message: str, at: str) -> tuple[Condition, ...]:
    """Ready is unknown, and therefore something is being done about it; notices of before still stand."""
    kept = [c for c in found if c.type in {VALIDATION_FAILED, PRUNE_BLOCKED, FETCH_FAILED}]
    return (
        Condition(READY, "Unknown", reason, message, at),
        Condition(RECONCILING, "True", reason, message, at),
        *kept,
    )


def _healthy(seen: Observed, agents: list[Receipt], now: datetime) -> Condition:
    at = max((receipt.since for receipt in agents), default=_since(seen, now))
    if not seen.reachable:
        return Condition(HEALTHY, "Unknown", "StoreUnavailable", "etcd cannot be read", _since(seen, now))
    if not agents:
        return Condition(HEALTHY, "True", "NoAgents", "no agent has reported: nothing enforces this yet", at)
    silent = [name_of(receipt) for receipt in agents if not seen.lives(receipt)]
    behind = [name_of(each) for each in agents if seen.lives(each) and not seen.is_proven_by(each)]
    if behind:
        return Condition(HEALTHY, "False", "Behind", f"not at the applied commit: {_names(behind)}", at)
    if silent:
        message = f"silent: {_names(silent)}; `regops fleet forget ID` drops one that is gone for good"
        return Condition(HEALTHY, "Unknown", "AgentsSilent", message, at)
    return Condition(HEALTHY, "True", "Enforced", f"{len(agents)} of {len(agents)} OPAs enforce the applied commit", at)


def sync_of(seen: Observed) -> str:
    """Argo CD's word: Synced, OutOfSync or Unknown."""
    return _sync(seen, seen.record.conditions if seen.record else ())


def _sync(seen: Observed, conditions: Iterable[Condition]) -> str:
    true = {condition.type for condition in conditions if condition.status == "True"}
    record = seen.record
    if not seen.reachable or record is None or not seen.led or FETCH_FAILED in true:
        return "Unknown"
    same = seen.applied is not None and record.last_attempted_revision == seen.applied.commit
    if not same or seen.held or true & {PRUNE_BLOCKED, DRIFTED}:
        return "OutOfSync"
    return "Synced" if _ran_to_its_end(record) else "Unknown"


def _ran_to_its_end(record: StatusRecord) -> bool:
    """Whether the last pass did. One that broke off may have seen a newer commit than the last attempted one, and says
    why in `Ready`; a suspended one has compared everything."""
    ready = next((condition for condition in record.conditions if condition.type == READY), None)
    return ready is not None and (ready.status == "True" or ready.reason == "Suspended")


def _health(seen: Observed, conditions: Iterable[Condition], agents: list[Receipt]) -> str:
    state = {condition.type: condition.status for condition in conditions}
    if not seen.reachable or seen.record is None:
        return "Unknown"
    if seen.suspended is not None:
        return "Suspended"
    if state.get(READY) == "False" or seen.held or any(receipt.error for receipt in agents):
        return "Degraded"
    if state.get(READY) == "Unknown" or state.get(HEALTHY) == "Unknown":
        return "Unknown"
    return "Progressing" if RECONCILING in state or state.get(HEALTHY) == "False" else "Healthy"


def counted(seen: Observed, now: datetime) -> list[Receipt]:
    """The receipts of the agents that count: an agent that is silent for long does not."""
    return [
        receipt
        for receipt in seen.receipts
        if name_of(receipt) in seen.alive or not forgotten(receipt, now, seen.forget_after)
    ]


def name_of(receipt: Receipt) -> str:
    """What tells an agent from all others: ``<datacentre>/<id>``."""
    return f"{receipt.datacentre}/{receipt.id}"


def _stale(receipt: Receipt, seen: Observed) -> bool:
    """By the agent's own word, or since it is silent. An etcd that cannot be read here is nothing that it did."""
    return receipt.stale or (seen.reachable and not seen.lives(receipt))


def _since_when(receipt: Receipt, seen: Observed) -> str:
    """Since when what is said of it holds: since etcd cannot be read, since its last word, or as it says."""
    if not seen.reachable:
        return seen.since or receipt.since
    return receipt.since if seen.lives(receipt) else receipt.seen_at or receipt.since


def agent_of(receipt: Receipt, seen: Observed, branch: str) -> dict[str, Any]:
    """What one OPA proves to enforce: an item of ``agents``."""
    alive = seen.lives(receipt)
    return {
        "id": receipt.id,
        "datacentre": receipt.datacentre,
        "scope": receipt.scope,
        "enforced_revision": revision(branch, receipt.enforced_revision) if alive else None,
        "since": _since_when(receipt, seen),
        "opa_version": receipt.opa_version,
        "opa": receipt.opa,
        "error": receipt.error,
        "stale": _stale(receipt, seen),
        "alive": alive,
        "stages": receipt.stages,
    }


def revision(branch: str, commit: str | None) -> str | None:
    """A commit as the status names it; that of the empty bundle, and none, stay."""
    return commit if commit in {None, "none"} else f"{branch}@sha1:{commit}"


def _names(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
