"""Fetch and push over ssh, with a real sshd that an account of this test runs for itself."""

from __future__ import annotations

import asyncio
import getpass
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures.etcd import eventually, free_port
from fixtures.git import Remote

from reconciler.adapters.git import GitSource
from reconciler.adapters.git.access import Access
from reconciler.core.errors import RegopsError, StalledError, TransientError
from reconciler.core.model import Content, project_policy
from reconciler.core.ports import Edit, Identity, PushResult

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(SSHD is None, reason="no sshd: apt-get install openssh-server"),
]

_READ_ONLY = """#!/bin/sh
case "$SSH_ORIGINAL_COMMAND" in
  git-upload-pack*) exec sh -c "$SSH_ORIGINAL_COMMAND" ;;
  *) echo "ERROR: The key you are authenticating with has been marked as read only." >&2; exit 1 ;;
esac
"""


@dataclass
class Host:
    """An sshd on loopback and what is needed to reach it."""

    folder: Path
    port: int
    remote: Remote

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.remote.path}"

    def access(self, key: str = "deploy", hosts: str = "known_hosts") -> Access:
        return Access(ssh_key=self.folder / key, known_hosts=self.folder / hosts)


def keygen(file: Path) -> str:
    """A new key; its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return file.with_name(f"{file.name}.pub").read_text().strip()


@pytest.fixture
async def host(tmp_path: Path, remote: Remote) -> AsyncIterator[Host]:
    remote.commit({"policies/projects/alpha/rego.rego": b"package projects.alpha\n"})
    host = Host(tmp_path / "ssh", free_port(), remote)
    process = _start(host)
    try:
        await eventually(lambda: _listens(host.port))
        yield host
    finally:
        process.terminate()
        process.wait(5)


def _start(host: Host) -> subprocess.Popen[bytes]:
    folder = host.folder
    folder.mkdir(mode=0o700)
    own, other = (" ".join(keygen(folder / name).split()[:2]) for name in ("host", "other"))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{host.port} {own}\n")
    (folder / "wrong_hosts").write_text(f"[127.0.0.1]:{host.port} {other}\n")
    (folder / "no_hosts").touch()
    forced = folder / "read-only"
    forced.write_text(_READ_ONLY)
    forced.chmod(0o700)
    keys = [keygen(folder / "deploy"), f'command="{forced}" {keygen(folder / "reader")}']
    keygen(folder / "stranger")
    (folder / "authorized").write_text("\n".join(keys) + "\n")
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": host.port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd gives up its privileges
    assert SSHD is not None
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


Clone = Callable[..., GitSource]


@pytest.fixture
async def clone(tmp_path: Path) -> AsyncIterator[Clone]:
    opened: list[GitSource] = []

    def make(url: str, access: Access, timeout: float = 30.0) -> GitSource:
        mirror = tmp_path / f"mirror-{len(opened)}.git"
        opened.append(GitSource(remote=url, mirror=mirror, access=access, fetch_timeout=timeout, clone_timeout=timeout))
        return opened[-1]

    yield make
    for source in opened:
        await source.aclose()


def edit(project: str) -> Edit:
    return Edit(
        policy=project_policy(project),
        content=Content(f"package projects.{project}\n".encode(), None),
        author=Identity("Ann", "ann@example.org"),
        subject=f"Create projects/{project}",
    )


async def pushed(source: GitSource, project: str) -> PushResult:
    base = await source.fetch()
    (tip,) = await source.commit(base, [edit(project)])
    return (await source.push(base, tip)).result


async def refused(source: GitSource) -> RegopsError:
    with pytest.raises(RegopsError) as caught:
        await source.fetch()
    return caught.value


async def test_a_deploy_key_fetches_and_pushes(host: Host, clone: Clone) -> None:
    source = clone(host.url, host.access())
    assert await source.fetch() == host.remote.head
    assert await pushed(source, "beta") is PushResult.ACCEPTED
    assert await source.head() == host.remote.head


async def test_the_short_spelling_of_a_remote_is_reached_too(
    host: Host, clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``user@host:path`` has no place for a port; a wrapper puts it in."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -p {host.port} "$@"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(ssh.parent), prepend=":")
    source = clone(f"{getpass.getuser()}@127.0.0.1:{host.remote.path}", host.access())
    assert await source.fetch() == host.remote.head


@pytest.mark.parametrize("hosts", ["no_hosts", "wrong_hosts"])
async def test_a_host_whose_key_is_not_the_known_one_is_not_spoken_to(host: Host, clone: Clone, hosts: str) -> None:
    error = await refused(clone(host.url, host.access(hosts=hosts)))
    assert isinstance(error, StalledError)
    assert error.reason == "AuthenticationFailed"
    assert "host key" in str(error)
    assert "git.known_hosts" in str(error.remedy)


async def test_a_key_that_the_host_does_not_know_is_refused_by_name(host: Host, clone: Clone) -> None:
    error = await refused(clone(host.url, host.access("stranger")))
    assert isinstance(error, StalledError)
    assert error.reason == "AuthenticationFailed"


async def test_a_key_that_may_only_read_fetches_and_is_told_that_it_may_not_push(host: Host, clone: Clone) -> None:
    before = host.remote.head
    with pytest.raises(StalledError) as caught:
        await pushed(clone(host.url, host.access("reader")), "beta")
    assert caught.value.reason == "PushNotPermitted"
    assert host.remote.head == before


async def test_a_repository_that_the_host_does_not_have_is_named(host: Host, clone: Clone) -> None:
    error = await refused(clone(f"{host.url}-gone", host.access()))
    assert error.reason == "RepositoryNotFound"


async def test_a_host_that_accepts_and_says_nothing_ends_at_the_deadline(host: Host, clone: Clone) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = host.url.replace(str(host.port), str(silent.getsockname()[1]))
        error = await refused(clone(url, host.access(), timeout=1.0))
    assert isinstance(error, TransientError)
    assert not [words for words in _commands() if url in words], "no git and no ssh is left"


async def test_no_command_line_shows_more_than_the_names_of_files(host: Host, clone: Clone) -> None:
    secret = "".join((host.folder / "deploy").read_text().split()[5:-4])
    seen: set[str] = set()

    async def look() -> None:
        while True:
            seen.update(_commands())
            await asyncio.sleep(0.002)

    looking = asyncio.ensure_future(look())
    assert await pushed(clone(host.url, host.access()), "beta") is PushResult.ACCEPTED
    looking.cancel()
    ours = [words for words in seen if str(host.port) in words]
    assert any("ssh" in words for words in ours), "ssh was seen"
    assert not [words for words in ours if secret[:32] in words]


def _commands() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
