"""What every `Source` promises, asked of the one in memory and of the real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from fakes.source import InMemorySource
from fixtures.git import SEED, Remote

from reconciler.adapters.git import GitSource
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import PLATFORM, BlobIds, Content, project_policy
from reconciler.core.ports import Source

ALPHA, BETA = project_policy("alpha"), project_policy("beta")
REGO = "policies/projects/alpha/rego.rego"


class Origin(Protocol):
    def commit(
        self,
        files: Mapping[str, bytes | None],
        *,
        message: str = "change",
        author: str = ...,
        on: str | None = None,
        merge: str | None = None,
    ) -> str: ...

    def force_push(self, commit: str) -> None: ...

    def delete_branch(self) -> None: ...


@dataclass
class World:
    origin: Origin
    source: Source


@pytest.fixture(params=["memory", "git"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        fake = InMemorySource()
        yield World(fake, fake)
    else:
        remote = Remote(tmp_path / "remote.git")
        source = GitSource(remote=remote.url, mirror=tmp_path / "mirror.git")
        yield World(remote, source)
        await source.aclose()


async def test_fetch_returns_the_head_of_the_branch(world: World) -> None:
    first = world.origin.commit(SEED)
    assert await world.source.fetch() == first
    second = world.origin.commit({REGO: b"package projects.alpha\n"})
    assert await world.source.fetch() == second
    assert await world.source.fetch() == second


async def test_a_poll_sees_the_branch_move_like_any_other_look(world: World) -> None:
    first = world.origin.commit(SEED)
    assert await world.source.fetch(told=False) == first
    assert await world.source.fetch(told=False) == first
    second = world.origin.commit({REGO: b"package projects.alpha\n"})
    assert await world.source.fetch(told=False) == second
    assert (await world.source.tree(second)).found
    world.origin.force_push(first)
    assert await world.source.fetch(told=False) == first


async def test_a_remote_without_a_commit_is_not_a_missing_branch(world: World) -> None:
    with pytest.raises(StalledError) as empty:
        await world.source.fetch()
    world.origin.commit(SEED)
    await world.source.fetch()
    assert empty.value.reason == "NoCommit"


async def test_the_tree_holds_the_blob_ids_of_every_policy(world: World) -> None:
    head = world.origin.commit(SEED)
    await world.source.fetch()
    tree = await world.source.tree(head)
    alpha = Content(SEED[REGO], SEED["policies/projects/alpha/data.json"])
    assert tree.commit == head
    assert tree.found
    assert set(tree.policies) == {PLATFORM, ALPHA, BETA}
    assert tree.policies[ALPHA] == alpha.blob_ids()
    assert await world.source.read(tree.policies[ALPHA]) == alpha
    assert await world.source.sizes(tree.policies[ALPHA]) == (len(alpha.rego), len(alpha.data or b""))


async def test_a_policy_without_data_has_none_and_size_zero(world: World) -> None:
    head = world.origin.commit(SEED)
    await world.source.fetch()
    beta = (await world.source.tree(head)).policies[BETA]
    assert beta.data is None
    assert (await world.source.read(beta)).data is None
    assert await world.source.sizes(beta) == (len(SEED["policies/projects/beta/rego.rego"]), 0)


async def test_tests_readmes_and_dot_files_are_silent_and_everything_else_is_reported(world: World) -> None:
    head = world.origin.commit(
        {
            **SEED,
            "README.md": b"",
            "policies/README.md": b"",
            "policies/.regal/config.yaml": b"",
            "policies/notes.txt": b"",
            "policies/lib/a.rego": b"",
            "policies/projects/alpha/rego_test.rego": b"",
            "policies/projects/alpha/.gitkeep": b"",
            "policies/projects/alpha/more.rego": b"",
            "policies/projects/alpha/sub/a.rego": b"",
            "policies/projects/alpha/sub/b.rego": b"",
            "policies/platform/data.yaml": b"",
        }
    )
    await world.source.fetch()
    tree = await world.source.tree(head)
    assert tree.ignored == (
        "lib/",
        "notes.txt",
        "platform/data.yaml",
        "projects/alpha/more.rego",
        "projects/alpha/sub/",
    )
    assert not tree.invalid


@pytest.mark.parametrize("file", ["data.json", "rego_test.rego", "README.md", ".gitkeep", "sub/rego.rego"])
async def test_a_folder_without_rego_is_invalid(world: World, file: str) -> None:
    head = world.origin.commit({**SEED, f"policies/projects/gamma/{file}": b"{}"})
    await world.source.fetch()
    tree = await world.source.tree(head)
    assert [error.file for error in tree.invalid["projects/gamma"]] == ["projects/gamma/rego.rego"]
    assert "missing" in tree.invalid["projects/gamma"][0].message
    assert project_policy("gamma") not in tree.policies


@pytest.mark.parametrize("name", ["Alpha", "a.b", "a b", "-a", "x" * 64, "platform", "zürich"])
async def test_an_impossible_name_is_invalid_under_its_raw_path(world: World, name: str) -> None:
    head = world.origin.commit({**SEED, f"policies/projects/{name}/rego.rego": b"package x\n"})
    await world.source.fetch()
    tree = await world.source.tree(head)
    assert list(tree.invalid) == [f"projects/{name}"]
    assert set(tree.policies) == {PLATFORM, ALPHA, BETA}


async def test_a_tree_tells_which_policies_differ_from_another_commits(world: World) -> None:
    seed = world.origin.commit(SEED)
    changes: list[dict[str, bytes | None]] = [
        {REGO: b"package projects.alpha\n"},
        {"policies/projects/beta": None, "policies/projects/gamma/rego.rego": b"package projects.gamma\n"},
        {"policies/projects/gamma/rego.rego": None, "policies/projects/gamma/README": b"broken"},
        {"policies/projects/X/rego.rego": b"", "README.md": b"", "policies/notes.txt": b""},
        {"policies/platform/data.json": b"{}"},
    ]
    commits = [seed, *(world.origin.commit(files) for files in changes)]
    await world.source.fetch()
    trees = [await world.source.tree(commit) for commit in commits]
    for old in trees:
        for new in trees:
            told = (await world.source.tree(new.commit, since=old.commit)).changed
            before, after = ({**tree.policies, **tree.invalid} for tree in (old, new))
            differing = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
            assert told is not None
            assert differing - {"projects/X"} <= told, (old.commit, new.commit)
            assert len(told) <= len(differing)
    assert (await world.source.tree(seed, since=seed)).changed == frozenset()
    assert (await world.source.tree(seed, since="1" * 40)).changed is None
    assert (await world.source.tree(seed)).changed is None


async def test_against_a_commit_without_policies_nothing_is_told(world: World) -> None:
    empty = world.origin.commit({"README.md": b""})
    seed = world.origin.commit(SEED)
    await world.source.fetch()
    assert (await world.source.tree(seed, since=empty)).changed is None
    assert (await world.source.tree(empty, since=seed)).changed is None


@pytest.mark.parametrize("files", [{"policies": b"a file"}, {"other/rego.rego": b""}])
async def test_a_missing_or_replaced_policies_folder_is_not_found(world: World, files: Mapping[str, bytes]) -> None:
    head = world.origin.commit(files)
    await world.source.fetch()
    tree = await world.source.tree(head)
    assert not tree.found
    assert not tree.policies


async def test_info_is_author_time_and_subject(world: World) -> None:
    head = world.origin.commit(SEED, message="Let everybody in\n\nBecause.", author="Ann Müller <ann@example.org>")
    await world.source.fetch()
    info = await world.source.info(head)
    assert (info.commit, info.author, info.subject) == (head, "Ann Müller <ann@example.org>", "Let everybody in")
    assert info.committed_at.startswith("2023-11-14T22:13:2")
    assert info.committed_at.endswith("Z")


async def test_a_commit_that_was_not_fetched_is_not_found(world: World) -> None:
    world.origin.commit(SEED)
    await world.source.fetch()
    later = world.origin.commit({REGO: b"package projects.alpha\n"})
    for unknown in (later, "0" * 40, "main", ""):
        with pytest.raises(TransientError) as missing:
            await world.source.tree(unknown)
        assert missing.value.reason == "CommitNotFound"
        assert not await world.source.contains(unknown, unknown)


async def test_the_last_change_is_the_commit_that_touched_the_published_files(world: World) -> None:
    seed = world.origin.commit(SEED)
    alpha = world.origin.commit({REGO: b"package projects.alpha\n"})
    readme = world.origin.commit({"policies/projects/alpha/README.md": b"hello"})
    await world.source.fetch()
    assert (await world.source.last_change(readme, ALPHA)).commit == alpha
    assert (await world.source.last_change(readme, BETA)).commit == seed
    assert (await world.source.last_change(seed, ALPHA)).commit == seed
    beta = world.origin.commit({"policies/projects/beta": None})
    await world.source.fetch()
    assert (await world.source.last_change(beta, BETA)).commit == beta
    assert (await world.source.last_change(beta, ALPHA)).commit == alpha
    assert (await world.source.last_change(readme, BETA)).commit == seed


async def test_the_last_changes_of_many_are_those_of_each(world: World) -> None:
    world.origin.commit(SEED)
    world.origin.commit({REGO: b"package projects.alpha\n"})
    head = world.origin.commit({"policies/projects/beta": None})
    await world.source.fetch()
    names = [PLATFORM, ALPHA, BETA]
    changes = await world.source.last_changes(head, names)
    assert changes == {name: await world.source.last_change(head, name) for name in names}
    assert await world.source.last_changes(head, []) == {}
    with pytest.raises(StalledError) as never:
        await world.source.last_changes(head, [ALPHA, project_policy("gamma")])
    assert never.value.reason == "PolicyNotFound"


async def test_a_merge_is_the_change_of_what_its_branch_brought(world: World) -> None:
    seed = world.origin.commit(SEED)
    side = world.origin.commit({REGO: b"package projects.alpha\n"}, on=seed)
    other = world.origin.commit({"policies/projects/beta/data.json": b"{}"}, on=seed)
    merge = world.origin.commit({REGO: b"package projects.alpha\n"}, on=other, merge=side)
    await world.source.fetch()
    assert (await world.source.last_change(merge, ALPHA)).commit == merge
    assert (await world.source.last_change(merge, BETA)).commit == other
    assert await world.source.height(merge) == 4


async def test_a_commit_is_found_by_its_first_digits(world: World) -> None:
    seed = world.origin.commit(SEED)
    await world.source.fetch()
    assert await world.source.find(seed) == await world.source.find(seed[:12]) == seed
    for text in (seed[:3], f"{seed[:11]}{'0' if seed[11] != '0' else '1'}", "f" * 40, "HEAD", "main", "", seed.upper()):
        assert await world.source.find(text) is None, text


async def test_a_policy_that_never_was_has_no_last_change(world: World) -> None:
    head = world.origin.commit(SEED)
    await world.source.fetch()
    with pytest.raises(StalledError) as never:
        await world.source.last_change(head, project_policy("gamma"))
    assert never.value.reason == "PolicyNotFound"


async def test_height_counts_reachable_commits_and_survives_a_rewritten_branch(world: World) -> None:
    seed = world.origin.commit(SEED)
    lost = [world.origin.commit({REGO: b"package projects.alpha # %d\n" % n}) for n in range(3)]
    await world.source.fetch()
    assert await world.source.height(lost[-1]) == 4
    rewritten = world.origin.commit({REGO: b"package projects.alpha\n"}, on=seed)
    assert await world.source.fetch() == rewritten
    assert await world.source.height(rewritten) == 2
    assert await world.source.height(lost[-1]) == 4
    assert await world.source.contains(rewritten, seed)
    assert await world.source.contains(rewritten, rewritten)
    assert not await world.source.contains(rewritten, lost[-1])
    assert not await world.source.contains(seed, rewritten)


async def test_a_history_begun_anew_is_followed(world: World) -> None:
    old = world.origin.commit(SEED)
    await world.source.fetch()
    new = world.origin.commit(SEED, on="", message="squashed")
    assert await world.source.fetch() == new
    assert await world.source.height(new) == 1
    assert not await world.source.contains(new, old)
    assert (await world.source.last_change(new, ALPHA)).commit == new


async def test_past_versions_are_distinct_newest_first_and_without_the_present_one(world: World) -> None:
    def rego(text: bytes) -> BlobIds:
        return Content(text).blob_ids()

    one = world.origin.commit({"policies/projects/c/rego.rego": b"1"})
    two = world.origin.commit({"policies/projects/c/rego.rego": b"2"})
    world.origin.commit(SEED)
    world.origin.commit({"policies/projects/c": None})
    again = world.origin.commit({"policies/projects/c/rego.rego": b"1"})
    head = world.origin.commit({"policies/projects/c/rego.rego": b"3"})
    await world.source.fetch()
    c = project_policy("c")
    versions = await world.source.past_versions(head, c)
    assert [(version.commit, version.blobs) for version in versions] == [(again, rego(b"1")), (two, rego(b"2"))]
    assert [version.commit for version in await world.source.past_versions(two, c)] == [one]
    assert not await world.source.past_versions(head, project_policy("never"))


async def test_a_deleted_branch_is_not_found(world: World) -> None:
    head = world.origin.commit(SEED)
    await world.source.fetch()
    world.origin.delete_branch()
    for told in (True, False):
        with pytest.raises(StalledError) as gone:
            await world.source.fetch(told=told)
        assert gone.value.reason in {"BranchNotFound", "NoCommit"}
    assert (await world.source.tree(head)).found


async def changes(world: World, commit: str) -> dict[str, object]:
    """What a commit did: the ETag of each policy since, ``None`` for a deletion, ``"fault"`` for what is no policy."""
    found = (await world.source.branch_commits([commit]))[commit].changes
    return {name: "fault" if change.fault else change.etag for name, change in found.items()}


async def test_the_line_ends_at_what_is_known_and_follows_first_parents_only(world: World) -> None:
    first = world.origin.commit(SEED)
    side = world.origin.commit({REGO: b"package projects.alpha\n"})
    main = world.origin.commit({"policies/platform/data.json": b"{}"}, on=first)
    merge = world.origin.commit({REGO: b"package projects.alpha\n"}, merge=side)
    await world.source.fetch()
    assert list(await world.source.line(merge)) == [first, main, merge]
    assert list(await world.source.line(merge, {side, first})) == [main, merge]
    assert list(await world.source.line(merge, {merge})) == []


async def test_a_merge_changes_what_it_brings_to_its_first_parent(world: World) -> None:
    first = world.origin.commit(SEED)
    world.origin.commit({REGO: b"package projects.alpha\n"}, author="Bob <bob@example.org>")
    side = world.origin.commit({"policies/projects/gamma/rego.rego": b"package projects.gamma\n"})
    world.origin.force_push(first)
    merge = world.origin.commit(
        {REGO: b"package projects.alpha\n", "policies/projects/gamma/rego.rego": b"package projects.gamma\n"},
        merge=side,
        message="Merge pull request #7 from bob/alpha",
    )
    await world.source.fetch()
    assert (await changes(world, merge)).keys() == {"projects/alpha", "projects/gamma"}
    info = (await world.source.branch_commits([merge]))[merge].info
    assert info.author.startswith("Alice")
    assert info.subject == "Merge pull request #7 from bob/alpha"


async def test_a_policy_that_goes_comes_back_or_breaks_is_a_change_and_a_readme_is_none(world: World) -> None:
    first = world.origin.commit(SEED)
    readme = world.origin.commit({"policies/projects/alpha/README.md": b"hello"})
    broken = world.origin.commit({REGO: None})
    gone = world.origin.commit({"policies/projects/alpha": None})
    back = world.origin.commit({REGO: SEED[REGO]})
    await world.source.fetch()
    assert (await changes(world, first)).keys() == {"platform", "projects/alpha", "projects/beta"}
    assert await changes(world, readme) == {}
    assert await changes(world, broken) == {"projects/alpha": "fault"}
    assert await changes(world, gone) == {"projects/alpha": None}
    assert await changes(world, back) == {"projects/alpha": Content(SEED[REGO]).blob_ids().etag}


async def test_a_folder_that_only_a_readme_keeps_is_deleted_with_the_readme(world: World) -> None:
    world.origin.commit(SEED)
    kept = world.origin.commit({"policies/projects/beta/README.md": b"", "policies/projects/beta/rego.rego": None})
    gone = world.origin.commit({"policies/projects/beta": None})
    await world.source.fetch()
    assert await changes(world, kept) == {"projects/beta": "fault"}
    assert await changes(world, gone) == {"projects/beta": None}


async def test_commits_that_the_mirror_never_had_are_left_out(world: World) -> None:
    head = world.origin.commit(SEED)
    await world.source.fetch()
    assert (await world.source.branch_commits(["1" * 40, head])).keys() == {head}
    (only,) = (await world.source.branch_commits([head], BETA)).values()
    assert only.changes.keys() == {BETA}
