"""One pass, on a real Git, etcd and OPA: what is live after it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.dev import git

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.adapters.git import GitSource
from reconciler.adapters.opa import OpaCompiler
from reconciler.core.errors import ConflictError, StalledError
from reconciler.core.guards import Limits
from reconciler.core.keyspace import Keyspace
from reconciler.core.model import PLATFORM, PolicyName, project_policy
from reconciler.core.ports import Delete, Fence, Put, Range, Transaction
from reconciler.core.records import Applied, Applying, Confirmed, Meta, Requested
from reconciler.reconcile import PassResult, Reconciler
from reconciler.validation import Judge
from regops import toolchain

A, B = project_policy("a"), project_policy("b")


class World:
    """A repository, an etcd prefix and a reconciler that leads."""

    def __init__(self, folder: Path, store: EtcdStore, prefix: str, compiler: OpaCompiler, fence: Fence) -> None:
        self.folder = folder
        self.store = store
        self.keys = Keyspace(f"{prefix}policies/", f"{prefix}regops/")
        self.compiler = compiler
        self.fence = fence
        git("init", "-q", str(folder / "repo"), folder=folder)
        self.source = GitSource(remote=str(folder / "repo"), mirror=folder / "mirror.git")
        self.reconciler = self.another()

    def another(self, on_platform_break: str = "hold-platform") -> Reconciler:
        judge = Judge(self.source, self.compiler, on_platform_break=on_platform_break)  # type: ignore[arg-type]
        return Reconciler(self.source, self.store, judge, keyspace=self.keys, limits=Limits())

    def commit(self, files: dict[str, str | None]) -> str:
        for name, text in files.items():
            file = self.folder / "repo" / "policies" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                file.unlink()
            else:
                file.write_text(text)
        git("add", "-A", folder=self.folder / "repo")
        git("commit", "-q", "--allow-empty", "-m", "change", folder=self.folder / "repo")
        return git("rev-parse", "HEAD", folder=self.folder / "repo")

    async def run(self, files: dict[str, str | None] | None = None) -> PassResult:
        if files is not None:
            self.commit(files)
        return await self.reconciler.run(self.fence)

    async def live(self) -> dict[str, bytes]:
        kvs = (await self.store.read(Range(self.keys.policies, prefix=True))).ranges[0]
        return {kv.key.removeprefix(self.keys.policies): kv.value for kv in kvs}

    async def held(self) -> set[str]:
        kvs = (await self.store.read(Range(self.keys.helds, prefix=True))).ranges[0]
        return {kv.key.removeprefix(self.keys.helds) for kv in kvs}

    async def applied(self) -> Applied:
        return Applied.decode((await self.store.read(Range(self.keys.applied))).ranges[0][0].value)

    async def hand(self, *operations: Put | Delete) -> None:
        """Somebody writes to etcd by hand."""
        await self.store.commit(Transaction((), operations))
        self.reconciler.invalidate()


@dataclass(frozen=True)
class Rego:
    """Small policies."""

    name: str

    def says(self, value: str) -> str:
        return f'package projects.{self.name}.authz\n\nmark := "{value}"\n'

    def calls_platform(self) -> str:
        return f"package projects.{self.name}.authz\n\nallow if data.platform.lib.ok(input.x)\n"


LIB = "package platform.lib\n\nok(x) if x == 1\n"
OTHER_LIB = "package platform.lib\n\nfine(x) if x == 1\n"


@pytest.fixture(scope="module")
def opa() -> Path:
    found = toolchain.find("opa")
    if found is None:
        pytest.skip("no opa: `make setup` builds it, or set REGOPS_OPA")
    return found


@pytest.fixture
async def world(tmp_path: Path, store: EtcdStore, prefix: str, opa: Path) -> AsyncIterator[World]:
    async with OpaCompiler(opa) as compiler, Election(store, f"{prefix}regops/leader/holder", "me").lead() as lead:
        made = World(tmp_path, store, prefix, compiler, lead.fence)
        yield made
        await made.source.aclose()


async def test_etcd_holds_the_exact_bytes_of_the_commit(world: World) -> None:
    text = Rego("a").says("ä").replace("\n", "\r\n")
    result = await world.run(
        {"projects/a/rego.rego": text, "projects/a/data.json": '{ "x" : 1.0e2 }', "README.md": "r"}
    )
    assert result.wrote
    assert await world.live() == {
        "projects/a/rego.rego": text.encode(),
        "projects/a/data.json": b'{ "x" : 1.0e2 }',
    }
    assert (await world.applied()).commit == result.commit


async def test_a_pass_with_nothing_to_do_writes_nothing(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    before = await world.applied()
    assert not (await world.run()).wrote
    world.reconciler.invalidate()
    assert not (await world.run()).wrote
    assert await world.applied() == before


async def test_a_commit_that_changes_no_policy_moves_applied_too(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    first = await world.applied()
    result = await world.run({"../README.md": "text"})
    second = await world.applied()
    assert (second.commit, second.previous, second.changed) == (result.commit, first.id, ())
    assert second.digest == first.digest


async def test_an_invalid_policy_is_held_and_its_live_version_stays(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("good"), "projects/b/rego.rego": Rego("b").says("1")})
    await world.run(
        {"projects/a/rego.rego": "package projects.a\n\nx := }\n", "projects/b/rego.rego": Rego("b").says("2")}
    )
    live = await world.live()
    assert b"good" in live["projects/a/rego.rego"]
    assert b'"2"' in live["projects/b/rego.rego"]
    assert await world.held() == {"projects/a"}
    await world.run({"projects/a/rego.rego": Rego("a").says("better")})
    assert await world.held() == set()


async def test_a_rebuilt_etcd_gets_the_newest_valid_version_of_a_held_policy(world: World) -> None:
    world.commit({"projects/a/rego.rego": Rego("a").says("oldest")})
    world.commit({"projects/a/rego.rego": Rego("a").says("good")})
    await world.run({"projects/a/rego.rego": "package projects.a\n\nx := }\n"})
    assert b"good" in (await world.live())["projects/a/rego.rego"]
    assert await world.held() == {"projects/a"}


async def test_hand_edits_are_healed_also_of_a_held_policy(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("good"), "projects/b/rego.rego": Rego("b").says("1")})
    await world.run({"projects/a/rego.rego": "package projects.a\n\nx := }\n"})
    wanted = await world.live()
    await world.hand(Put(world.keys.rego(A), b"evil"), Delete(world.keys.rego(B)), Put(world.keys.data(B), b"{}"))
    result = await world.run()
    assert {change.policy for change in result.plan.drifted} == {A, B}
    assert await world.live() == wanted


async def test_keys_that_regops_never_wrote_are_reported_and_left(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    await world.hand(Put(f"{world.keys.policies}odd", b"x"), Put(world.keys.rego(B), b"y"))
    result = await world.run()
    assert set(result.foreign) == {f"{world.keys.policies}odd", f"{world.keys.policies}projects/b/rego.rego"}
    assert (await world.live())["odd"] == b"x"


async def test_a_platform_that_would_break_a_project_is_held_naming_it(world: World) -> None:
    await world.run({"platform/rego.rego": LIB, "projects/a/rego.rego": Rego("a").calls_platform()})
    await world.run({"platform/rego.rego": OTHER_LIB, "projects/b/rego.rego": Rego("b").says("1")})
    live = await world.live()
    assert live["platform/rego.rego"] == LIB.encode()
    assert "projects/b/rego.rego" in live
    assert await world.held() == {"platform"}


async def test_a_platform_and_its_projects_may_change_together(world: World) -> None:
    await world.run({"platform/rego.rego": LIB, "projects/a/rego.rego": Rego("a").calls_platform()})
    both: dict[str, str | None] = {
        "platform/rego.rego": OTHER_LIB,
        "projects/a/rego.rego": Rego("a").calls_platform().replace("ok", "fine"),
    }
    await world.run(both)
    assert (await world.live())["platform/rego.rego"] == OTHER_LIB.encode()
    assert await world.held() == set()


async def test_by_setting_the_broken_projects_are_withdrawn_instead(world: World) -> None:
    world.reconciler = world.another("withdraw-projects")
    await world.run({"platform/rego.rego": LIB, "projects/a/rego.rego": Rego("a").calls_platform()})
    await world.run({"platform/rego.rego": OTHER_LIB})
    assert set(await world.live()) == {"platform/rego.rego"}
    assert await world.held() == {"projects/a"}


async def test_an_emptied_repository_deletes_nothing_until_a_person_confirms(world: World) -> None:
    await world.run({"platform/rego.rego": LIB, "projects/a/rego.rego": Rego("a").says("1")})
    result = await world.run({"platform/rego.rego": None, "projects/a/rego.rego": None})
    assert (result.ruling.reason, set(result.ruling.blocked)) == ("SourceEmpty", {PLATFORM, A})
    assert set(await world.live()) == {"platform/rego.rego", "projects/a/rego.rego"}
    assert await world.held() == {"platform", "projects/a"}
    word = Confirmed(result.commit, ("platform", "projects/a"), "me", "now")
    await world.hand(Put(world.keys.confirmed, word.encode()))
    await world.run()
    assert await world.live() == {}
    assert await world.held() == set()
    assert (await world.store.read(Range(world.keys.confirmed))).ranges == ((),)


async def test_a_file_in_the_place_of_the_projects_folder_deletes_nothing(world: World) -> None:
    await world.run({"platform/rego.rego": LIB, "projects/a/rego.rego": Rego("a").says("1")})
    await world.run({"projects/a/rego.rego": None})
    world.reconciler.invalidate()
    await world.run({"projects/b/rego.rego": Rego("b").says("1")})
    shutil.rmtree(world.folder / "repo/policies/projects")
    result = await world.run({"projects": "a file"})
    assert not result.plan.changes
    assert "projects/b/rego.rego" in await world.live()
    assert "projects" in await world.held()


async def test_a_suspension_stops_everything_and_its_end_goes_on(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    await world.hand(Put(world.keys.suspended, b'{"by":"me","reason":"","at":"now"}'))
    assert (await world.run({"projects/a/rego.rego": Rego("a").says("2")})).suspended
    assert b'"1"' in (await world.live())["projects/a/rego.rego"]
    await world.hand(Delete(world.keys.suspended))
    await world.run()
    assert b'"2"' in (await world.live())["projects/a/rego.rego"]


async def test_a_deposed_leader_writes_nothing(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    before = await world.live()
    await world.store.commit(Transaction((), (Delete(world.keys.leader),)))
    with pytest.raises(ConflictError):
        await world.run({"projects/a/rego.rego": Rego("a").says("2")})
    assert await world.live() == before


async def test_a_broken_off_apply_is_finished_and_tells_agents_to_read_everything(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    await world.hand(Put(world.keys.applying, Applying("x", "t").encode()))
    await world.run()
    assert (await world.applied()).changed is None
    assert (await world.store.read(Range(world.keys.applying))).ranges == ((),)


async def test_an_apply_over_many_transactions_is_whole_at_its_end(world: World) -> None:
    files: dict[str, str | None] = {f"projects/p{n}/rego.rego": Rego(f"p{n}").says("1") for n in range(150)}
    result = await world.run(files)
    assert len(await world.live()) == 150
    assert (await world.applied()).commit == result.commit
    assert (await world.store.read(Range(world.keys.applying))).ranges == ((),)
    world.reconciler.invalidate()
    assert not (await world.run()).wrote


async def test_a_rewritten_history_is_followed_and_counted(world: World) -> None:
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    await world.run({"projects/a/rego.rego": Rego("a").says("2")})
    git("reset", "-q", "--hard", "HEAD~1", folder=world.folder / "repo")
    result = await world.run({"projects/a/rego.rego": Rego("a").says("3")})
    assert result.rewritten
    assert (await world.applied()).rewrites == 1


async def test_every_meta_names_the_commit_and_the_rego_version(world: World) -> None:
    first = world.commit({"projects/a/rego.rego": "package projects.a\n\nallow { true }\n"})
    await world.run({"projects/b/rego.rego": Rego("b").says("1")})
    metas = (await world.store.read(Range(world.keys.meta(A)), Range(world.keys.meta(B)))).ranges
    old, new = (Meta.decode(kvs[0].value) for kvs in metas)
    assert (old.commit, old.rego_version, new.rego_version) == (first, 0, 1)


async def test_a_repository_without_a_commit_stalls_and_deletes_nothing(world: World) -> None:
    with pytest.raises(StalledError) as stalled:
        await world.run()
    assert (stalled.value.reason, stalled.value.stage) == ("NoCommit", "fetch")


@pytest.mark.parametrize(
    ("files", "policy", "said"),
    [
        ({"projects/a/rego.rego": "package project.authz\n"}, A, "write `package projects.a.authz`"),
        ({"projects/a/rego.rego": Rego("a").says("1"), "projects/a/data.json": "[]"}, A, "must be a JSON object"),
        ({"projects/a/rego.rego": Rego("a").says("1"), "projects/a/data.json": '{"a":1,"a":2}'}, A, "twice"),
        ({"projects/a/rego.rego": Rego("a").says("1"), "projects/a/data.json": '{"a":NaN}'}, A, "NaN"),
        ({"projects/a/rego.rego": "package projects.a\n\nx := data.projects.b.y\n"}, A, "data.projects.b.y"),
        ({"projects/a/rego.rego": 'package projects.a\n\nx := http.send({"url": "x"})\n'}, A, "http.send"),
        ({"projects/a/data.json": "{}"}, A, "rego.rego"),
        ({"platform/rego.rego": "package platform.x\n\ny := data.projects\n"}, PLATFORM, "the platform may read only"),
        ({"projects/A/rego.rego": Rego("A").says("1")}, PolicyName("projects/A"), "a project's name"),
    ],
)
async def test_bad_input_is_held_with_a_message_and_never_live(
    world: World, files: dict[str, str | None], policy: PolicyName, said: str
) -> None:
    result = await world.run({**files, "projects/good/rego.rego": Rego("good").says("1")})
    assert set(await world.live()) == {"projects/good/rego.rego"}
    assert said in " ".join(map(str, result.held[policy].errors))


async def test_foreign_keys_are_removed_once_when_a_person_asks_and_by_no_later_leader(world: World) -> None:
    """The wish stayed in the request: the next leader, days later, deleted whatever was foreign then."""
    await world.run({"projects/a/rego.rego": Rego("a").says("1")})
    first, later = f"{world.keys.policies}odd", f"{world.keys.policies}projects/b/rego.rego"
    await world.hand(Put(first, b"x"))
    assert (await world.run()).foreign == (first,)
    await world.hand(Put(world.keys.requested, Requested("now", remove_foreign=True).encode()))
    asked = await world.run()
    assert (asked.handled, asked.foreign) == ("now", ())
    assert set(await world.live()) == {"projects/a/rego.rego"}
    await world.hand(Put(later, b"x"))
    world.reconciler = world.another()
    assert (await world.run()).foreign == (later,)
    assert set(await world.live()) == {"projects/a/rego.rego", "projects/b/rego.rego"}


async def test_what_a_new_leader_writes_anew_went_live_when_it_did(world: World) -> None:
    """`regops status` told the time of the last change of leaders, after each outage of etcd, as that of the commit."""
    await world.run({"projects/a/rego.rego": Rego("a").says("first")})
    before = await world.applied()
    world.reconciler = world.another()
    result = await world.reconciler.run(world.fence, renew=True)
    again = await world.applied()
    assert (result.wrote, again.id != before.id, again.at) == (True, True, before.at)
    await world.run({"projects/a/rego.rego": Rego("a").says("second")})
    assert (await world.applied()).at > before.at
