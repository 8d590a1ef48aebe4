"""`regops dev` as a user meets it: git, HTTP and signals only."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.dev import Dev, alive, git, kill, until

ALLOW = 'package projects.{0}.authz\n\ndefault allow := false\n\nallow if input.user == "{1}"\n'


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("dev"), "--opas", "2")
    running.start()
    yield running
    assert running.stop() == 0


def file(project: str) -> str:
    return f"policies/projects/{project}/rego.rego"


def applied(dev: Dev, commit: str) -> bool:
    return bool(dev.get("/status")["last_applied_revision"] == f"main@sha1:{commit}")


def test_a_push_becomes_the_decision_of_every_opa(dev: Dev) -> None:
    dev.push({file("alpha"): ALLOW.format("alpha", "ann")})
    until(lambda: dev.ask("projects/alpha/authz/allow", {"user": "ann"}) is True)
    commit = dev.push({file("alpha"): ALLOW.format("alpha", "bob")})
    until(lambda: all(dev.ask("projects/alpha/authz/allow", {"user": "bob"}, opa) is True for opa in (0, 1)))
    assert [dev.ask("projects/alpha/authz/allow", {"user": "ann"}, opa) for opa in (0, 1)] == [False, False]
    until(lambda: dev.get("/status")["health"]["status"] == "Healthy")
    status = dev.get("/status")
    assert status["sync"]["status"] == "Synced"
    assert {agent["enforced_revision"] for agent in status["agents"]} == {f"main@sha1:{commit}"}


def test_an_invalid_policy_is_held_and_the_rest_of_the_push_applies(dev: Dev) -> None:
    dev.push({file("beta"): ALLOW.format("beta", "ann"), file("gamma"): ALLOW.format("gamma", "ann")})
    until(lambda: dev.ask("projects/beta/authz/allow", {"user": "ann"}) is True)
    dev.push({file("beta"): "package projects.beta.authz\n\nallow := }\n", file("gamma"): ALLOW.format("gamma", "eve")})
    until(lambda: dev.ask("projects/gamma/authz/allow", {"user": "eve"}) is True)
    assert dev.ask("projects/beta/authz/allow", {"user": "ann"}) is True
    held = until(lambda: dev.get("/status")["held"])
    assert [entry["policy"] for entry in held] == ["projects/beta"]
    assert (held[0]["errors"][0]["file"], held[0]["errors"][0]["line"]) == ("projects/beta/rego.rego", 3)
    assert "projects/beta/rego.rego:3" in dev.run("status").stdout
    commit = dev.push({file("beta"): ALLOW.format("beta", "zoe")})
    until(lambda: dev.ask("projects/beta/authz/allow", {"user": "zoe"}) is True)
    until(lambda: applied(dev, commit) and not dev.get("/status")["held"])


def test_the_live_policy_is_read_with_an_etag(dev: Dev) -> None:
    text = ALLOW.format("delta", "ann")
    dev.push({file("delta"): text, "policies/projects/delta/data.json": '{"big": 12345678901234567890}\n'})
    until(lambda: dev.ask("projects/delta/big") == 12345678901234567890)
    found = until(lambda: dev.get("/policies/delta"))
    assert found == {"rego": text, "data": {"big": 12345678901234567890}}


def test_deletions_beyond_the_guard_wait_for_a_person(dev: Dev) -> None:
    names = [f"many-{number}" for number in range(6)]
    commit = dev.push({file(name): ALLOW.format(f'["{name}"]', "ann").replace(".[", "[") for name in names})
    until(lambda: applied(dev, commit))
    commit = dev.push({file(name): None for name in names})
    blocked = until(lambda: dev.get("/status")["blocked_deletions"])
    assert blocked == [f"projects/{name}" for name in names]
    assert dev.ask("projects/many-0/authz/allow", {"user": "ann"}) is True
    done = dev.run("sync", "--wait", "--confirm", commit[:10])
    assert done.returncode == 0, done.stderr
    until(lambda: dev.ask("projects/many-0/authz/allow", {"user": "ann"}) is None)
    assert dev.get("/status")["blocked_deletions"] == []


def test_while_suspended_nothing_is_applied(dev: Dev) -> None:
    dev.push({file("epsilon"): ALLOW.format("epsilon", "ann")})
    until(lambda: dev.ask("projects/epsilon/authz/allow", {"user": "ann"}) is True)
    assert dev.run("suspend", "--reason", "test").stdout == "suspended\n"
    until(lambda: dev.get("/status")["health"]["status"] == "Suspended")
    commit = dev.push({file("epsilon"): ALLOW.format("epsilon", "bob")})
    until(lambda: dev.get("/status")["last_attempted_revision"].endswith(commit))
    assert dev.ask("projects/epsilon/authz/allow", {"user": "ann"}) is True
    assert dev.run("resume").stdout == "resumed\n"
    until(lambda: dev.ask("projects/epsilon/authz/allow", {"user": "bob"}) is True)


def test_plan_says_what_a_sync_would_change(dev: Dev, tmp_path: Path) -> None:
    until(lambda: dev.get("/status")["sync"]["status"] == "Synced")
    assert "Nothing to change" in dev.run("plan").stdout
    git("clone", "-q", dev.ready()["git"], str(tmp_path / "c"), folder=tmp_path)
    new = tmp_path / "c" / file("zeta")
    new.parent.mkdir(parents=True)
    new.write_text(ALLOW.format("zeta", "ann"))
    planned = dev.run("plan", "--folder", str(tmp_path / "c"))
    assert "projects/zeta" in planned.stdout, planned.stderr
    assert "create" in planned.stdout


@pytest.mark.parametrize("name", ["server", "agent-0", "opa-0", "etcd"])
def test_a_killed_process_is_started_again_and_pushes_go_on(dev: Dev, name: str) -> None:
    before = dev.ready()["pids"][name]
    kill(before)
    until(lambda: dev.ready()["pids"][name] != before)
    project = f"after-{name}"
    dev.push({file(project): f'package projects["{project}"].authz\n\nallow if input.user == "ann"\n'})
    until(lambda: dev.ask(f"projects/{project}/authz/allow", {"user": "ann"}) is True, 20)


def test_a_killed_dev_is_taken_up_again_and_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    first = Dev(tmp_path)
    pids = first.start()["pids"]
    first.stop(signal.SIGKILL)
    first.file.unlink()
    second = Dev(tmp_path)
    began = time.monotonic()
    second.start(30)
    assert time.monotonic() - began < 30
    assert not [name for name, pid in pids.items() if alive(pid)]
    until(lambda: second.ask("platform/authz") is not None)
    pids = second.ready()["pids"]
    began = time.monotonic()
    assert second.stop() == 0
    assert time.monotonic() - began < 5
    assert not [name for name, pid in pids.items() if alive(pid)]


def test_a_remote_without_a_commit_is_no_obstacle_and_the_first_push_is_taken_up(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "remote.git", folder=tmp_path)
    dev = Dev(tmp_path / "dev", "--git", f"file://{tmp_path}/remote.git")
    dev.start()
    try:
        ready = until(lambda: [c for c in dev.get("/status")["conditions"] if c["reason"] == "NoCommit"])
        assert ready
        dev.push({file("one"): ALLOW.format("one", "ann")})
        until(lambda: dev.ask("projects/one/authz/allow", {"user": "ann"}) is True)
    finally:
        dev.stop()


def test_once_shows_the_decision_flip(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "regops", "dev", "--once", "--ports", "auto", "--state", str(tmp_path / "s")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "→ true" in done.stdout
    assert "→ false" in done.stdout
