"""`regops dev` as a user meets it: git, HTTP and signals only."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fixtures.dev import Dev, alive, git, kill, until

from regops.cli import main

ROOT = Path(__file__).parents[2]
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
    until(lambda: "held: projects/beta (ValidationFailed): projects/beta/rego.rego:3" in dev.output)
    until(lambda: "no longer held: projects/beta" in dev.output)


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

    # Of the commit, which is the same before and after, the second pass is told, and that OPA has followed that one.
    found = until(lambda: enforced_everywhere(dev, f"/trace?commit={commit}"))
    assert (found["state"], found["pass"]["deleted"], found["pass"]["trigger"]) == ("deleted", 6, "request")
    assert [each["held"] >= 6 for each in found["passes"]] == [True, False]
    assert "@" in found["pass"]["confirmed_by"]
    until(lambda: dev.get("/history")["items"][0]["seconds"]["enforced"] is not None)


def enforced_everywhere(dev: Dev, path: str) -> Any:
    found = dev.get(path)
    return found if found["stages"][-1]["at"] and found["pass"] else None


def test_while_suspended_nothing_is_applied(dev: Dev) -> None:
    dev.push({file("epsilon"): ALLOW.format("epsilon", "ann")})
    until(lambda: dev.ask("projects/epsilon/authz/allow", {"user": "ann"}) is True)
    assert dev.run("suspend", "--reason", "test").stdout == "suspended\n"
    until(lambda: dev.get("/status")["health"]["status"] == "Suspended")
    assert "Suspended:  nothing is applied until `regops resume` (by " in dev.run("status").stdout
    waited = dev.run("sync", "--wait")
    assert waited.returncode == 1
    assert "nothing was applied: suspended by " in waited.stderr
    assert "(test). `regops resume` goes on." in waited.stderr
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
    assert f"{name} ended (signal 9) and is started again; its log: " in dev.output
    project = f"after-{name}"
    dev.push({file(project): f'package projects["{project}"].authz\n\nallow if input.user == "ann"\n'})
    until(lambda: dev.ask(f"projects/{project}/authz/allow", {"user": "ann"}) is True, 20)


def test_a_killed_dev_is_taken_up_again_and_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    first = Dev(tmp_path)
    pids = first.start()["pids"]
    first.stop(signal.SIGKILL)
    first.file.unlink()
    began = time.monotonic()
    with Dev(tmp_path) as second:
        assert time.monotonic() - began < 30
        assert not [name for name, pid in pids.items() if alive(pid)]
        until(lambda: second.ask("platform/authz") is not None)
        second.push({file("beta"): ALLOW.format("beta", "ann")})
        until(lambda: second.ask("projects/beta/authz/allow", {"user": "ann"}) is True)
        started = second.processes()
        assert [line for line in started.values() if "unix://" in line], "the server's private OPA compiled the push"
        began = time.monotonic()
        assert second.stop() == 0
        assert f"ended; the next run on {second.folder / 'state'} goes on" in second.output.splitlines()[-1]
        assert time.monotonic() - began < 5
        assert not [pid for pid in started if alive(pid)]
        assert not second.file.exists()


def test_a_remote_without_a_commit_is_no_obstacle_and_the_first_push_is_taken_up(tmp_path: Path) -> None:
    git("init", "-q", "--bare", "remote.git", folder=tmp_path)
    with Dev(tmp_path / "dev", "--git", f"file://{tmp_path}/remote.git") as dev:
        ready = until(lambda: [c for c in dev.get("/status")["conditions"] if c["reason"] == "NoCommit"])
        assert ready
        until(lambda: "not ready: NoCommit: " in dev.output)
        dev.push({file("one"): ALLOW.format("one", "ann")})
        until(lambda: dev.ask("projects/one/authz/allow", {"user": "ann"}) is True)


def test_once_shows_the_decision_flip(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "regops", "dev", "--once", "--ports", "auto", "--state", str(tmp_path / "s")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "→ true" in done.stdout
    assert "→ false" in done.stdout


def test_an_existing_remote_is_taken_and_neither_the_callers_variables_nor_the_former_state_matter(
    tmp_path: Path,
) -> None:
    """Variables of a shell in which somebody works with other servers and repositories must not leak into dev."""
    git("init", "-q", "--bare", "remote.git", folder=tmp_path)
    git("clone", "-q", "remote.git", "work", folder=tmp_path)
    for project, text in {"good": ALLOW.format("good", "ann"), "bad": "package projects.bad\n\nallow := }\n"}.items():
        (tmp_path / "work" / file(project)).parent.mkdir(parents=True)
        (tmp_path / "work" / file(project)).write_text(text)
    git("add", "-A", folder=tmp_path / "work")
    git("commit", "-q", "-m", "mine", folder=tmp_path / "work")
    git("push", "-q", "origin", "HEAD:main", folder=tmp_path / "work")
    variables = {
        "REGOPS_GIT_REMOTE": "https://nowhere.invalid/x.git",
        "REGOPS_ETCD_OWN_PREFIX": "/elsewhere/",
        "REGOPS_AUTH_TENANT": "prod",
        "REGOPS_CONFIG": "/nowhere.yaml",
        "REGOPS_NO_SUCH_SETTING": "1",
        "GIT_DIR": "/nowhere",
        "GIT_SSH_COMMAND": "false",
        "ETCD_CERT_FILE": "/nowhere.pem",
        "http_proxy": "http://127.0.0.1:9",
    }
    with Dev(tmp_path / "dev", "--git", str(tmp_path / "remote.git"), environment=variables) as dev:
        until(lambda: dev.ask("projects/good/authz/allow", {"user": "ann"}) is True)
        assert dev.ready()["git"] == str(tmp_path / "remote.git")
        until(lambda: "held: projects/bad (ValidationFailed): projects/bad/rego.rego:3" in dev.output)
        assert "REGOPS_AUTH_TENANT, REGOPS_ETCD_OWN_PREFIX, REGOPS_GIT_REMOTE, REGOPS_NO_SUCH_SETTING" in dev.output
    with Dev(tmp_path / "dev", "--reset") as fresh:
        until(lambda: fresh.ask("platform/authz") is not None)
        assert fresh.ask("projects/good/authz/allow", {"user": "ann"}) is None
        assert {item["policy"] for item in fresh.get("/policies")["items"]} >= {"platform", "projects/billing"}
        second = CliRunner().invoke(main, ["dev", "--state", str(fresh.folder / "state")])
        assert second.exit_code == 1
        assert second.output.startswith("Error: another `regops dev` runs on ")
        assert fresh.get("/status")["sync"]["status"] == "Synced", "the first one is not disturbed"
        assert fresh.stop(signal.SIGHUP) == 0, "its terminal was closed"


def mode(file: Path) -> int:
    return file.stat().st_mode


def test_tokens_and_secrets_of_a_dev_are_for_nobody_else_to_read(dev: Dev) -> None:
    """ready.json holds an admin's token, the webhooks' secret and the log-in link: it was 0644 in a 0755 folder."""
    state = dev.folder / "state"
    assert mode(state) & 0o777 == 0o700
    for file in (state / "ready.json", dev.file, state / "page-tickets.json", state / "webhook-secret"):
        assert mode(file) & 0o777 == 0o600, file


def told(page: str, begin: str, end: str) -> str:
    """The lines of a shell that this part of a document has."""
    part = (ROOT / page).read_text().partition(begin)[2].partition(end)[0]
    return "\n".join(line[4:] for line in part.splitlines() if line.startswith("    "))


def test_the_lines_that_the_documents_print_for_a_running_dev_work_on_free_ports(dev: Dev, tmp_path: Path) -> None:
    """They named port 8080, also where `--ports auto` had taken another one; a webhook as GitLab signs it could not be
    tried from them at all."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/regops").write_text(f'#!/bin/sh\nexec {sys.executable} -m regops "$@"\n')
    (tmp_path / ".venv/bin/regops").chmod(0o755)
    (tmp_path / ".regops").mkdir()
    (tmp_path / ".regops/dev").symlink_to(dev.folder / "state")
    hooks = told("docs/git-hosts.md", "By hand, against", "The answer is 202")
    assert hooks.count("curl ") == 3
    policies = told("README.md", "Policies can be written over HTTP too", "make test")
    for lines, says, times in ((hooks, '{"result": "looking"}', 3), (policies, '"policy": "projects/billing"', 1)):
        words = ["bash", "-euc", lines]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout.count(says)) == (0, times), done.stdout + done.stderr
    assert dev.run("dev", "show", "opa").stdout.split() == dev.ready()["opa"]
    missing = dev.run("dev", "show", "router")
    assert (missing.returncode, "has no router" in missing.stderr) == (1, True)


def test_what_cannot_work_is_said_before_anything_starts(tmp_path: Path) -> None:
    for words, says in {
        ("--git", "git://git.example.com/x.git"): "git.remote uses git, which git.protocols does not allow",
        ("--path", "../x"): "must be a folder inside the repository",
    }.items():
        done = CliRunner().invoke(main, ["dev", "--state", str(tmp_path / "s"), *words])
        assert done.exit_code == 1
        assert says in done.output
        assert len(done.output.splitlines()) == 1
