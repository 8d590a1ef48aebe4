"""What the platform's policy said of a read is used again for a moment, and never for longer or for anything else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from fixtures.tokens import claims

from api.auth import ADMIN_ROLE, Action, Authorizer, Caller
from api.auth.decisions import UNKNOWN, Decisions, Key
from api.problems import ProblemError
from reconciler.core.errors import TransientError
from reconciler.core.model import project_policy

BILLING = project_policy("billing")
LIFE = 0.25
KEY: Key = (b"token", "GET", ("policies", "billing"))


@dataclass
class Platform:
    """The platform's policy as an OPA answers by it, a clock, and which version is live."""

    says: bool | TransientError | None = True
    now: float = 100.0
    version: str | None = '"v1"'
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    holds: asyncio.Event | None = None
    """While set and not filled, answers wait for it."""

    async def until_asked(self, times: int) -> None:
        async with asyncio.timeout(5):
            while len(self.asked) < times:
                self.news.clear()
                await self.news.wait()

    async def allow(self, question: Mapping[str, Any]) -> bool | None:
        self.asked.append(question)
        self.news.set()
        says = self.says
        if self.holds is not None:
            await self.holds.wait()
        if isinstance(says, TransientError):
            raise says
        return says


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
async def decisions(platform: Platform) -> AsyncIterator[Decisions]:
    found = Decisions(platform, life=LIFE, version=lambda: platform.version, clock=lambda: platform.now)
    yield found
    await found.aclose()


async def asked(decisions: Decisions, key: Key = KEY) -> bool | None:
    """The decision as the authorizer gets it."""
    known = decisions.known(key)
    return known if known is not UNKNOWN else await decisions.ask(key, {"of": key})


async def test_equal_reads_are_one_question_until_its_time_is_over(platform: Platform, decisions: Decisions) -> None:
    assert [await asked(decisions) for _ in range(3)] == [True] * 3
    assert len(platform.asked) == 1
    platform.says = False
    platform.now += LIFE - 0.001
    assert await asked(decisions) is True
    platform.now += 0.001
    assert await asked(decisions) is False
    assert len(platform.asked) == 2


@pytest.mark.parametrize("key", [(b"other", *KEY[1:]), (KEY[0], "HEAD", KEY[2]), (*KEY[:2], ("policies", "orders"))])
async def test_another_token_method_or_path_is_another_question(
    platform: Platform, decisions: Decisions, key: Key
) -> None:
    await asked(decisions)
    platform.says = False
    assert await asked(decisions, key) is False


async def test_a_platform_that_has_changed_is_asked_anew(platform: Platform, decisions: Decisions) -> None:
    await asked(decisions)
    platform.version, platform.says = '"v2"', False
    assert await asked(decisions) is False


async def test_an_answer_that_is_older_than_the_platform_counts_for_nobody_who_comes_later(
    platform: Platform, decisions: Decisions
) -> None:
    platform.holds = asyncio.Event()
    early = asyncio.ensure_future(asked(decisions))
    await platform.until_asked(1)
    platform.version, platform.says = '"v2"', False
    late = asyncio.ensure_future(asked(decisions))
    await platform.until_asked(2)
    platform.holds.set()
    assert [await early, await late] == [True, False]
    assert await asked(decisions) is False


async def test_nothing_is_remembered_while_nobody_knows_what_is_live(platform: Platform, decisions: Decisions) -> None:
    platform.version = None
    await asked(decisions)
    platform.says = False
    assert await asked(decisions) is False


async def test_a_read_without_an_identity_is_asked_each_time(platform: Platform, decisions: Decisions) -> None:
    nameless: Key = (b"", *KEY[1:])
    await asked(decisions, nameless)
    await asked(decisions, nameless)
    assert len(platform.asked) == 2


async def test_no_answer_is_remembered_as_a_pass_or_at_all(platform: Platform, decisions: Decisions) -> None:
    platform.says = TransientError("away", reason="AuthorizationUnavailable")
    for _ in range(2):
        with pytest.raises(TransientError):
            await asked(decisions)
    platform.says = True
    assert await asked(decisions) is True
    assert len(platform.asked) == 3


async def test_a_failure_after_a_pass_refuses_as_soon_as_the_pass_is_over(
    platform: Platform, decisions: Decisions
) -> None:
    await asked(decisions)
    platform.says = TransientError("away", reason="AuthorizationUnavailable")
    platform.now += LIFE
    with pytest.raises(TransientError):
        await asked(decisions)


async def test_whoever_goes_away_takes_no_answer_from_the_others(platform: Platform, decisions: Decisions) -> None:
    platform.holds = asyncio.Event()
    first, second = (asyncio.ensure_future(asked(decisions)) for _ in range(2))
    await platform.until_asked(1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    platform.holds.set()
    assert await second is True
    assert len(platform.asked) == 1


async def test_a_life_of_nothing_asks_for_every_read(platform: Platform) -> None:
    decisions = Decisions(platform, life=0, version=lambda: platform.version)
    await asked(decisions)
    await asked(decisions)
    assert len(platform.asked) == 2


async def test_whatever_is_no_read_is_always_asked(platform: Platform, decisions: Decisions) -> None:
    said = claims(roles=[ADMIN_ROLE])
    root = Caller("root", None, None, said["tenant"], frozenset([ADMIN_ROLE]), frozenset(), said, b"digest")
    authorizer = Authorizer(platform, decisions)
    path = ("policies", "billing")
    for action, method in ((Action.READ, "GET"), (Action.WRITE, "PUT"), (Action.VALIDATE, "POST")):
        before = len(platform.asked)
        for _ in range(2):
            await authorizer.authorize(root, method, path, BILLING, action)
        assert len(platform.asked) - before == (1 if action is Action.READ else 2)
    platform.says = False
    await authorizer.authorize(root, "GET", path, BILLING, Action.READ)
    with pytest.raises(ProblemError):
        await authorizer.authorize(root, "PUT", path, BILLING, Action.WRITE)
