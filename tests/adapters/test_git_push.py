"""Commits and pushes on a real git: what the remote has afterwards, and what is said about it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pygit2
import pytest
from aiohttp import web
from fixtures.git import SEED, File, Remote, executable
from fixtures.githttp import GitHost, Mood, git_host
from pygit2.enums import ObjectType

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.access import Access
from reconciler.adapters.git.transport import HEAD_REF
from reconciler.core.errors import StalledError, TransientError
from reconciler.core.model import Content, project_policy
from reconciler.core.ports import Edit, Identity, PushResult

ANN = Identity("Änn Exämple", "ann@example.org")
ALPHA, GAMMA = project_policy("alpha"), project_policy("gamma")
Clone = Callable[..., GitSource]


async def commit(source: GitSource, parent: str, change: Edit) -> str:
    """One commit."""
    (made,) = await source.commit(parent, [change])
    return made


def edit(word: str = "x", **changed: object) -> Edit:
    fields = {
        "policy": GAMMA,
        "content": Content(f"package projects.gamma\n\nmark := {word!r}\n".encode()),
        "author": ANN,
        "subject": "Update projects/gamma",
        "trailers": (("Request-ID", "r1"),),
    }
    return Edit(**(fields | changed))  # type: ignore[arg-type]


def git(remote: Remote, *words: str) -> str:
    done = subprocess.run(["git", f"--git-dir={remote.path}", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
async def clone(remote: Remote, tmp_path: Path) -> AsyncIterator[Clone]:
    opened: list[GitSource] = []

    def make(url: str = "", **more: object) -> GitSource:
        access = more.pop("access", Access(protocols=("file", "http")))
        mirror = tmp_path / f"mirror-{len(opened)}.git"
        opened.append(GitSource(remote=url or remote.url, mirror=mirror, access=access, **more))  # type: ignore[arg-type]
        return opened[-1]

    remote.commit(SEED) if not _has_head(remote) else None
    yield make
    for source in opened:
        await source.aclose()


def _has_head(remote: Remote) -> bool:
    return (remote.path / "refs/heads/main").exists()


async def test_commits_that_are_made_together_stand_one_on_the_other(source: GitSource) -> None:
    base = await source.fetch()
    first, second = await source.commit(base, [edit("one"), edit("two")])
    assert [await source.parent(second), await source.parent(first)] == [first, base]
    assert await source.commit(base, []) == ()


async def test_a_pushed_commit_is_the_head_everywhere(clone: Clone, remote: Remote) -> None:
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit())
    assert (await source.push(base, tip)).result is PushResult.ACCEPTED
    assert remote.head == tip == await source.head() == await source.fetch()
    assert git(remote, "show", f"{tip}:policies/projects/gamma/rego.rego").endswith("mark := 'x'\n")
    assert git(remote, "show", "-s", "--format=%an <%ae>|%cn <%ce>", tip) == (
        "Änn Exämple <ann@example.org>|regops <regops@localhost>\n"
    )
    git(remote, "fsck", "--strict")


async def test_a_poll_behind_a_push_finds_the_pushed_commit(clone: Clone, remote: Remote) -> None:
    """The reference in the mirror is that of the last fetch: a poll that only asked the remote, and saw that the branch
    was where this replica had pushed it, must not answer with that."""
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit())
    await source.push(base, tip)
    assert await source.fetch(told=False) == tip
    assert await source.fetch(told=False) == tip
    assert pygit2.Repository(str(source._folder.path)).references[HEAD_REF].target == pygit2.Oid(hex=remote.head)


async def test_a_message_is_what_git_reads_and_nothing_in_it_begins_another_line(clone: Clone, remote: Remote) -> None:
    source = clone()
    base = await source.fetch()
    trailers = (("Request-ID", "a\nIdempotency-Key: forged"), ("Actor", "Bob\x00 <b>"))
    tip = await commit(source, base, edit(subject="One\n\nSigned-off-by: x", trailers=trailers))
    await source.push(base, tip)
    assert git(remote, "show", "-s", "--format=%s", tip) == "One Signed-off-by: x\n"
    read = git(remote, "show", "-s", "--format=%(trailers:unfold)", tip).strip().splitlines()
    assert read == ["Request-ID: a Idempotency-Key: forged", "Actor: Bob b"]


@pytest.mark.parametrize("name", ["", "<>", "\n", "a <b> c", "ü" * 500])
async def test_any_author_makes_a_sound_commit(clone: Clone, remote: Remote, name: str) -> None:
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit(author=Identity(name, name)))
    assert (await source.push(base, tip)).result is PushResult.ACCEPTED
    git(remote, "fsck", "--strict")


async def test_replacing_keeps_what_is_not_published_and_the_modes(clone: Clone, remote: Remote) -> None:
    files: dict[str, File] = {
        "policies/projects/gamma/rego.rego": executable(b"old"),
        "policies/projects/gamma/data.json": b"{}",
        "policies/projects/gamma/rego_test.rego": b"test",
    }
    remote.commit(files)
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit())
    await source.push(base, tip)
    listed = git(remote, "ls-tree", "--format=%(objectmode) %(path)", f"{tip}:policies/projects/gamma")
    assert listed.splitlines() == ["100755 rego.rego", "100644 rego_test.rego"]
    gone = await commit(source, tip, edit(content=None))
    await source.push(tip, gone)
    assert "gamma" not in git(remote, "ls-tree", "--name-only", f"{gone}:policies/projects")


async def test_a_policy_that_would_not_change_makes_no_commit(clone: Clone) -> None:
    source = clone()
    base = await source.fetch()
    same = edit(
        policy=ALPHA,
        content=Content(SEED["policies/projects/alpha/rego.rego"], SEED["policies/projects/alpha/data.json"]),
    )
    with pytest.raises(StalledError) as caught:
        await commit(source, base, same)
    assert caught.value.reason == "NothingToCommit"


async def test_of_two_who_push_from_the_same_head_one_is_accepted(clone: Clone, remote: Remote) -> None:
    first, second = clone(), clone()
    base = await first.fetch()
    assert await second.fetch() == base
    tips = [await commit(source, base, edit(name)) for source, name in ((first, "a"), (second, "b"))]
    pushes = await asyncio.gather(first.push(base, tips[0]), second.push(base, tips[1]))
    assert sorted(push.result for push in pushes) == [PushResult.ACCEPTED, PushResult.MOVED]
    assert remote.head in tips


async def test_a_branch_that_was_put_back_does_not_get_the_dropped_commits_again(clone: Clone, remote: Remote) -> None:
    """A plain fast-forward would be accepted here: the tip descends from where the branch is now."""
    source = clone()
    kept = remote.head
    remote.commit({"policies/projects/dropped/rego.rego": b"package projects.dropped\n"})
    base = await source.fetch()
    remote.force_push(kept)
    push = await source.push(base, await commit(source, base, edit()))
    assert push.result is PushResult.MOVED
    assert remote.head == kept


async def test_pushing_the_same_again_is_accepted_and_changes_nothing(clone: Clone, remote: Remote) -> None:
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit())
    assert [(await source.push(base, tip)).result for _ in range(2)] == [PushResult.ACCEPTED] * 2
    assert remote.head == tip


async def test_a_hook_that_declines_is_quoted(clone: Clone, remote: Remote) -> None:
    hook = remote.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'Policies freeze until Monday' >&2\necho 'Ask ops' >&2\nexit 1\n")
    hook.chmod(0o755)
    source = clone()
    base = await source.fetch()
    push = await source.push(base, await commit(source, base, edit()))
    assert (push.result, push.message) == (PushResult.DECLINED, "Policies freeze until Monday\nAsk ops")
    assert remote.head == base == await source.head()


async def test_a_remote_that_is_gone_was_surely_not_sent_anything(clone: Clone, remote: Remote) -> None:
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit())
    remote.path.rename(remote.path.with_name("elsewhere"))
    with pytest.raises(StalledError) as caught:
        await source.push(base, tip)
    assert caught.value.reason == "RepositoryNotFound"


async def test_a_push_that_hangs_is_ended_and_unknown(clone: Clone, remote: Remote) -> None:
    async with git_host(remote) as host:
        source = clone(host.url, push_timeout=1.0)
        base = await source.fetch()
        tip = await commit(source, base, edit())
        await host.become(Mood.HOLD)
        began = time.monotonic()
        assert (await source.push(base, tip)).result is PushResult.UNKNOWN
        assert time.monotonic() - began < 5
        await host.become(Mood.SERVE)
        # The held one arrives at last, perhaps while the other is under way: that one finds the branch moved, by us.
        again = await source.push(base, tip)
        assert again.result in {PushResult.ACCEPTED, PushResult.MOVED}
        assert (await source.push(base, tip)).result is PushResult.ACCEPTED
        assert remote.head == tip


@pytest.mark.parametrize(("mood", "arrived"), [(Mood.LOSE, True), (Mood.DROP, False), (Mood.REFUSE, False)])
async def test_an_answer_that_is_lost_is_unknown(clone: Clone, remote: Remote, mood: Mood, arrived: bool) -> None:
    async with git_host(remote) as host:
        source = clone(host.url)
        base = await source.fetch()
        tip = await commit(source, base, edit())
        await host.become(mood)
        assert (await source.push(base, tip)).result is PushResult.UNKNOWN
        assert (remote.head == tip) is arrived
        await host.become(Mood.SERVE)
        assert (await source.push(base, tip)).result is PushResult.ACCEPTED
        assert remote.head == tip


async def test_a_host_that_is_not_there_is_transient(clone: Clone, remote: Remote) -> None:
    async with git_host(remote) as host:
        source = clone(host.url)
        base = await source.fetch()
        tip = await commit(source, base, edit())
        await host.stop()
        with pytest.raises(TransientError) as caught:
            await source.push(base, tip)
        assert caught.value.reason == "PushFailed"


class Guarded(GitHost):
    """Asks for a user and a password."""

    wanted = "x-access-token:s3cret"

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(given).decode() != self.wanted:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        return await super()._serve(request)


@contextlib.asynccontextmanager
async def guarded(remote: Remote) -> AsyncIterator[Guarded]:
    host = Guarded(remote)
    await host.start()
    try:
        yield host
    finally:
        await host.stop()


async def test_a_token_of_a_file_opens_the_remote_and_a_new_one_counts_at_once(
    clone: Clone, remote: Remote, tmp_path: Path
) -> None:
    token = tmp_path / "it's a file"
    token.write_text("old\n")
    async with guarded(remote) as host:
        source = clone(host.url, access=Access(protocols=("http",), token_file=token))
        with pytest.raises(StalledError) as caught:
            await source.fetch()
        assert caught.value.reason == "AuthenticationFailed"
        token.write_text("s3cret\n")
        base = await source.fetch()
        tip = await commit(source, base, edit())
        assert (await source.push(base, tip)).result is PushResult.ACCEPTED


async def test_a_token_goes_to_the_remotes_own_host_and_stands_in_no_argument(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    access = Access(token_file=token)
    words = " ".join(access.options("https://git.example.com:8443/p.git"))
    assert "credential.https://git.example.com:8443.helper=" in words
    assert "s3cret" not in words + str(access.environment())
    assert "credential.https" not in " ".join(access.options("ssh://git@git.example.com/p.git"))


async def test_a_credential_helper_of_the_operator_is_asked(clone: Clone, remote: Remote, tmp_path: Path) -> None:
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho username=x-access-token\necho password=s3cret\n")
    helper.chmod(0o755)
    async with guarded(remote) as host:
        access = Access(protocols=("http",), credential_helper=str(helper))
        assert await clone(host.url, access=access).fetch() == remote.head


async def test_only_commits_of_regops_carry_trailers_that_count(clone: Clone, remote: Remote) -> None:
    source = clone()
    head = await source.fetch()
    commits = []
    for word in "abc":
        tip = await commit(source, head, edit(word, trailers=(("Idempotency-Key", word), ("Actor", "ann"))))
        await source.push(head, tip)
        commits.append(tip)
        head = tip
        assert await source.trailers(head, "Idempotency-Key", since=0) == dict(zip("abc", commits, strict=False))
    remote.commit({"README.md": b"x"}, message="x\n\nIdempotency-Key: forged\n")
    head = await source.fetch()
    assert (await source.trailers(head, "Idempotency-Key", since=0)).keys() == set("abc")
    assert await source.trailers(head, "Idempotency-Key", since=time.time() + 60) == {}
    remote.force_push(commits[0])
    head = await source.fetch()
    assert await source.trailers(head, "Idempotency-Key", since=0) == {"a": commits[0]}


async def with_key(source: GitSource, word: str) -> tuple[str, dict[str, str]]:
    """Push a commit with a key; its id, and what is to be found from then on."""
    base = await source.fetch()
    tip = await commit(source, base, edit(word, trailers=(("Idempotency-Key", word),)))
    assert (await source.push(base, tip)).result is PushResult.ACCEPTED
    return tip, {word: tip}


@pytest.mark.parametrize("warm", [True, False])
async def test_a_key_is_found_when_somebody_merged_the_branch_into_their_work(
    clone: Clone, remote: Remote, warm: bool
) -> None:
    """`git pull && git push` makes the branch the second parent; a repeated request was then taken for a new one."""
    source, base, since = clone(), remote.head, time.time() - 3600
    tip, known = await with_key(source, "a")
    assert not warm or await source.trailers(tip, "Idempotency-Key", since=since) == known
    mine = remote.commit({"README.md": b"mine"}, on=base)
    merge = remote.commit({"policies/projects/gamma/rego.rego": b"x"}, on=mine, merge=tip)
    assert await source.fetch() == merge
    assert await source.trailers(merge, "Idempotency-Key", since=since) == known
    _, second = await with_key(source, "b")
    assert await source.trailers(await source.fetch(), "Idempotency-Key", since=since) == known | second
    remote.force_push(mine)
    assert await source.trailers(await source.fetch(), "Idempotency-Key", since=since) == {}


async def test_a_key_is_found_below_a_commit_that_bears_an_old_date(clone: Clone, remote: Remote) -> None:
    """Clocks differ, and `git am --committer-date-is-author-date` keeps dates: the search ended at such a commit."""
    tip, known = await with_key(clone(), "a")
    assert remote.commit({"README.md": b"from 2023"}, on=tip)
    source = clone()
    assert await source.trailers(await source.fetch(), "Idempotency-Key", since=time.time() - 3600) == known


@pytest.mark.parametrize("encoding", [b"latin-1", b"utf-8", b"no-such-encoding"])
async def test_a_key_is_found_below_a_commit_whose_encoding_is_wrong(
    clone: Clone, remote: Remote, encoding: bytes
) -> None:
    """Anybody's commit may name an encoding that it does not keep, or that does not exist: for a day every request with
    a key, and all that waited with it, got 500."""
    tip, known = await with_key(clone(), "a")
    repository = pygit2.Repository(str(remote.path))
    raw = repository.odb.read(pygit2.Oid(hex=tip))[1]
    tree, when = raw[:45], str(int(time.time())).encode()
    who = b"J\xf6rg <j@example.org> %b +0000" % when
    body = b"%b\nparent %b\nauthor %b\ncommitter %b\nencoding %b\n\nm\xf6g\n" % (tree, tip.encode(), who, who, encoding)
    remote.force_push(str(repository.odb.write(ObjectType.COMMIT, body)))
    source = clone()
    assert await source.trailers(await source.fetch(), "Idempotency-Key", since=time.time() - 3600) == known


async def test_a_key_is_found_when_git_takes_away_something_of_the_committers_name(clone: Clone) -> None:
    """Git cuts off a full stop at a name's end; the commits of such a committer were nobody's."""
    source = clone(committer=Identity("Policies, Inc.", "<bot@example.org>"))
    tip, known = await with_key(source, "a")
    assert await source.trailers(tip, "Idempotency-Key", since=0) == known


async def test_a_fetch_that_a_push_overtakes_does_not_set_the_head_back(clone: Clone) -> None:
    """The loop fetches all the time; a head that went back would look like a rewritten history."""
    source = clone()
    head = await source.fetch()
    stop = asyncio.Event()
    seen: list[str] = []

    async def fetching() -> None:
        while not stop.is_set():
            seen.append(await source.fetch())

    task = asyncio.ensure_future(fetching())
    line = [head]
    for number in range(15):
        tip = await commit(source, head, edit(str(number)))
        assert (await source.push(head, tip)).result is PushResult.ACCEPTED
        assert await source.head() == tip
        line.append(tip)
        head = tip
    stop.set()
    await task
    places = [line.index(commit) for commit in seen]
    assert places == sorted(places)


async def test_a_commit_costs_milliseconds_in_a_large_repository(clone: Clone, remote: Remote) -> None:
    """Not timed against a wall: a thousand neighbours cost no more objects than none."""
    remote.commit({f"policies/projects/p{n}/rego.rego": b"package x\n" for n in range(1000)})
    source = clone()
    base = await source.fetch()
    tip = await commit(source, base, edit())
    await source.push(base, tip)
    made = git(remote, "rev-list", "--objects", f"{base}..{tip}").splitlines()
    assert len(made) == 1 + 4 + 1  # the commit, four folders on the way, one file


def open_files() -> list[str]:
    """What this process has open, as the kernel names it."""
    return [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]


async def test_a_mirror_that_follows_many_commits_keeps_no_replaced_pack_open(clone: Clone, remote: Remote) -> None:
    """libgit2 keeps packs open that git has replaced since: one file more for every commit, until none was left."""
    source = clone()
    for number in range(80):
        remote.commit({"policies/projects/many/rego.rego": f"package projects.many\n\nmark := {number}\n".encode()})
        await source.tree(await source.fetch())
    replaced = [name for name in open_files() if "mirror" in name and "(deleted)" in name]
    assert replaced == []
