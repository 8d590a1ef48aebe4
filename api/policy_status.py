"""``GET /status/policies``: of each policy what is live, what is held, and how many OPAs enforce it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from api import keys
from api.auth import Action, may_read
from api.conditional import conditional
from api.fleet_at import present
from api.problems import ProblemError
from api.requests import authorized, number, policy_of
from api.statusview import Observed, agent_state, counted, narrowed_agents, sync_of
from reconciler.agent.scope import ALL, Scope
from reconciler.agent.state import MirrorState
from reconciler.aside import aside
from reconciler.core.errors import RegopsError
from reconciler.core.model import PLATFORM, PolicyName
from reconciler.core.passes import PassRecord
from reconciler.core.records import Receipt
from reconciler.core.shards import Shard, shard_of

_PAGE: Final = 100
_LIMIT: Final = 1000


async def list_policy_status(request: web.Request) -> web.Response:
    """{"items", "next"}: what the caller may read, sorted by name; held ones that never were live too."""
    caller = await authorized(request, None, Action.READ)
    limit, after = number(request, "limit", _PAGE, _LIMIT), request.query.get("after", "")
    view = await policy_view(request.app)
    names = view.names(lambda name: name > after and may_read(caller, name))
    items = await aside(len(names[:limit]), view.items, names[:limit])
    return conditional(request, {"items": items, "next": names[limit - 1] if len(names) > limit else None})


async def policy_status(request: web.Request) -> web.Response:
    """One policy's item, and ``enforced_by``: the agents of the OPAs that answer for it."""
    policy = policy_of(request)
    caller = await authorized(request, policy, Action.READ)
    view = await policy_view(request.app)
    if policy not in view.known:
        raise ProblemError(404, "not_found", f"{policy} is neither live nor held")
    agents = narrowed_agents(
        view.enforced_by(policy, await passes_known(request.app)), lambda name: may_read(caller, name)
    )
    return conditional(request, {**view.item(policy), "enforced_by": agents})


async def passes_known(app: web.Application) -> Sequence[PassRecord]:
    """The log of passes, or what was last known of it."""
    observer = app[keys.OBSERVER]
    with contextlib.suppress(RegopsError):
        return await observer.passes()
    return observer.last_passes


async def policy_view(app: web.Application) -> PolicyView:
    """Of the newest look. Raises the 503 while this replica has never read etcd."""
    state = app[keys.MIRROR].state
    if state is None:
        raise ProblemError(503, "unavailable", "etcd was not read yet", headers={"Retry-After": "1"})
    return PolicyView.of(await app[keys.OBSERVER].look(), state, app[keys.PLACE]["branch"], datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class PolicyView:
    """Everything that the items are made of. ``everywhere``: states of the agents that answer for all policies;
    ``somewhere``: of those that answer for some, by policy; ``sharded``: of those that answer for a shard."""

    seen: Observed
    state: MirrorState
    branch: str
    receipts: tuple[Receipt, ...]
    everywhere: Counter[str] = field(default_factory=Counter)
    somewhere: Mapping[str, Counter[str]] = field(default_factory=dict)
    sharded: Mapping[Shard, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, seen: Observed, state: MirrorState, branch: str, now: datetime) -> PolicyView:
        """Count once, for all items."""
        receipts = tuple(counted(seen, now))
        everywhere: Counter[str] = Counter()
        somewhere: dict[str, Counter[str]] = {}
        sharded: dict[Shard, Counter[str]] = {}
        for receipt in receipts:
            states, scope = _states(receipt, seen), _scope(receipt)
            if scope.shard is not None:
                sharded.setdefault(scope.shard, Counter()).update(states)
            elif scope.projects is None:
                everywhere.update(states)
            for name in scope.projects or ():
                somewhere.setdefault(f"projects/{name}", Counter()).update(states)
        return cls(seen, state, branch, receipts, everywhere, somewhere, sharded)

    @property
    def known(self) -> frozenset[str]:
        """Policies that are live or held."""
        return frozenset(self.state.policies) | frozenset(self.seen.held)

    def names(self, wanted: Callable[[PolicyName], bool]) -> list[PolicyName]:
        """The known ones that are ``wanted``, sorted; a held path that is no policy's name is none."""
        named = (PolicyName(name) for name in self.known if _is_policy(name))
        return sorted(name for name in named if wanted(name))

    def items(self, names: Sequence[PolicyName]) -> list[dict[str, Any]]:
        """Those of these policies. Pure: a thread may do it."""
        return [self.item(name) for name in names]

    def item(self, name: str) -> dict[str, Any]:
        """One item."""
        live = self.state.policies.get(PolicyName(name))
        meta = live.meta if live else None
        held = self.seen.held.get(name)
        agents = self._agents(name)
        return {
            "policy": name,
            "etag": meta.etag if meta else None,
            "commit": meta.commit if meta else None,
            "actor": meta.actor if meta else None,
            "since": meta.at if meta else None,
            "rego_version": meta.rego_version if meta else None,
            "held": asdict(held) if held else None,
            "sync": {"status": self._sync(name)},
            "health": {"status": self._health(name, agents)},
            "agents": {
                "total": agents["current"] + agents["behind"] + agents["unknown"],
                **{state: agents[state] for state in ("current", "behind", "unknown", "errors")},
            },
        }

    def enforced_by(self, name: str, passes: Sequence[PassRecord]) -> list[dict[str, Any]]:
        """The agents of the OPAs that answer for the policy."""
        mine = [each for each in self.receipts if _covers(each, name)]
        return [present(each, self.seen, self.branch, passes) for each in mine]

    def _agents(self, name: str) -> Counter[str]:
        """How many of the agents that answer for the policy are in which state."""
        if name == PLATFORM:  # every OPA has it
            return Counter(state for receipt in self.receipts for state in _states(receipt, self.seen))
        found = self.everywhere + self.somewhere.get(name, Counter())
        for count in {shard.count for shard in self.sharded}:
            owner = Shard(shard_of(name.removeprefix("projects/"), count), count)
            found += self.sharded.get(owner, Counter())
        return found

    def _sync(self, name: str) -> str:
        overall = sync_of(self.seen)
        if overall == "Unknown" or name in self.seen.held:
            return "OutOfSync" if overall != "Unknown" else overall
        applied, record = self.seen.applied, self.seen.record
        same = applied is not None and record is not None and record.last_attempted_revision == applied.commit
        return "Synced" if same else "OutOfSync"

    def _health(self, name: str, agents: Counter[str]) -> str:
        if not self.seen.reachable or self.seen.record is None:
            return "Unknown"
        if self.seen.suspended is not None:
            return "Suspended"
        if name in self.seen.held or agents["errors"]:
            return "Degraded"
        if agents["unknown"]:
            return "Unknown"
        return "Progressing" if agents["behind"] else "Healthy"


def _states(receipt: Receipt, seen: Observed) -> list[str]:
    return [agent_state(receipt, seen), *(["errors"] if receipt.error else [])]


def _scope(receipt: Receipt) -> Scope:
    """What the agent answers for; everything for a scope of a newer kind, so that nothing is called enforced on
    doubt."""
    try:
        return Scope.parse(receipt.scope)
    except ValueError:
        return ALL


def _covers(receipt: Receipt, name: str) -> bool:
    return _scope(receipt).contains(PolicyName(name))


def _is_policy(name: str) -> bool:
    return name == PLATFORM or (name.startswith("projects/") and name.count("/") == 1)
