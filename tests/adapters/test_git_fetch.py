"""What a fetch says about remotes of all kinds, and that nothing of the user's Git takes part."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fixtures.git import SEED, Remote

from reconciler.adapters.git import Access, GitSource
from reconciler.adapters.git.failures import MirrorDamagedError, failure_of, tail_of
from reconciler.core.errors import RegopsError, StalledError, TransientError


@pytest.fixture
async def follow(tmp_path: Path) -> AsyncIterator[Callable[..., GitSource]]:
    """Sources for any remote, closed at the end; all with one mirror unless told otherwise."""
    opened: list[GitSource] = []

    def make(remote: str, branch: str = "main", **more: object) -> GitSource:
        source = GitSource(**{"remote": remote, "branch": branch, "mirror": tmp_path / "mirror.git", **more})  # type: ignore[arg-type]
        opened.append(source)
        return source

    yield make
    for source in opened:
        await source.aclose()


@asynccontextmanager
async def _http(status: str) -> AsyncIterator[str]:
    """A server that answers every request with one status."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nWWW-Authenticate: Basic realm=x\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/team/policies.git"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], input="", capture_output=True, text=True, check=True).stdout.strip()


def _command(folder: Path, name: str, script: str) -> None:
    """A command of this name in ``folder/bin``."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def _refused(source: GitSource) -> RegopsError:
    with pytest.raises(RegopsError) as refused:
        await source.fetch()
    return refused.value


async def test_plain_paths_relative_paths_and_work_trees_are_remotes(
    remote: Remote, tmp_path: Path, follow: Callable[..., GitSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work tree"
    _git("clone", "-q", str(remote.path), str(work))
    monkeypatch.chdir(tmp_path)
    for place in (str(remote.path), "remote.git", "./remote.git", work.as_uri().replace("%20", " "), str(work)):
        assert await follow(place).fetch() == remote.head


async def test_a_missing_branch_names_those_that_are_there(remote: Remote, follow: Callable[..., GitSource]) -> None:
    for n in range(12):
        remote.force_push(remote.head, f"topic-{n:02}")
    error = await _refused(follow(remote.url, "release"))
    assert isinstance(error, StalledError)
    assert error.reason == "BranchNotFound"
    assert "its branches are: main, topic-00" in error.message
    assert error.message.endswith("topic-08, …")
    assert "git.branch" in error.remedy


@pytest.mark.parametrize("branch", ["", "a b", "-x:y", "a..b", "x:refs/heads/main", "^main"])
async def test_an_impossible_branch_name_reaches_no_command(
    remote: Remote, follow: Callable[..., GitSource], branch: str
) -> None:
    assert (await _refused(follow(remote.url, branch))).reason == "BranchNotFound"


async def test_a_branch_whose_name_looks_like_an_option_is_a_branch(
    remote: Remote, follow: Callable[..., GitSource]
) -> None:
    remote.force_push(remote.head, "-q")
    assert await follow(remote.url, "-q").fetch() == remote.head


async def test_a_remote_that_looks_like_an_option_is_a_remote(follow: Callable[..., GitSource], tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    error = await _refused(follow(f"--upload-pack=touch {touched};x:y"))
    assert error.reason in {"RepositoryNotFound", "FetchFailed"}
    assert not touched.exists()


async def test_a_missing_repository_stalls(follow: Callable[..., GitSource], tmp_path: Path) -> None:
    error = await _refused(follow((tmp_path / "nowhere.git").as_uri()))
    assert isinstance(error, StalledError)
    assert error.reason == "RepositoryNotFound"
    assert "git.remote" in error.remedy


async def test_a_sha_256_repository_is_named_as_such(tmp_path: Path, follow: Callable[..., GitSource]) -> None:
    path = tmp_path / "sha256.git"
    _git("init", "-q", "--bare", "-b", "main", "--object-format=sha256", str(path))
    tree = _git(f"--git-dir={path}", "mktree")
    commit = _git(f"--git-dir={path}", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit-tree", "-m", "x", tree)
    _git(f"--git-dir={path}", "update-ref", "refs/heads/main", commit)
    error = await _refused(follow(path.as_uri()))
    assert isinstance(error, StalledError)
    assert error.reason == "UnsupportedObjectFormat"


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        ("401 Unauthorized", StalledError, "AuthenticationFailed"),
        ("403 Forbidden", StalledError, "AuthenticationFailed"),
        ("404 Not Found", StalledError, "RepositoryNotFound"),
        ("502 Bad Gateway", TransientError, "FetchFailed"),
        ("503 Service Unavailable", TransientError, "FetchFailed"),
    ],
)
async def test_what_a_web_server_answers_decides_whether_trying_again_helps(
    follow: Callable[..., GitSource], status: str, kind: type[RegopsError], reason: str
) -> None:
    async with _http(status) as url:
        error = await _refused(follow(url.replace("//", "//bot:s3cret@"), access=Access(protocols=("http",))))
    assert isinstance(error, kind)
    assert error.reason == reason
    assert "s3cret" not in str(error)


async def test_a_server_that_is_away_is_tried_again(follow: Callable[..., GitSource]) -> None:
    async with _http("200 OK") as url:
        pass
    error = await _refused(follow(url, access=Access(protocols=("http",))))
    assert isinstance(error, TransientError)
    assert error.reason == "FetchFailed"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "git://127.0.0.1/x", "ext::sh -c true", "ftp://127.0.0.1/x"])
async def test_other_protocols_are_refused_before_anything_is_sent(follow: Callable[..., GitSource], url: str) -> None:
    error = await _refused(follow(url))
    assert isinstance(error, StalledError)
    assert "not allowed" in error.message


async def test_the_users_git_takes_no_part(
    remote: Remote, tmp_path: Path, follow: Callable[..., GitSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any of these, taken over by git, would send the fetch elsewhere or break it."""
    config = tmp_path / ".gitconfig"
    config.write_text(f'[url "file:///nowhere/"]\n\tinsteadOf = {remote.url}\n[fetch]\n\tprune = maybe\n')
    for name, value in {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "GIT_CONFIG_GLOBAL": str(config),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "url.file:///nowhere/.insteadOf",
        "GIT_CONFIG_VALUE_0": remote.url,
        "GIT_DIR": "/nowhere",
        "GIT_OBJECT_DIRECTORY": "/nowhere",
        "GIT_NAMESPACE": "nowhere",
        "GIT_SSH_COMMAND": "false",
        "GIT_EXEC_PATH": "/nowhere",
        "GIT_TRACE": "1",
        "LC_ALL": "de_DE.UTF-8",
    }.items():
        monkeypatch.setenv(name, value)
    assert await follow(remote.url).fetch() == remote.head


async def test_an_ssh_remote_is_asked_without_prompts_and_with_the_settings_files(
    remote: Remote, tmp_path: Path, follow: Callable[..., GitSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    _command(tmp_path, "ssh", f'printf "%s\\n" "$@" > {tmp_path}/arguments; shift $(($# - 1)); exec sh -c "$1"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    access = Access(ssh_key=tmp_path / "my key", known_hosts=tmp_path / "hosts")
    assert await follow(f"git@example.invalid:{remote.path}", access=access).fetch() == remote.head
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", f"-oIdentityFile={tmp_path}/my key"} <= set(arguments)
    assert f"-oUserKnownHostsFile={tmp_path}/hosts" in arguments


async def test_a_refused_ssh_key_stalls(
    tmp_path: Path, follow: Callable[..., GitSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    _command(tmp_path, "ssh", 'echo "git@example.invalid: Permission denied (publickey)." >&2; exit 255')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    error = await _refused(follow("ssh://git@example.invalid/policies.git"))
    assert isinstance(error, StalledError)
    assert error.reason == "AuthenticationFailed"


async def test_a_force_pushed_branch_is_followed(remote: Remote, source: GitSource) -> None:
    first = remote.head
    lost = remote.commit({"policies/projects/alpha/rego.rego": b"2"})
    assert await source.fetch() == lost
    remote.force_push(first)
    assert await source.fetch() == first
    assert not await source.contains(first, lost)


async def test_only_the_one_branch_is_fetched(remote: Remote, source: GitSource, tmp_path: Path) -> None:
    other = remote.commit({"secret": b"x"}, branch="other", on=remote.head)
    _git(f"--git-dir={remote.path}", "tag", "v1", other)
    head = await source.fetch()
    shown = _git(f"--git-dir={tmp_path / 'mirror.git'}", "for-each-ref")
    assert shown.split() == [head, "commit", "refs/regops/head"]
    assert not await source.contains(other, other)


async def test_another_remote_in_the_settings_makes_another_mirror(
    remote: Remote, tmp_path: Path, follow: Callable[..., GitSource]
) -> None:
    old = await follow(remote.url).fetch()
    moved = Remote(tmp_path / "moved.git")
    moved.commit({**SEED, "policies/projects/new/rego.rego": b"package projects.new\n"})
    source = follow(moved.url)
    assert await source.fetch() == moved.head
    assert not await source.contains(old, old)


async def test_another_branch_in_the_settings_uses_the_same_mirror(
    remote: Remote, follow: Callable[..., GitSource]
) -> None:
    main = await follow(remote.url).fetch()
    release = remote.commit({"policies/projects/alpha/data.json": None}, branch="release", on=main)
    source = follow(remote.url, "release")
    assert await source.fetch() == release
    assert await source.contains(release, main)


@pytest.mark.parametrize(
    ("errors", "kind", "reason"),
    [
        ("fatal: write error: No space left on device\nfatal: invalid index-pack output", TransientError, "DiskFull"),
        ("error: unable to write file x: Disk quota exceeded", TransientError, "DiskFull"),
        ("remote: fatal: write error: No space left on device\nfatal: early EOF", TransientError, "FetchFailed"),
        ("error: RPC failed; curl 18\nfatal: early EOF\nfatal: index-pack failed", TransientError, "FetchFailed"),
        ("ssh: connect to host x port 22: Connection timed out\nfatal: Could not", TransientError, "FetchFailed"),
        ("ssh: Could not resolve hostname x: Name or service not known", TransientError, "FetchFailed"),
        ("fatal: unable to access 'https://x/': SSL certificate problem: expired", TransientError, "FetchFailed"),
        ("REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key", StalledError, "AuthenticationFailed"),
        ("ERROR: Repository not found.\nfatal: Could not read from", StalledError, "RepositoryNotFound"),
        ("remote: The project you were looking for could not be found", StalledError, "RepositoryNotFound"),
        ("fatal: could not read Username for 'https://x': no tty", StalledError, "AuthenticationFailed"),
        ("fatal: detected dubious ownership in repository at '/x'", StalledError, "AuthenticationFailed"),
        ("fatal: bad object refs/regops/head", MirrorDamagedError, "FetchFailed"),
        ("error: insufficient permission for adding an object to repository database", TransientError, "FetchFailed"),
        ("", TransientError, "FetchFailed"),
    ],
)
def test_messages_of_git_and_the_hosts_have_their_meaning(errors: str, kind: type[RegopsError], reason: str) -> None:
    error = failure_of(errors, remote="https://user:hunter2@host/x", status=128)
    assert type(error) is kind
    assert error.reason == reason
    assert "hunter2" not in str(error)


def test_the_tail_has_no_escapes_no_progress_and_no_credentials() -> None:
    errors = (
        "Receiving objects:  50% (1/2)\rReceiving objects: 100% (2/2), done.\n"
        "\x1b[31mremote:\x1b[0m \x1b]0;title\x07no\x00 way\n"
        "fatal: unable to access 'https://bot:token@host/x'\nfatal: https://bot:token@host/y\n"
    )
    tail = tail_of(errors)
    assert tail.startswith("remote: no way; fatal: unable")
    assert tail.endswith("fatal: https://***@host/y")
