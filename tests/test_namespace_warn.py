"""With `policy.namespace: warn` policies may refer to each other: the whole set is compiled as one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fixtures.etcd import EtcdServer
from fixtures.git import Remote
from fixtures.opa import find_opa

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.adapters.git import GitSource
from reconciler.adapters.opa import OpaCompiler
from reconciler.core.guards import Limits as Deletions
from reconciler.core.keyspace import Keyspace
from reconciler.core.limits import Limits
from reconciler.core.model import Content, project_policy
from reconciler.core.ports import Fence, Range
from reconciler.edit_judge import EditJudge, LivePlatform
from reconciler.reconcile import PassResult, Reconciler
from reconciler.validation import Judge

CALLER = b"package projects.a\n\nimport rego.v1\n\nanswer := data.projects.b.twice(21)\n"
CALLED = b"package projects.b\n\nimport rego.v1\n\ntwice(x) := x * 2\n"
A, B = "policies/projects/a/rego.rego", "policies/projects/b/rego.rego"


class World:
    def __init__(self, remote: Remote, store: EtcdStore, keys: Keyspace, judge: Judge, source: GitSource) -> None:
        self.remote, self.store, self.keys, self.judge, self.source = remote, store, keys, judge, source
        self.engine = Reconciler(source, store, judge, keyspace=keys, limits=Deletions())
        self.fence = Fence("", 0)

    async def push(self, files: dict[str, bytes]) -> PassResult:
        self.remote.commit(files)
        return await self.engine.run(self.fence)

    async def live(self) -> dict[str, bytes]:
        kvs = (await self.store.read(Range(self.keys.policies, prefix=True))).ranges[0]
        return {kv.key.removeprefix(self.keys.policies): kv.value for kv in kvs}


@pytest.fixture
async def world(tmp_path: Path, etcd_server: EtcdServer, prefix: str) -> AsyncIterator[World]:
    remote = Remote(tmp_path / "remote.git")
    store = EtcdStore([etcd_server.endpoint])
    source = GitSource(remote=remote.url, mirror=tmp_path / "mirror.git")
    keys = Keyspace(f"{prefix}policies/", f"{prefix}regops/")
    async with OpaCompiler(find_opa(), limits=Limits(namespace="warn")) as compiler:
        judge = Judge(source, compiler, together=True)
        async with Election(store, keys.leader, "me", 5).lead() as leadership:
            world = World(remote, store, keys, judge, source)
            world.fence = leadership.fence
            yield world
    await source.aclose()
    await store.aclose()


async def test_a_function_of_another_project_is_found_and_warned_of(world: World) -> None:
    result = await world.push({A: CALLER, B: CALLED})
    assert result.held == {}
    assert await world.live() == {"projects/a/rego.rego": CALLER, "projects/b/rego.rego": CALLED}
    assert any("projects.b" in str(warning) for warning in result.resolution.warnings)


async def test_a_change_that_takes_away_what_another_needs_is_held_and_not_the_other(world: World) -> None:
    await world.push({A: CALLER, B: CALLED})
    result = await world.push({B: b"package projects.b\n\nimport rego.v1\n\nthrice(x) := x * 3\n"})
    assert result.held.keys() == {"projects/b"}
    assert result.held["projects/b"].reason == "BreaksProjects"
    assert await world.live() == {"projects/a/rego.rego": CALLER, "projects/b/rego.rego": CALLED}


async def test_a_broken_policy_is_held_and_the_others_go_on(world: World) -> None:
    await world.push({A: CALLER, B: CALLED})
    other = b"package projects.c\n\nallow { input.x }\n"
    result = await world.push({A: b"package projects.a\n\nx :=", "policies/projects/c/rego.rego": other})
    assert result.held.keys() == {"projects/a"}
    (error, *_) = result.held["projects/a"].errors
    assert (error.file, error.line) == ("projects/a/rego.rego", 3)
    live = await world.live()
    assert live["projects/a/rego.rego"] == CALLER
    assert live["projects/c/rego.rego"] == other, "Rego v0 beside v1"


async def test_a_first_version_that_does_not_compile_is_not_live(world: World) -> None:
    result = await world.push({A: CALLER})
    assert result.held.keys() == {"projects/a"}
    assert await world.live() == {}
    assert (await world.push({B: CALLED})).held == {}
    assert len(await world.live()) == 2


async def test_an_edit_is_judged_inside_the_set(world: World) -> None:
    await world.push({A: CALLER, B: CALLED})

    async def no_platform() -> LivePlatform:
        return LivePlatform(None)

    judge = EditJudge(world.judge, no_platform)
    tree = await world.source.tree(world.remote.head)
    good = await judge.judge(tree, {project_policy("d"): Content(CALLER.replace(b"projects.a", b"projects.d"))})
    assert good[project_policy("d")].valid
    bad = await judge.judge(tree, {project_policy("b"): Content(b"package projects.b\n")})
    assert "projects/a would break" in bad[project_policy("b")].errors[0].message
