"""May this caller do that? The built-in rule, always; then the platform's own policy, which can only say no."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from urllib.parse import unquote

from yarl import URL

from api.auth.caller import ADMIN_ROLE, Caller
from api.auth.decisions import UNKNOWN, Asked, Decisions
from api.auth.refusals import forbidden
from reconciler.core.model import PLATFORM, PolicyName, project_of


class Action(StrEnum):
    """What a request does, as far as the built-in rule and its exception are concerned."""

    READ = "read"
    """Anything that shows something: a policy, its versions, the list, the status."""
    VALIDATE = "validate"
    """The verdict that a write would get, without writing: for those who may read the policy."""
    WRITE = "write"
    """Create, replace, patch or delete a policy, also as a dry run."""
    ROLLBACK = "rollback"
    """Write an earlier version again."""
    ADMINISTER = "administer"
    """Sync, suspend, resume, confirm."""


class Authorizer:
    """Decides before anything is looked up, so that a refusal says nothing about what exists.

    What the platform's policy says of a read may be a moment old (see `Decisions`); of anything else it is asked anew.
    """

    def __init__(self, asked: Asked, decisions: Decisions | None = None) -> None:
        self._asked = asked
        self._decisions = decisions

    async def authorize(
        self, caller: Caller, method: str, path: Sequence[str], policy: PolicyName | None, action: Action
    ) -> None:
        """Return when the caller may.

        ``path`` is `path_segments` of the request; ``policy`` the one that it is about, ``None`` where it is about none
        (lists, status: what they show is filtered by `may_read`). Raises the 403, or `TransientError` (503) when the
        platform's policy could not be asked.
        """
        if not permits(caller, policy, action):
            raise forbidden(_needs(policy, action))
        if _never_narrowed(caller, method, policy, action):
            return
        if await self._narrowed(caller, method, path, action) is False:
            raise forbidden("the platform's policy refuses this request (data.platform.authz.allow is false)")

    async def _narrowed(self, caller: Caller, method: str, path: Sequence[str], action: Action) -> bool | None:
        key = (caller.token, method, tuple(path))
        remembered = action is Action.READ and self._decisions
        if remembered and (decision := remembered.known(key)) is not UNKNOWN:
            return decision
        question = {"claims": caller.claims, "method": method, "path": list(path)}
        return await (remembered.ask(key, question) if remembered else self._asked.allow(question))


def may_read(caller: Caller, policy: PolicyName) -> bool:
    """The built-in rule for one policy: admins read all, members their projects, nobody else the platform. Pure."""
    return caller.is_admin or (policy != PLATFORM and project_of(policy) in caller.projects)


def permits(caller: Caller, policy: PolicyName | None, action: Action) -> bool:
    """The built-in rule. Pure."""
    if caller.is_admin:
        return True
    if action is Action.READ and policy is None:
        return True
    return action in {Action.READ, Action.VALIDATE} and policy is not None and may_read(caller, policy)


def path_segments(url: URL) -> tuple[str, ...]:
    """The segments of a request's path (``request.rel_url``, as the routes are matched with), each decoded by itself.

    So an encoded slash stays inside its segment, for the platform's policy as for the routes.
    """
    path = url.raw_path.strip("/")
    return tuple(unquote(segment) for segment in path.split("/")) if path else ()


def _never_narrowed(caller: Caller, method: str, policy: PolicyName | None, action: Action) -> bool:
    """A platform's policy that refuses everybody must be read and replaced by somebody."""
    if not caller.is_admin or policy != PLATFORM:
        return False
    return action is Action.ROLLBACK or (action, method) in {
        (Action.READ, "GET"),
        (Action.READ, "HEAD"),
        (Action.WRITE, "PUT"),
    }


def _needs(policy: PolicyName | None, action: Action) -> str:
    project = None if policy is None else project_of(policy)
    if project is not None and action in {Action.READ, Action.VALIDATE}:
        return f"this needs a token of the project {project} or with the role {ADMIN_ROLE}"
    return f"this needs a token with the role {ADMIN_ROLE}"
