"""How many series there are is up to regops, never to those who ask it."""

from __future__ import annotations

import uuid

import pytest
from fixtures.replicas import Replica
from fixtures.tokens import token

pytestmark = pytest.mark.asyncio(loop_scope="module")

STRANGERS = 20
CALLERS = ("regops_api_", "regops_hook", "regops_audit_", "regops_push", "regops_commits_")
"""What callers have a hand in; the passes beside go on by themselves."""


async def series(replica: Replica) -> set[str]:
    text = (await replica.get("/metrics", bearer="")).body
    return {line.rpartition(" ")[0] for line in text.splitlines() if line.startswith(CALLERS)}


async def visit(replica: Replica, name: str) -> None:
    """All that somebody can choose freely: names, paths, methods, headers, ids, callers."""
    caller = {"bearer": token(sub=name, project=name)}
    await replica.get(f"/policies/{name}", **caller)
    await replica.get(f"/policies/{name}/versions?limit=1", **caller)
    await replica.get(f"/{name}/{name}", **caller)
    await replica.call(name.upper(), "/policies", **caller)
    await replica.call("PUT", f"/policies/{name}", {"rego": name}, X_Request_ID=name, Idempotency_Key=name, **caller)
    await replica.call("DELETE", f"/policies/{name}", If_Match=f'"{name}"', **caller)
    await replica.call("POST", f"/hooks/{name}", {}, bearer="")
    await replica.call("POST", "/hooks/github", {"ref": name}, bearer="", X_GitHub_Event=name)


async def test_no_caller_makes_a_series_of_its_own(replica: Replica) -> None:
    """Each of them lives in the server and in Prometheus for as long as the server does."""
    await visit(replica, "first")
    await series(replica)  # a request too
    before = await series(replica)
    for _ in range(STRANGERS):
        await visit(replica, f"s{uuid.uuid4().hex[:12]}")
    assert await series(replica) - before == set()
    assert not [each for each in before if "first" in each]
