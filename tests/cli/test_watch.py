"""`regops status --watch` beside a server that tells what the test wants, loses connections, and ends the stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from fixtures.tokens import listening

from regops.cli import main
from regops.commands.following import Followed
from regops.commands.tables import status_page


def status(sync: str = "Synced", **more: Any) -> dict[str, Any]:
    """The document of `GET /status` as a stream tells it: without agents."""
    nobody = {"agents": 1, "current": 1, "behind": 0, "unknown": 0, "stale": 0, "errors": 0}
    return {
        "conditions": [{"type": "Ready", "status": "True", "reason": "ReconciliationSucceeded", "message": "fine"}],
        "sync": {"status": sync},
        "health": {"status": "Healthy"},
        "source": {"remote": "r", "branch": "main", "path": "policies"},
        "last_applied_revision": f"main@sha1:{'a' * 40}",
        "last_applied_at": "2026-01-31T12:00:00Z",
        "last_attempted_revision": None,
        "policies": {"live": 1, "held": 0},
        "suspended": False,
        "held": [],
        "blocked_deletions": [],
        "ignored_files": [],
        "fleet": nobody,
        **more,
    }


def agent(name: str) -> dict[str, Any]:
    return {"id": name, "datacentre": "east", "enforced_revision": None, "since": "", "error": None}


def event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def agents(*names: str, removed: tuple[str, ...] = ()) -> str:
    return event("agents", {"agents": [agent(name) for name in names], "removed": list(removed)})


async def watched(*streams: str | int, words: tuple[str, ...] = ("--json",)) -> Result:
    """How `--watch` ends that is told these streams, one for each time that it connects; a number is a refusal."""
    left = list(streams)

    async def events(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer any"
        told = left.pop(0)
        if isinstance(told, int):
            body = {"code": "unavailable", "detail": "too many listen already"}
            return web.json_response(body, status=told)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(told.encode())
        return response

    app = web.Application()
    app.router.add_get("/events", events)
    async with listening(app) as url:
        command = ["status", "--watch", *words, "--server", url]
        return await asyncio.to_thread(CliRunner(env={"REGOPS_TOKEN": "any"}).invoke, main, command)


END = event("end", {"reason": "token_expired"})


async def test_each_line_is_the_whole_document() -> None:
    done = await watched(
        f"retry: 2000\n\n{event('status', status())}{agents('one', 'two')}",
        f"{event('status', status())}{agents()}{END}",
    )
    first, *_ = (json.loads(line) for line in done.stdout.splitlines())
    assert [each["id"] for each in first["agents"]] == ["one", "two"]
    assert first.keys() >= {"conditions", "sync", "agents"}


def test_nothing_is_told_before_the_agents_have_come_too() -> None:
    """The status comes before the agents, and was shown at once where the two were not received together: the first
    line had no agents, as if none had reported."""
    followed = Followed()
    assert followed.happened("status", status())
    assert not followed.whole
    assert followed.happened("agents", {"agents": [agent("one")], "removed": []})
    assert followed.whole
    assert [each["id"] for each in followed.document["agents"]] == ["one"]
    followed.happened("agents", {"agents": [agent("two")], "removed": ["east/one"]})
    assert [each["id"] for each in followed.document["agents"]] == ["two"]
    assert not followed.happened("pass", {})
    followed.happened("status", status("OutOfSync"))
    assert (followed.document["sync"], len(followed.document["agents"])) == ({"status": "OutOfSync"}, 1)


async def test_a_connection_that_is_lost_is_told_and_made_again() -> None:
    beginning = f"{event('status', status())}{agents('one')}"
    done = await watched(beginning, f"{event('status', status('OutOfSync'))}{agents('two')}", f"{beginning}{END}")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    said = [(each["sync"]["status"], [one["id"] for one in each["agents"]]) for each in found]
    assert said[:2] == [("Synced", ["one"]), ("OutOfSync", ["two"])], "nothing of before the loss is left"
    assert done.stderr.count("the server has ended the stream; trying again") == 2


async def test_a_server_that_is_full_meanwhile_is_asked_again() -> None:
    beginning = f"{event('status', status())}{agents('one')}"
    done = await watched(beginning, 503, f"{beginning}{END}")
    assert "too many listen already" in done.stderr
    assert done.exit_code == 1
    assert "the token has expired" in done.stderr


@pytest.mark.parametrize(
    ("reason", "says"),
    [("token_expired", "the token has expired. Get a new one"), ("forbidden", "this token may not follow")],
)
async def test_what_the_server_ends_is_not_begun_again(reason: str, says: str) -> None:
    told = f"{event('status', status())}{agents('one')}"
    done = await watched(f"{told}{event('end', {'reason': reason})}", told)
    assert (done.exit_code, says in done.stderr) == (1, True)
    assert "trying again" not in done.stderr


async def test_a_server_that_refuses_at_first_is_an_error() -> None:
    done = await watched(503)
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)


async def test_without_json_each_change_is_a_line() -> None:
    done = await watched(f"{event('status', status())}{agents('one')}", END, words=())
    (line,) = done.stdout.splitlines()
    assert line.split("  ")[1:4] == ["Synced", "Healthy", "a" * 12]


# --- what the page of `regops status` has ----------------------------------------------------------------------------


def test_warnings_are_shown_to_a_person_too() -> None:
    """That `git.path` is no folder, or that a policy is Rego v0, stood in `--json` only."""
    page = status_page(status(agents=[], warnings=["git.path: there is no folder policies", "projects/a: Rego v0"]))
    assert "Warnings:\n  git.path: there is no folder policies\n  projects/a: Rego v0\n" in page
    assert "Warnings" not in status_page(status(agents=[], warnings=[]))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ({"by": "ann", "at": "12:00", "reason": "why"}, "`regops resume` (by ann at 12:00: why)"),
        ({"at": "12:00"}, "`regops resume`\n"),
        (None, "`regops resume`\n"),
    ],
)
def test_a_suspension_is_shown_as_far_as_the_server_tells(word: Any, says: str) -> None:
    assert says in status_page(status(agents=[], suspended=True, suspension=word))
