"""Settings from a YAML file and the environment: what is wrong is named with its line and the right name."""

import os
from pathlib import Path

import pytest
from fixtures.git import Remote

from reconciler.core.errors import StalledError, TransientError
from reconciler.settings import load
from regops import compose


def settings_file(folder: Path, text: str) -> Path:
    file = folder / "regops.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("git:\n  branch: main\n  remot: x\n", ":3: git.remot is no setting. Did you mean git.remote?"),
        ("git:\n  remote: x\n\ngut:\n  path: y\n", ":4: 'gut' is no group of settings. Did you mean git?"),
        ("etcd:\n  endpoints: [a\nserver: 1\n", ":3:7: this is not YAML: while parsing a flow sequence"),
        ("git:\n\tremote: x\n", ":2:1: this is not YAML:"),
        ("git:\n  branch: a\n  branch: b\n", ":3: git.branch stands there twice (first in line 2)"),
        ("git:\n  remote: x\n  poll_interval: soon\n", ":3: git.poll_interval: Input should be a valid number"),
        ("git:\n  path: ../x\n", ":2: git.path: must be a folder inside the repository"),
        ("etcd:\n  endpoints: {a: b}\n", ":2: etcd.endpoints: Input should be a list"),
        ("agent: {projects: [a], shard: 1/2}\n", ":1: agent: agent.shard and agent.projects exclude each other"),
        ("remote: x\n", ":1: this is no mapping of settings. Write groups"),
        ("git: {remote: x}\n---\ngit: {}\n", ":2:1: this is not YAML:"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    file = settings_file(tmp_path, text)
    with pytest.raises(StalledError) as caught:
        load(file, {})
    assert str(caught.value).startswith(f"{file}{says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("REGOPS_GIT_REMOT", "x", "REGOPS_GIT_REMOT is no setting. Did you mean REGOPS_GIT_REMOTE?"),
        ("REGOPS_POLL_INTERVAL", "1", "REGOPS_POLL_INTERVAL is no setting. Did you mean REGOPS_GIT_POLL_INTERVAL?"),
        ("REGOPS_GUARD_RATIO", "7", "REGOPS_GUARD_RATIO: Input should be less than or equal to 1"),
        ("REGOPS_AGENT_SHARD", "0/4", "REGOPS_AGENT_SHARD: '0/4' is no shard: write i/n, shard i of n"),
    ],
)
def test_a_mistake_in_a_variable_is_named_with_the_variable(variable: str, value: str, says: str) -> None:
    with pytest.raises(StalledError) as caught:
        load(None, {variable: value})
    assert str(caught.value).startswith(says)


def test_a_file_that_is_not_there_or_no_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(StalledError, match="No such file or directory"):
        load(tmp_path / "nowhere.yaml", {})
    (tmp_path / "regops.yaml").write_bytes(b"git:\xff\n")
    with pytest.raises(StalledError, match=r"regops\.yaml is not YAML"):
        load(tmp_path / "regops.yaml", {})


def test_the_variable_wins_and_lists_are_taken_in_both_forms(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "git: {branch: a, path: p}\netcd: {endpoints: 'http://a:1, http://b:1'}\nguard:\n")
    found = load(file, {"REGOPS_GIT_BRANCH": "b", "REGOPS_AGENT_PROJECTS": "x, y", "REGOPS_STATE": "ignored"})
    assert (found.git.branch, found.git.path) == ("b", "p")
    assert found.etcd.endpoints == ("http://a:1", "http://b:1")
    assert found.agent.projects == ("x", "y")


def test_a_remote_whose_protocol_is_not_allowed_is_an_error_before_anything_starts() -> None:
    with pytest.raises(StalledError, match=r"git\.remote uses git, which git\.protocols does not allow"):
        load(None, {"REGOPS_GIT_REMOTE": "git://git.example.com/p.git"})
    both = {"REGOPS_GIT_REMOTE": "git://git.example.com/p.git", "REGOPS_GIT_PROTOCOLS": "https,git"}
    assert load(None, both).git.protocols == ("https", "git")


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://bot:s3cret@git.example.com/p.git", "https://***@git.example.com/p.git"),
        ("https://s3cret@git.example.com/p.git", "https://***@git.example.com/p.git"),
        ("ssh://git:s3cret@git.example.com/p.git", "ssh://***@git.example.com/p.git"),
    ],
)
def test_credentials_in_the_remote_are_refused_and_not_shown(remote: str, shown: str) -> None:
    """They stood on the command lines of git and of its helpers, for everybody on the machine to read."""
    with pytest.raises(StalledError, match=r"set git\.token_file") as refused:
        load(None, {"REGOPS_GIT_REMOTE": remote})
    assert shown in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "remote", ["ssh://git@git.example.com/p.git", "git@git.example.com:p.git", "/srv/p@1.git", "https://x.example/p@1"]
)
def test_a_user_of_ssh_and_an_at_sign_in_a_path_are_no_credentials(remote: str) -> None:
    assert load(None, {"REGOPS_GIT_REMOTE": remote}).git.shown == remote


async def test_the_settings_for_ssh_reach_the_ssh_command(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nshift $(($# - 1))\nexec sh -c "$1"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    variables = {
        "REGOPS_GIT_REMOTE": f"git@example.invalid:{remote.path}",
        "REGOPS_GIT_SSH_KEY": "~/key",
        "REGOPS_GIT_KNOWN_HOSTS": "/etc/regops/hosts",
        "REGOPS_SERVER_STATE": str(tmp_path / "state"),
    }
    async with compose.open_source(load(None, variables)) as source:
        assert await source.fetch() == remote.head
    words = (tmp_path / "words").read_text().splitlines()
    assert {f"-oIdentityFile={tmp_path}/key", "-oUserKnownHostsFile=/etc/regops/hosts"} <= set(words)


async def test_the_first_clone_has_a_deadline_of_its_own(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long history takes minutes once; a fetch that hangs must be noticed sooner."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nwhile :; do printf 'Counting objects: 1%%\\r' >&2; sleep 0.05; done\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    variables = {
        "REGOPS_GIT_REMOTE": f"git@example.invalid:{remote.path}",
        "REGOPS_GIT_CLONE_TIMEOUT": "0.5",
        "REGOPS_SERVER_STATE": str(tmp_path / "state"),
    }
    async with compose.open_source(load(None, variables)) as source:
        with pytest.raises(TransientError, match=r"0\.5 s") as caught:
            await source.fetch()
    assert caught.value.reason == "FetchTimeout"
