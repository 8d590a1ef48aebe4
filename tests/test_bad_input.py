"""Whatever people commit: the error names file, line and remedy, the rest of the commit goes live, nothing is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
from fixtures.engine import MOST_LAG, Lag
from fixtures.etcd import EtcdServer
from fixtures.git import File, Remote, executable, link, submodule
from fixtures.opa import find_opa

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.adapters.git import GitSource
from reconciler.adapters.opa import OpaCompiler
from reconciler.core.errors import StalledError
from reconciler.core.guards import Limits
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Fence, Range
from reconciler.core.records import Applied, Held
from reconciler.reconcile import PassResult, Reconciler
from reconciler.validation import Judge

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLATFORM = b"package platform.lib\n\nok(x) if x == 1\n"
GOOD = b'package projects.a.authz\n\nallow if input.user == "ann"\n'
OTHER = b"package projects.b\n\nnumber := %d\n"
SOUND: Mapping[str, File] = {
    "policies/platform/rego.rego": PLATFORM,
    "policies/projects/a/rego.rego": GOOD,
    "policies/projects/a/data.json": b'{"owners": 1}\n',
    "policies/projects/b/rego.rego": OTHER % 1,
}


class World:
    """A remote, an etcd prefix and the passes of a leader."""

    def __init__(self, folder: Path, store: EtcdStore, prefix: str, compiler: OpaCompiler, fence: Fence) -> None:
        self.remote = Remote(folder / "remote.git")
        self.source = GitSource(remote=self.remote.url, mirror=folder / "mirror.git")
        self.store = store
        self.keys = Keyspace(f"{prefix}policies/", f"{prefix}regops/")
        judge = Judge(self.source, compiler)
        self.reconciler = Reconciler(self.source, store, judge, keyspace=self.keys, limits=Limits())
        self.fence = fence

    async def apply(self, files: Mapping[str, File]) -> PassResult:
        """Commit and run one pass."""
        self.remote.commit(files)
        return await self.reconciler.run(self.fence)

    async def live(self) -> dict[str, bytes]:
        kvs = (await self.store.read(Range(self.keys.policies, prefix=True))).ranges[0]
        return {kv.key.removeprefix(self.keys.policies): kv.value for kv in kvs}

    async def held(self) -> dict[str, Held]:
        kvs = (await self.store.read(Range(self.keys.helds, prefix=True))).ranges[0]
        return {kv.key.removeprefix(self.keys.helds): Held.decode(kv.value) for kv in kvs}

    async def applied(self) -> str:
        return Applied.decode((await self.store.read(Range(self.keys.applied))).ranges[0][0].value).commit


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compiler() -> AsyncIterator[OpaCompiler]:
    async with OpaCompiler(find_opa()) as compiler:
        yield compiler


@pytest_asyncio.fixture(loop_scope="module")
async def empty(tmp_path: Path, etcd_server: EtcdServer, prefix: str, compiler: OpaCompiler) -> AsyncIterator[World]:
    """Nothing is live, and nothing was ever committed."""
    store = EtcdStore([etcd_server.endpoint])
    async with Election(store, f"{prefix}regops/leader/holder", "me").lead() as leadership:
        world = World(tmp_path, store, prefix, compiler, leadership.fence)
        yield world
        await world.source.aclose()
    await store.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def world(empty: World) -> World:
    """`SOUND` is live."""
    await empty.apply(SOUND)
    return empty


# --- one bad project beside a good change ----------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

FILES: dict[str, tuple[dict[str, File], str, str]] = {
    # what is committed, where the error points to, and what it says: what is wrong, and the remedy
    "broken Rego": (
        {"rego.rego": b"package projects.a\n\nx := }\n"},
        "rego.rego:3:6",
        "unexpected } token: correct this line",
    ),
    "Rego with a variable that nothing binds": (
        {"rego.rego": b"package projects.a\n\nx if y == 1\n"},
        "rego.rego:3:6",
        "var y is unsafe: give it a value before it is used",
    ),
    "Rego v0 in a file that says v1": (
        {"rego.rego": b"package projects.a\n\nimport rego.v1\n\nx { input.y }\n"},
        "rego.rego:5:1",
        "`if` keyword is required before rule body: write it there; `opa fmt --v0-v1` does it",
    ),
    "Rego without a package": (
        {"rego.rego": b"allow := true\n"},
        "rego.rego:1:1",
        "package expected: begin the file with `package projects.a`",
    ),
    "an empty rego.rego": ({"rego.rego": b"\n"}, "rego.rego:1:1", "a policy begins with `package projects.a`"),
    "JSON with a key twice": (
        {"data.json": b'{\n "a": 1,\n "a": 2\n}\n'},
        "data.json:3:2",
        'the key "a" stands twice in this object (first in line 2): keep one',
    ),
    "JSON with NaN": (
        {"data.json": b'{\n "a": NaN\n}\n'},
        "data.json:2:7",
        '"NaN" is no JSON value: write a number, a string or null',
    ),
    "JSON with an array at the top": (
        {"data.json": b"[1, 2]\n"},
        "data.json:1:1",
        'the top must be a JSON object, loaded at data.projects.a: give the value a name, {"items": …}',
    ),
    "JSON with a byte order mark": (
        {"data.json": b'\xef\xbb\xbf{"a": 1}\n'},
        "data.json:1:1",
        "begins with a byte order mark (BOM): save it as UTF-8 without BOM",
    ),
    "JSON of 2 MiB": (
        {"data.json": b'{"a": "' + b"x" * (2 * 1024 * 1024 - 9) + b'"}'},
        "data.json",
        "is 2097152 bytes; the limit is 1048576: make it smaller",
    ),
    "Rego of 600 kB": (
        {"rego.rego": GOOD + b"#" * 600_000},
        "rego.rego",
        "the limit is 524288: make it smaller",
    ),
    "JSON nested a hundred deep": (
        {"data.json": b'{"a":' + b"[" * 100 + b"]" * 100 + b"}"},
        "data.json:1:69",
        "nested deeper than 64 levels: flatten it",
    ),
    "JSON with half a surrogate pair": (
        {"data.json": b'{"a": "\\ud800"}'},
        "data.json:1:8",
        "half of a surrogate pair without the other: write the whole character",
    ),
    "an empty data.json": ({"data.json": b""}, "data.json:1:1", "is empty: write {} or delete the file"),
    "a package outside its namespace": (
        {"rego.rego": b"# ours\npackage authz\n\nx := 1\n"},
        "rego.rego:2:1",
        "`package authz` is not in the namespace of project a: write `package projects.a.authz`",
    ),
    "the package of another project": (
        {"rego.rego": b"package projects.b.authz\n\nx := 1\n"},
        "rego.rego:1:1",
        "write `package projects.a.authz`",
    ),
    "a reference into another project": (
        {"rego.rego": b"package projects.a\n\nx := data.projects.b.number\n"},
        "rego.rego:3:6",
        "reads `data.projects.b.number`: a project may read only `input`, its own tree (data.projects.a)",
    ),
    "a reference into another project by an import": (
        {"rego.rego": b"package projects.a\n\nimport data.projects.b as other\n\nx := other.number\n"},
        "rego.rego:5:6",
        "what several projects need belongs into the platform",
    ),
    "a reference that is computed": (
        {"rego.rego": b"package projects.a.authz\n\nx := data.projects[input.name].number\n"},
        "rego.rego:3:6",
        "reads `data.projects[…]`: a project may read only",
    ),
    "a reference to everything": (
        {"rego.rego": b"package projects.a.authz\n\nx := data[input.name]\n"},
        "rego.rego:3:1",
        "write the name of what is read instead of a computed one",
    ),
    "data that clashes with a rule": (
        {"rego.rego": b"package projects.a\n\nx := 1\n", "data.json": b'{\n "y": 1,\n "x": 2\n}\n'},
        "data.json:3:2",
        'the key "x" stands in the place of rule `x` (line 3 of rego.rego): rename one of them',
    ),
    "data in the place of the package": (
        {"rego.rego": GOOD, "data.json": b'{\n "authz": 1\n}\n'},
        "data.json:2:2",
        'the key "authz" stands in the place of package `projects.a.authz` (line 1 of rego.rego): rename one of them',
    ),
    "http.send": (
        {"rego.rego": b'package projects.a\n\nx := http.send({"url": "http://x", "method": "get"})\n'},
        "rego.rego:3:6",
        "uses http.send, which policies may not use here: pass what it would fetch in `input` or in data.json",
    ),
    "a link in the place of rego.rego": (
        {"rego.rego": link("../b/rego.rego")},
        "rego.rego",
        "is a symbolic link; commit a plain file in its place",
    ),
    "a link in the place of data.json": (
        {"data.json": link("/etc/passwd")},
        "data.json",
        "is a symbolic link; commit a plain file in its place",
    ),
    "a submodule in the place of rego.rego": (
        {"rego.rego": submodule()},
        "rego.rego",
        "is a submodule; commit a plain file in its place",
    ),
    "a submodule in the place of data.json": (
        {"data.json": submodule()},
        "data.json",
        "is a submodule; commit a plain file in its place",
    ),
    "a folder in the place of rego.rego": (
        {"rego.rego": None, "rego.rego/x": b"x"},
        "rego.rego",
        "is a folder; commit a plain file in its place",
    ),
    "a folder in the place of data.json": (
        {"data.json": None, "data.json/x": b"x"},
        "data.json",
        "is a folder; commit a plain file in its place",
    ),
    "a folder without rego.rego": (
        {"rego.rego": None},
        "rego.rego",
        "missing: a policy needs a rego.rego; add it, or delete the whole folder",
    ),
    "a Git LFS pointer for data.json": (
        {"data.json": LFS},
        "data.json:1:1",
        "this is a Git LFS pointer, not the file: commit the file itself (`git lfs untrack`, then add it again)",
    ),
    "a Git LFS pointer for rego.rego": ({"rego.rego": LFS}, "rego.rego:1:1", "this is a Git LFS pointer"),
    "Rego in Latin-1": (
        {"rego.rego": b"package projects.a\n\n# caf\xe9\n"},
        "rego.rego:3:6",
        "byte 0xe9 is no UTF-8: save the file as UTF-8",
    ),
    "JSON in UTF-16": (
        {"data.json": '{"a": 1}'.encode("utf-16")},
        "data.json:1:1",
        "is no UTF-8: save the file as UTF-8",
    ),
    "Rego with a NUL": (
        {"rego.rego": GOOD + b"\0"},
        "rego.rego:4:1",
        "has a NUL character in it: save it as UTF-8 text",
    ),
}


def places(held: Held) -> list[tuple[str, str]]:
    """Place and message of each error."""
    return [(str(error).removesuffix(f": {error.message}"), error.message) for error in held.errors]


@pytest.mark.parametrize("name", FILES)
async def test_a_bad_file_holds_its_policy_and_nothing_else(world: World, name: str) -> None:
    files, place, said = FILES[name]
    before = await world.live()
    await world.apply({**{f"policies/projects/a/{file}": content for file, content in files.items()}, B: OTHER % 2})
    held = await world.held()
    assert held.keys() == {"projects/a"}
    assert held["projects/a"].commit == world.remote.head
    first = places(held["projects/a"])[0]
    assert first[0] == f"projects/a/{place}"
    assert said in " ".join(message for _, message in places(held["projects/a"]))
    assert await world.live() == {**before, "projects/b/rego.rego": OTHER % 2}
    assert await world.applied() == world.remote.head
    world.remote.commit({"policies/projects/a": None})
    await world.apply(SOUND)
    assert await world.held() == {}


B = "policies/projects/b/rego.rego"


async def test_a_platform_that_reads_a_project_is_held(world: World) -> None:
    before = await world.live()
    await world.apply({"policies/platform/rego.rego": PLATFORM + b"\nx := data.projects.b.number\n", B: OTHER % 2})
    ((place, message),) = places((await world.held())["platform"])
    assert place == "platform/rego.rego:5:6"
    assert message.startswith("reads `data.projects.b.number`: the platform may read only `input` and its own tree")
    assert await world.live() == {**before, "projects/b/rego.rego": OTHER % 2}


# --- names -----------------------------------------------------------------------------------------------------------

LONGEST = "a" * 63


@pytest.mark.parametrize(
    "name",
    ["A", "with.dots", "with space", "a" * 64, "ünï", "日本", "-a", "a-", "a_b", "platform", "back\\slash", "emoji😀"],
)
async def test_an_impossible_name_is_told_with_the_rule_and_the_rest_applies(world: World, name: str) -> None:
    before = await world.live()
    await world.apply({f"policies/projects/{name}/rego.rego": b"package projects.x\n", B: OTHER % 2})
    ((raw, held),) = (await world.held()).items()
    assert raw == f"projects/{name}"
    assert held.reason == "InvalidName"
    ((place, message),) = places(held)
    assert place == f"projects/{name}"
    assert "is an impossible name: a project's name is a DNS label: 1 to 63 of a-z, 0-9 and '-'" in message
    assert message.endswith("rename the folder")
    assert await world.live() == {**before, "projects/b/rego.rego": OTHER % 2}


async def test_of_two_names_that_differ_by_case_the_possible_one_applies(world: World) -> None:
    await world.apply(
        {"policies/projects/shop/rego.rego": OTHER % 1, "policies/projects/Shop/rego.rego": OTHER % 2}
        | {"policies/projects/shop/rego.rego": b"package projects.shop\n"}
    )
    assert (await world.held()).keys() == {"projects/Shop"}
    assert (await world.live())["projects/shop/rego.rego"] == b"package projects.shop\n"


async def test_a_name_that_would_play_with_a_terminal_is_shown_harmlessly(world: World) -> None:
    bad = b"policies/projects/\x1b[31m\xff\n/rego.rego"
    world.remote.commit({bad: b"package projects.x\n"})
    await world.reconciler.run(world.fence)
    assert (await world.held()).keys() == {r"projects/\x1b[31m\xff\n"}


async def test_the_longest_possible_name_applies(world: World) -> None:
    rego = f"package projects.{LONGEST}\n".encode()
    await world.apply({f"policies/projects/{LONGEST}/rego.rego": rego})
    assert (await world.live())[f"projects/{LONGEST}/rego.rego"] == rego


# --- folders ---------------------------------------------------------------------------------------------------------

THINGS: dict[str, tuple[File, str]] = {
    "file": (b"text", "is a file where"),
    "executable": (executable(b"text"), "is a file where"),
    "link": (link("b"), "is a symbolic link where"),
    "submodule": (submodule(), "is a submodule where"),
}


@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("where", ["projects/a", "platform", "projects", ""])
async def test_something_else_where_a_folder_should_be_deletes_nothing(world: World, where: str, thing: str) -> None:
    entry, said = THINGS[thing]
    before = await world.live()
    path = f"policies/{where}".rstrip("/")
    result = await world.apply({path: entry})
    held = await world.held()
    name = where or "policies"
    ((place, message),) = places(held[name])
    assert place == name
    assert message.startswith(said)
    assert message.endswith("put the folder in its place")
    assert held[name].reason == "InvalidLayout"
    assert await world.live() == before
    assert await world.applied() == world.remote.head
    assert result.ruling.reason == ("SourceEmpty" if where == "" else "")
    await world.apply({path: None})
    await world.apply(SOUND)
    assert await world.held() == {}


async def test_extra_files_are_ignored_and_told_and_tests_are_not_published(world: World) -> None:
    result = await world.apply(
        {
            "policies/projects/a/rego_test.rego": b"package projects.a_test\n",
            "policies/projects/a/README.md": b"x",
            "policies/projects/a/.keep": b"",
            "policies/projects/a/notes.txt": b"x",
            "policies/projects/a/sub/rego.rego": b"x",
            "policies/other/rego.rego": b"x",
            "policies/projects/Makefile": b"x",
        }
    )
    assert result.tree.ignored == ("other/", "projects/Makefile", "projects/a/notes.txt", "projects/a/sub/")
    assert await world.held() == {}


# --- whole repositories ----------------------------------------------------------------------------------------------


async def test_a_repository_without_a_commit_says_so(empty: World) -> None:
    with pytest.raises(StalledError) as stalled:
        await empty.reconciler.run(empty.fence)
    assert stalled.value.reason == "NoCommit"
    assert "Push to branch 'main'" in stalled.value.remedy


async def test_a_branch_that_is_not_there_names_those_that_are(empty: World) -> None:
    empty.remote.commit(SOUND, branch="trunk")
    with pytest.raises(StalledError) as stalled:
        await empty.reconciler.run(empty.fence)
    assert stalled.value.reason == "BranchNotFound"
    assert "its branches are: trunk" in stalled.value.message


@pytest.mark.parametrize("files", [{"README.md": b"x"}, {"policies/README.md": b"x"}, {"policies/projects/.keep": b""}])
async def test_a_repository_of_no_policies_is_applied(empty: World, files: dict[str, File]) -> None:
    result = await empty.apply(files)
    assert await empty.live() == {}
    assert await empty.applied() == empty.remote.head
    assert not result.ruling.blocked


@pytest.mark.parametrize("files", [{"policies": None}, {"policies/platform": None, "policies/projects": None}])
async def test_an_emptied_repository_deletes_nothing(world: World, files: dict[str, File]) -> None:
    before = await world.live()
    result = await world.apply({**files, "policies/README.md" if "policies" not in files else "README.md": b"x"})
    assert result.ruling.reason == "SourceEmpty"
    assert await world.live() == before
    assert {held.reason for held in (await world.held()).values()} == {"PruneBlocked"}
    assert all("regops sync --confirm" in held.errors[0].message for held in (await world.held()).values())


async def test_two_thousand_policies_go_live_beside_one_bad_one(empty: World) -> None:
    files: dict[str, File] = {
        f"policies/projects/p{n}/rego.rego": b"package projects.p%d\n\nn := %d\n" % (n, n) for n in range(2000)
    }
    files["policies/projects/p7/rego.rego"] = b"package projects.p7\n\nx := }\n"
    async with Lag() as lag:
        await asyncio.to_thread(empty.remote.commit, files)
        await empty.reconciler.run(empty.fence)
    assert lag.longest < MOST_LAG
    live = await empty.live()
    assert len(live) == 1999
    assert live["projects/p1999/rego.rego"] == b"package projects.p1999\n\nn := 1999\n"
    assert (await empty.held()).keys() == {"projects/p7"}
    empty.reconciler.invalidate()
    assert not (await empty.reconciler.run(empty.fence)).wrote


# --- bytes -----------------------------------------------------------------------------------------------------------


async def test_line_ends_and_all_other_bytes_go_through_unchanged(world: World) -> None:
    rego = "package projects.a\r\n\r\n# ä 日本 \t\r\nx := `a\r\nb`\r\n".encode()
    data = b'{\r\n  "k" : "\xc3\xa4",\r\n "n": 1.0e2 }\r\n\r\n'
    await world.apply({"policies/projects/a/rego.rego": rego, "policies/projects/a/data.json": data})
    live = await world.live()
    assert live["projects/a/rego.rego"] == rego
    assert live["projects/a/data.json"] == data
    assert await world.held() == {}


async def test_an_executable_file_is_a_plain_file(world: World) -> None:
    await world.apply({"policies/projects/a/rego.rego": executable(GOOD + b"# x\n")})
    assert (await world.live())["projects/a/rego.rego"] == GOOD + b"# x\n"


async def test_attributes_of_the_repository_change_no_bytes(world: World) -> None:
    await world.apply(
        {".gitattributes": b"* text eol=crlf\n*.rego filter=lfs\n", "policies/.gitattributes": b"* -text\n"}
    )
    await world.apply({"policies/projects/a/rego.rego": GOOD + b"\n"})
    assert (await world.live())["projects/a/rego.rego"] == GOOD + b"\n"


BIG = {
    "Rego": {"rego.rego": GOOD + b"".join(b'r%d if input.a[%d] == "x"\n' % (n, n) for n in range(15_000))},
    "JSON": {"data.json": json.dumps({f"k{n}": [n, {"a": "x" * 10}] for n in range(25_000)}).encode()},
    "bad JSON": {
        "data.json": json.dumps({f"k{n}": [n, {"a": "x"}] for n in range(30_000)}).encode()[:-1] + b', "k1": 0}'
    },
}


@pytest.mark.parametrize("name", BIG)
async def test_a_policy_at_the_limits_of_size_lets_the_event_loop_turn(world: World, name: str) -> None:
    files = {f"policies/projects/a/{file}": content for file, content in BIG[name].items()}
    assert all(len(content) > 450_000 for content in BIG[name].values())
    await asyncio.to_thread(world.remote.commit, files)
    async with Lag() as lag:
        await world.reconciler.run(world.fence)
    assert lag.longest < MOST_LAG
