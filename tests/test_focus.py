"""A pass that looks only at what changed gives what a pass that looks at everything gives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import pytest
from fakes.source import InMemorySource
from fakes.store import InMemoryStore
from fixtures.git import Remote
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from reconciler.adapters.git import GitSource
from reconciler.core.guards import Limits
from reconciler.core.keyspace import Keyspace
from reconciler.core.live import LiveState, decode_live, live_ranges
from reconciler.core.model import PLATFORM, BlobIds, FileError, PolicyName, Tree, Verdict, git_blob_id, project_policy
from reconciler.core.ports import Candidate, Fence, Range, Source
from reconciler.core.records import Applied, Confirmed, Requested, Suspended
from reconciler.reconcile import PassResult, Reconciler
from reconciler.resolution import Resolution
from reconciler.validation import Judge

KEYS = Keyspace()
A, B = project_policy("a"), project_policy("b")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Reader:
    """A compiler that reads single words: ``bad`` never compiles, ``needs:x`` only with a platform that ``has:x``;
    the judge looks for ``platform`` to tell whom the platform concerns."""

    async def check(self) -> None:
        pass

    async def version(self) -> str:
        return "1.0.0"

    async def validate(
        self, candidates: Sequence[Candidate], platform: Candidate | None
    ) -> Mapping[PolicyName, Verdict]:
        offered = platform.content.rego.split() if platform else []
        return {each.policy: self._verdict(each, offered) for each in candidates}

    async def together(self, candidates: Sequence[Candidate]) -> Mapping[PolicyName, Verdict]:
        raise NotImplementedError

    def _verdict(self, candidate: Candidate, offered: list[bytes]) -> Verdict:
        words = candidate.content.rego.split()
        missing = [
            word for word in words if word.startswith(b"needs:") and word.replace(b"needs", b"has") not in offered
        ]
        faults = [word for word in words if word == b"bad"] + missing
        file = f"{candidate.policy}/rego.rego"
        warnings = tuple(FileError(file, "odd") for word in words if word == b"odd")
        return Verdict(tuple(FileError(file, f"{word!r} does not compile") for word in faults), warnings)


class Noting(Judge):
    """Notes what it was asked to look at."""

    def __init__(self, source: Source, on_platform_break: Literal["hold-platform", "withdraw-projects"]) -> None:
        super().__init__(source, Reader(), on_platform_break=on_platform_break)
        self.focus: frozenset[PolicyName] | None = None

    async def resolve(
        self,
        tree: Tree,
        live: LiveState,
        gone: Collection[PolicyName] = (),
        focus: frozenset[PolicyName] | None = None,
    ) -> Resolution:
        self.focus = focus
        return await super().resolve(tree, live, gone, focus)


@dataclass
class Side:
    """An etcd and who leads on it."""

    store: InMemoryStore
    judge: Noting
    reconciler: Reconciler
    fence: Fence

    @classmethod
    def of(cls, source: Source, withdraw: bool) -> Side:
        store = InMemoryStore()
        fence = Fence(KEYS.leader, store.put(KEYS.leader, b"me"))
        judge = Noting(source, "withdraw-projects" if withdraw else "hold-platform")
        reconciler = Reconciler(source, store, judge, keyspace=KEYS, limits=Limits(floor=1), clock=lambda: NOON)
        return cls(store, judge, reconciler, fence)

    async def run(self) -> PassResult:
        return await self.reconciler.run(self.fence)

    async def live(self) -> LiveState:
        return decode_live(KEYS, await self.store.read(*live_ranges(KEYS)))

    async def contents(self) -> dict[str, tuple[bytes, int]]:
        """Every key with its value and mod_revision; the random ids of applies are taken out."""
        kvs = (await self.store.read(Range("/", prefix=True))).ranges[0]
        return {kv.key: (_plain(kv.value) if kv.key == KEYS.applied else kv.value, kv.mod_revision) for kv in kvs}


def _plain(applied: bytes) -> bytes:
    return replace(Applied.decode(applied), id="", previous=None).encode()


class Origin(Protocol):
    def commit(self, files: Mapping[str, bytes | None], *, on: str | None = None) -> str: ...

    def force_push(self, commit: str) -> None: ...


@dataclass
class Twins:
    """The same branch and the same hands, followed by a focused leader and by one that looks at everything."""

    origin: Origin
    focused: Side
    whole: Side
    commits: list[str] = field(default_factory=list)
    last: PassResult | None = None
    passes: int = 0
    narrow: int = 0

    @classmethod
    def of(cls, origin: Origin, source: Source, *, withdraw: bool = False) -> Twins:
        return cls(origin, Side.of(source, withdraw), Side.of(source, withdraw))

    def commit(self, files: Mapping[str, bytes | None]) -> None:
        self.commits.append(self.origin.commit({f"policies/{path}": text for path, text in files.items()}))

    def rewrite(self, number: int) -> None:
        self.origin.force_push(self.commits[number % len(self.commits)])

    def hand(self, key: str, value: bytes | None) -> None:
        """Somebody writes to etcd, and the drift watch sees it."""
        for side in (self.focused, self.whole):
            side.store.delete(key) if value is None else side.store.put(key, value)
        self.focused.reconciler.invalidate()

    def confirm(self) -> None:
        if self.last is not None:
            deletions = tuple(self.last.ruling.blocked)
            self.hand(KEYS.confirmed, Confirmed(self.last.commit, deletions, "ann", "now").encode())

    async def run(self) -> None:
        """A pass on either side, and everything that must be the same."""
        self.whole.reconciler.invalidate()
        self.focused.judge.focus = None
        found, wanted = await self.focused.run(), await self.whole.run()
        self.passes += 1
        self.narrow += self.focused.judge.focus is not None
        if not found.looked_only:
            assert _told(found) == _told(wanted)
            for name, target in wanted.resolution.targets.items():
                if self.focused.judge.focus is None or name in {PLATFORM, *self.focused.judge.focus}:
                    assert found.resolution.targets[name] == target
                else:
                    assert name not in found.resolution.targets
                    assert wanted.live.policies[name].blobs == target.blobs
        else:
            assert not wanted.wrote
        assert await self.focused.contents() == await self.whole.contents()
        self.last = wanted
        live = await self.focused.live()
        if self.focused.reconciler._live and self.focused.reconciler._live[0] == self.focused.reconciler._epoch:
            known = self.focused.reconciler._live[1]
            assert replace(known, revision=0) == replace(live, revision=0)
            assert known.count == len(live.written())


def _told(result: PassResult) -> tuple[object, ...]:
    """Everything that a pass says, but for what differs by design."""
    return (
        (result.commit, result.height, result.before, result.wrote, result.rewritten, result.suspended, result.handled),
        (result.plan, result.ruling, dict(result.held), dict(result.held_before), result.foreign),
        (result.resolution.withdrawn, sorted(map(str, result.resolution.warnings)), dict(result.resolution.held)),
        replace(result.tree, since=None, changed=None),
    )


NAMES = ["a", "b", "c", "d"]
TEXTS = [b"", b"odd", b"bad", b"platform needs:x", b"platform needs:y odd", b"has:x", b"has:x has:y", b"has:y bad"]
PLACES = [f"projects/{name}/{file}" for name in NAMES for file in ("rego.rego", "data.json")]
FILES = st.dictionaries(
    st.sampled_from([*PLACES, *PLACES, "platform/rego.rego", "projects/X/rego.rego", "notes.txt"]),
    st.none() | st.sampled_from([b"%b # %d" % (text, number) for text in TEXTS for number in range(2)]),
    min_size=1,
    max_size=3,
)
FOLDERS = st.sampled_from([f"projects/{name}" for name in NAMES] + ["platform", "projects"]).map(lambda f: {f: None})
KEYS_BY_HAND = st.sampled_from(
    [
        KEYS.rego(A),
        KEYS.data(A),
        KEYS.meta(A),
        KEYS.rego(B),
        KEYS.held(A),
        KEYS.rego(PLATFORM),
        f"{KEYS.policies}junk",
        KEYS.rego(project_policy("z")),
    ]
)
STEPS = st.one_of(
    st.tuples(st.just("commit"), FILES),
    st.tuples(st.just("commit"), FILES),
    st.tuples(st.just("commit"), FILES),
    st.tuples(st.just("commit"), FOLDERS),
    st.tuples(st.just("hand"), st.tuples(KEYS_BY_HAND, st.none() | st.just(b"by hand"))),
    st.tuples(st.just("rewrite"), st.integers(0, 20)),
    st.tuples(st.sampled_from(["confirm", "suspend", "resume", "sweep", "pass", "pass", "pass", "pass"]), st.none()),
)
SEED: Mapping[str, bytes | None] = {f"projects/{name}/rego.rego": b"" for name in NAMES} | {
    "platform/rego.rego": b"has:x"
}


async def follow(twins: Twins, steps: Sequence[tuple[str, object]]) -> None:
    actions: dict[str, Callable[[], None]] = {
        "confirm": twins.confirm,
        "suspend": lambda: twins.hand(KEYS.suspended, Suspended("ann", "", "now").encode()),
        "resume": lambda: twins.hand(KEYS.suspended, None),
        "sweep": lambda: twins.hand(KEYS.requested, Requested("t", "ann", remove_foreign=True).encode()),
    }
    twins.commit(SEED)
    await twins.run()
    for kind, what in steps:
        match kind, what:
            case "commit", dict():
                twins.commit(what)
            case "hand", (str() as key, bytes() | None as value):
                twins.hand(key, value)
            case "rewrite", int():
                twins.rewrite(what)
            case "pass", _:
                await twins.run()
            case _:
                actions[kind]()
    await twins.run()
    await twins.run()


@given(steps=st.lists(STEPS, max_size=14), withdraw=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_a_focused_pass_gives_what_a_whole_one_gives(
    steps: list[tuple[str, object]], withdraw: bool
) -> None:
    source = InMemorySource()
    twins = Twins.of(source, source, withdraw=withdraw)
    asyncio.run(follow(twins, steps))
    event(f"{10 * twins.narrow // twins.passes * 10} % of the passes were focused")


async def test_what_was_withdrawn_is_looked_at_again_for_a_version_that_works() -> None:
    """A project whose folder had lost its Rego stood at its last version. A platform drove that out, which changed no
    ``held/`` record, so that the pass took itself for settled; the older version that works went live with the next
    commit only, or ten minutes later."""
    source = InMemorySource()
    twins = Twins.of(source, source, withdraw=True)
    c = project_policy("c")
    for files in (SEED, {f"{c}/rego.rego": b"platform needs:x"}, {f"{c}/rego.rego": None, f"{c}/data.json": b"{}"}):
        twins.commit(files)
        await twins.run()
    twins.commit({"platform/rego.rego": b"has:y"})
    await twins.run()
    assert c not in (await twins.focused.live()).policies
    await twins.run()
    assert (await twins.focused.live()).policies[c].blobs == BlobIds(git_blob_id(b""))


@pytest.mark.parametrize("seed", range(4))
async def test_the_same_on_a_real_branch(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    remote = Remote(tmp_path / "remote.git")
    source = GitSource(remote=remote.url, mirror=tmp_path / "mirror.git")
    paths = [*PLACES, "platform/rego.rego", "projects/X/rego.rego", "projects/a", "projects/b"]
    steps: list[tuple[str, object]] = []
    for number in range(12):
        some = chance.sample(paths, chance.randint(1, 3))
        texts = [None if path.count("/") < 2 and "rego" not in path else chance.choice([*TEXTS, None]) for path in some]
        steps.append(("commit", {p: t and b"%b # %d" % (t, number) for p, t in zip(some, texts, strict=True)}))
        steps += [("hand", (KEYS.rego(A), b"by hand"))] if chance.random() < 0.15 else []
        steps += [("rewrite", number // 2)] if chance.random() < 0.15 else []
        steps.append(("pass", None))
    try:
        twins = Twins.of(remote, source)
        await follow(twins, steps)
        assert twins.narrow > 2
    finally:
        await source.aclose()


@pytest.fixture
async def twins() -> Twins:
    source = InMemorySource()
    made = Twins.of(source, source)
    made.commit(SEED)
    await made.run()
    return made


async def test_one_change_is_all_that_the_next_pass_looks_at(twins: Twins) -> None:
    twins.commit({"projects/a/rego.rego": b"odd"})
    await twins.run()
    assert twins.focused.judge.focus == frozenset({A})


async def test_what_was_held_or_blocked_is_looked_at_until_it_no_longer_is(twins: Twins) -> None:
    twins.commit({"projects/a/rego.rego": b"bad", "projects/c": None, "projects/d": None})
    await twins.run()
    assert twins.last is not None
    assert (list(twins.last.held), len(twins.last.ruling.blocked)) == (["projects/a", "projects/c", "projects/d"], 2)
    for text in (b"1", b"2"):
        twins.commit({"projects/b/rego.rego": text})
        await twins.run()
        assert twins.focused.judge.focus == frozenset({A, B, project_policy("c"), project_policy("d")})
    twins.commit({"projects/a/rego.rego": b"odd", "projects/c/rego.rego": b"", "projects/d/rego.rego": b""})
    await twins.run()
    twins.commit({"projects/b/rego.rego": b"3"})
    await twins.run()
    assert twins.focused.judge.focus == frozenset({B})


async def test_a_hand_edit_a_suspension_or_a_platform_in_motion_makes_a_pass_look_at_everything(twins: Twins) -> None:
    twins.hand(KEYS.rego(B), b"by hand")
    twins.commit({"projects/a/rego.rego": b"1"})
    await twins.run()
    assert twins.focused.judge.focus is None
    twins.hand(KEYS.suspended, Suspended("ann", "", "now").encode())
    twins.commit({"projects/a/rego.rego": b"2"})
    await twins.run()
    assert twins.focused.judge.focus is None
    twins.hand(KEYS.suspended, None)
    await twins.run()
    twins.commit({"projects/b/rego.rego": b"platform needs:x"})
    await twins.run()
    assert twins.focused.judge.focus == frozenset({B})
    for files in ({"platform/rego.rego": b""}, {"projects/a/rego.rego": b"3"}):  # it would break b, and is held
        twins.commit(files)
        await twins.run()
        assert twins.focused.judge.focus is None
