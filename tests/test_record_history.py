"""Whatever happens to branch, database and processes, the record is what a plain reading of the history comes to."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from fixtures.git import Remote
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_laboratory import ALL, Laboratory, act, small_steps
from record_world import World

from reconciler.adapters.git import GitSource
from reconciler.adapters.mongo import MongoDatabase, MongoVersions
from reconciler.core.versions import Retention

NAMES: Final = ("platform", "projects/alpha", "projects/beta")
METHODS: Final = ("bookmark", "pages", "claim", "add", "tell", "settle", "prune", "advance", "empty")
STEPS: Final = 60
"""More steps than most recordings here take."""

_name = st.sampled_from(NAMES)
_site = st.integers(0, 1)
_held = st.sets(_name, max_size=2)
PEOPLE = (
    st.tuples(st.just("put"), _name, st.sampled_from(["a", "b", "", None])),
    st.tuples(st.just("move"), _name, _name),
    st.tuples(st.just("merge"), _name, st.sampled_from(["a", "c"])),
)
REWRITES = (
    st.tuples(st.just("turn"), _name, st.sampled_from(["a", "c"])),
    st.tuples(st.just("rewind"), st.integers(0, 4)),
)
ENGINE = (
    st.tuples(st.just("look"), _site),
    st.tuples(st.just("pass"), _site, _held),
    st.tuples(st.just("arrive"), _site, _held),
    st.tuples(st.just("record"), st.sampled_from([(0,), (1,), (0, 1)])),
)
CRASHES = (st.tuples(st.just("crash"), _site, st.integers(0, STEPS)),)
OUTAGES = (st.tuples(st.just("fault"), st.sampled_from(METHODS)),)
LOSSES = (
    st.tuples(st.just("lose"), st.sampled_from(["everything", "pages", "versions", "bookmark"])),
    st.tuples(st.just("vanish"), st.sampled_from(METHODS)),
    st.tuples(st.just("save")),
    st.tuples(st.just("restore")),
)
_keep = st.sampled_from([ALL, Retention(2, 1)])
_sites = st.sampled_from([1, 2])
# The same histories in each run, so that a change that breaks something is what breaks it.
_often = settings(max_examples=350, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def _histories(*kinds: tuple[st.SearchStrategy[Any], ...], size: int = 40) -> st.SearchStrategy[list[Any]]:
    """Short ones, that can be read when they fail, and long ones, where more meets."""
    one = st.one_of(*(each for kind in kinds for each in kind))
    return st.one_of(*(st.lists(one, min_size=least, max_size=size) for least in (0, size // 2, size // 2)))


@pytest.fixture(scope="module", autouse=True)
def _small_steps() -> Iterator[None]:
    with small_steps():
        yield


def _run(actions: list[Any], keep: Retention, sites: int, *, whole: bool) -> None:
    asyncio.run(Laboratory(keep, sites).run(actions, whole=whole))


@_often
@given(_histories(PEOPLE, ENGINE, OUTAGES, CRASHES), _sites, _keep)
def test_numbers_are_the_ordinals_of_the_changes_whatever_fails(
    actions: list[Any], sites: int, keep: Retention
) -> None:
    _run(actions, keep, sites, whole=sites == 1)


@_often
@given(_histories(PEOPLE, REWRITES, ENGINE, OUTAGES, CRASHES), _sites, _keep)
def test_a_branch_that_is_rewritten_any_number_of_times_is_recorded_whole(
    actions: list[Any], sites: int, keep: Retention
) -> None:
    _run(actions, keep, sites, whole=sites == 1)


@_often
@given(_histories(PEOPLE, ENGINE, OUTAGES, CRASHES, LOSSES), _sites, _keep)
def test_a_database_that_is_lost_or_restored_is_what_the_branch_is_in_the_end(
    actions: list[Any], sites: int, keep: Retention
) -> None:
    _run(actions, keep, sites, whole=False)


EVENTFUL: Final = (
    ("put", "projects/alpha", "a"),
    ("arrive", 0, ()),
    ("record", (0,)),
    ("merge", "projects/alpha", "c"),
    ("move", "projects/alpha", "projects/beta"),
    ("arrive", 0, ("projects/beta",)),
    ("put", "platform", ""),
    ("arrive", 1, ()),
)
LATER: Final = (
    ("rewind", 3),
    ("put", "projects/alpha", "b"),
    ("arrive", 0, ()),
    ("arrive", 1, ()),
    ("record", (1, 0)),
    ("rewind", 9),
    ("arrive", 0, ()),
)


@pytest.mark.parametrize("keep", [ALL, Retention(1, 1)])
@pytest.mark.parametrize("others_first", [False, True])
async def test_a_recorder_that_dies_at_any_step_is_followed_by_one_that_goes_on(
    keep: Retention, *, others_first: bool
) -> None:
    """Before each call takes effect and before each answer is heard, in three places of an eventful history."""
    other = [("record", (1,))] if others_first else []
    for steps in count():
        laboratory = Laboratory(keep, 2)
        crash = ("crash", 0, steps)
        await laboratory.run([*EVENTFUL, *other, crash, *LATER, crash], whole=False)
        if not await _died(keep, other, steps):
            break
    assert steps > 20


async def _died(keep: Retention, other: list[Any], steps: int) -> bool:
    """Whether so many steps are not enough for either recording."""
    world = Laboratory(keep, 2).world
    world.put({"platform": "first"})
    died = False
    for some in ([*EVENTFUL, *other], LATER):
        for kind, *what in some:
            await act(world, kind, *what)
        died |= await world.crash(world.sites[0], steps)
    return died


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(actions=_histories(PEOPLE, REWRITES, ENGINE, CRASHES, size=25), keep=_keep)
def test_git_and_mongodb_come_to_the_same(
    actions: list[Any], keep: Retention, mongo_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_really(actions, keep, mongo_uri, tmp_path_factory.mktemp("world")))


async def _really(actions: list[Any], keep: Retention, uri: str, folder: Path) -> None:
    remote = Remote(folder / "remote.git")
    async with AsyncExitStack() as stack:
        database = MongoDatabase(uri, f"regops-test-{uuid.uuid4().hex[:12]}")
        stack.push_async_callback(database.aclose)
        stack.push_async_callback(database._client.drop_database, database._database.name)
        sources = [GitSource(remote=remote.url, mirror=folder / f"{n}.git") for n in range(2)]
        for source in sources:
            stack.push_async_callback(source.aclose)
        world = World(remote, sources, MongoVersions(database), keep)
        world.put({"platform": "first"})
        for site in world.sites:
            await world.look(site)
        for kind, *what in actions:
            await act(world, kind, *what)
        await world.settle()
        await asyncio.to_thread(_agrees_with_git, remote.path, world)
        await world.check(whole=False)


def _agrees_with_git(repository: Path, world: World) -> None:
    """The plain reading is what git says of each commit."""

    def git(*words: str) -> list[str]:
        command = ["git", "--git-dir", str(repository), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()

    assert git("rev-list", "--first-parent", "--reverse", "main") == world.line(world.head)
    for commit in world.line(world.head):
        files = {path: text for _, _, _, path, text in _files(git, commit)}
        texts = {
            path.removeprefix("policies/").removesuffix("/rego.rego"): text
            for path, text in files.items()
            if path.endswith("/rego.rego")
        }
        assert texts == {name: text for name, text in world.commits[commit].texts.items() if text}


def _files(git: Any, commit: str) -> Any:
    for line in git("ls-tree", "-r", commit):
        words, _, path = line.partition("\t")
        yield (*words.split(" "), path, "\n".join(git("cat-file", "blob", words.split(" ")[2])))
