"""The commands against a running system: what they print, what they change, and how they end."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fixtures.dev import Dev, git, until

from regops.cli import main

FIELDS = {
    "conditions",
    "sync",
    "health",
    "source",
    "last_attempted_revision",
    "last_applied_revision",
    "last_applied_at",
    "last_handled_reconcile_at",
    "suspended",
    "policies",
    "held",
    "blocked_deletions",
    "ignored_files",
    "agents",
}
"""Of docs/operations.md, "The status document"."""
BAD = "package projects.bad\n\nallow := data.projects.orders.x\n"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    running = Dev(tmp_path_factory.mktemp("commands"))
    running.start()
    until(lambda: running.get("/status")["health"]["status"] == "Healthy")
    yield running
    assert running.stop() == 0


def told(dev: Dev, *words: str, code: int = 0) -> str:
    """What a command prints; it ends with this code and, when it fails, one line on standard error."""
    done = CliRunner().invoke(main, [*words, "--state", str(dev.folder / "state")])
    assert done.exit_code == code, done.output
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    return done.output


def document(dev: Dev, *words: str, code: int = 0) -> Any:
    return json.loads(told(dev, *words, "--json", code=code))


def stored(dev: Dev, key: str) -> str | None:
    kvs = dev.etcd("range", key=key).get("kvs", [])
    return base64.b64decode(kvs[0]["value"]).decode() if kvs else None


@pytest.fixture
def clone(dev: Dev, tmp_path: Path) -> Path:
    """A clone of the repository, with a new project, a changed one, and one that cannot go live; nothing committed."""
    git("clone", "-q", dev.ready()["git"], str(tmp_path / "clone"), folder=tmp_path)
    projects = tmp_path / "clone" / "policies" / "projects"
    for name, text in {"new": "package projects.new\n", "bad": BAD}.items():
        (projects / name).mkdir()
        (projects / name / "rego.rego").write_text(text)
    with (projects / "orders" / "rego.rego").open("a") as file:
        file.write("\nchanged := true\n")
    return tmp_path / "clone"


def test_status_has_every_field_of_the_vocabulary(dev: Dev) -> None:
    found = document(dev, "status")
    assert found.keys() >= FIELDS
    assert found["source"].keys() == {"remote", "branch", "path"}
    assert found["policies"] == {"live": 5, "held": 0}
    condition = {"type", "status", "reason", "message", "last_transition_time", "observed_generation"}
    assert [c.keys() for c in found["conditions"]] == [condition] * len(found["conditions"])
    agent = {"id", "datacentre", "scope", "enforced_revision", "since", "opa_version", "error", "stale"}
    assert [a.keys() >= agent for a in found["agents"]] == [True]


def test_plan_of_a_folder_names_each_change_and_what_would_be_held(dev: Dev, clone: Path) -> None:
    lines = told(dev, "plan", "--folder", str(clone)).splitlines()
    assert lines[0] == f"Files in {clone}; 5 policies live"
    table = [line.split() for line in lines if line.startswith("projects/")]
    assert ["projects/new", "create", "commit", "-"] in [row[:4] for row in table]
    assert ["projects/orders", "update", "commit"] in [row[:3] for row in table]
    assert "projects/bad is held (ValidationFailed):" in lines
    assert any(line.startswith("  projects/bad/rego.rego:3:10: ") for line in lines)
    assert lines[-1] == "1 to create, 1 to update, 0 to delete, 1 held"


def test_plan_as_json_and_its_exit_code(dev: Dev, clone: Path) -> None:
    folder = ("plan", "--folder", str(clone))
    found = document(dev, *folder)
    assert {change["policy"]: change["operation"] for change in found["changes"]} == {
        "projects/new": "create",
        "projects/orders": "update",
    }
    assert [(held["policy"], held["reason"]) for held in found["held"]] == [("projects/bad", "ValidationFailed")]
    assert [told(dev, *folder, "--exit-code", code=2), told(dev, "plan", "--exit-code")]
    committed = document(dev, *folder, "--commit", "HEAD", "--exit-code")
    assert (committed["changes"], committed["held"]) == ([], []), "HEAD is what is live"


def test_plan_works_inside_the_clone_as_its_readme_says(dev: Dev, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`no running regops found in .regops/dev`, and not a word about how to name the one that runs elsewhere."""
    monkeypatch.chdir(clone)
    done = CliRunner().invoke(main, ["plan", "--folder", "."])
    assert (done.exit_code, "--state PATH or REGOPS_STATE" in done.output) == (1, True)
    monkeypatch.setenv("REGOPS_STATE", os.path.relpath(dev.folder / "state"))
    assert "projects/new" in CliRunner().invoke(main, ["plan", "--folder", "."]).output


def test_plan_of_a_folder_without_policies_is_an_error_and_no_mass_deletion(dev: Dev, tmp_path: Path) -> None:
    git("init", "-q", "other", folder=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "x", folder=tmp_path / "other")
    for more in ((), ("--commit", "HEAD")):
        assert "policies" in told(dev, "plan", "--folder", str(tmp_path / "other"), *more, code=1)


def test_check_of_a_commit_looks_at_that_commit(clone: Path) -> None:
    def check(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["check", str(clone), *words])
        return done.exit_code, done.output

    assert check()[0] == 1
    assert check()[1].startswith("policies/projects/bad/rego.rego:3:10: error: ")
    assert check("--commit", "HEAD") == (0, "5 policies, all valid\n")
    found = json.loads(check("--json")[1])
    assert (found["valid"], found["policies"], [held["policy"] for held in found["invalid"]]) == (
        False,
        7,
        ["projects/bad"],
    )
    assert "is no commit of" in check("--commit", "nowhere")[1]


def test_sync_says_what_came_of_it_for_people_and_for_programs(dev: Dev) -> None:
    assert told(dev, "sync") == "requested; `regops status` shows what comes of it\n"
    assert told(dev, "sync", "--wait").startswith("Applied revision: main@sha1:")
    asked = document(dev, "sync")
    assert (asked["done"], asked["confirmed"]) == (False, [])
    done = document(dev, "sync", "--wait")
    assert (done["done"], done["ready"]["status"], done["suspended"]) == (True, "True", False)
    assert done["attempted"] == done["applied"]
    assert dev.get("/status")["last_handled_reconcile_at"] == done["requested"]
    assert told(dev, "sync", "--confirm", "1234567", code=1).startswith("Error: no deletions are blocked: ")


def test_a_server_is_told_by_its_api_with_a_token(dev: Dev, tmp_path: Path) -> None:
    ready = dev.ready()
    admin, reader = tmp_path / "admin", tmp_path / "reader"
    admin.write_text(f"{ready['tokens']['admin']}\n")
    reader.write_text(ready["tokens"]["reader"])

    def by_server(token: Path, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, [*words, "--server", ready["api"], "--token-file", str(token)])
        assert len(done.stderr.splitlines()) <= 1, done.stderr
        return done.exit_code, done.output

    assert by_server(admin, "suspend", "--reason", "by the API") == (0, "suspended\n")
    code, said = by_server(admin, "sync", "--wait")
    assert (code, "suspended by admin" in said, "(by the API)" in said) == (1, True, True)
    assert by_server(admin, "resume") == (0, "resumed\n")
    assert by_server(admin, "resume") == (0, "was not suspended\n")
    for command, suspended in (("suspend", True), ("resume", False)):
        for changed in (True, False):
            code, said = by_server(admin, command, "--json")
            assert (code, json.loads(said)) == (0, {"suspended": suspended, "changed": changed})
    code, said = by_server(admin, "sync", "--wait", "--json")
    assert (code, json.loads(said)["ready"]["status"]) == (0, "True")
    code, said = by_server(admin, "sync", "--confirm", "1234567")
    assert (code, "no deletions are blocked" in said) == (1, True)
    code, said = by_server(reader, "suspend")
    assert (code, "platform_admin" in said, "--token-file" in said) == (1, True, True)


def test_foreign_keys_are_reported_and_go_only_when_asked(dev: Dev) -> None:
    odd, project = "/policies/odd", "/policies/projects/ghost/rego.rego"
    for key in (odd, project):
        dev.etcd("put", key=key, value="package projects.ghost")
    until(lambda: document(dev, "status")["foreign_keys"] == [odd, project])
    assert "To delete them: regops sync --remove-foreign" in told(dev, "status")
    assert document(dev, "sync", "--wait")["foreign_keys"] == [odd, project]
    assert stored(dev, odd) is not None
    assert dev.ask("projects/ghost") is None, "it is never enforced"
    assert document(dev, "sync", "--wait", "--remove-foreign")["foreign_keys"] == []
    assert (stored(dev, odd), stored(dev, project)) == (None, None)
    assert stored(dev, "/policies/platform/rego.rego") is not None


def test_an_agent_that_is_gone_counts_until_it_is_forgotten(dev: Dev) -> None:
    receipt = {
        "id": "old",
        "datacentre": "east",
        "scope": "all",
        "enforced_revision": "0" * 40,
        "since": document(dev, "status")["last_applied_at"],
    }
    dev.etcd("put", key="/regops/agents/east/old", value=json.dumps(receipt))
    assert {agent["id"]: agent["alive"] for agent in document(dev, "fleet")} == {"agent-0": True, "old": False}
    row = next(line.split() for line in told(dev, "fleet").splitlines() if line.startswith("old"))
    assert (row[1], row[3], row[-1]) == ("east", "unknown", "silent")
    status = document(dev, "status")
    assert (status["health"]["status"], status["sync"]["status"]) == ("Unknown", "Synced")
    assert "is alive and would report again" in told(dev, "fleet", "forget", "agent-0", code=1)
    assert "no agent nobody has reported. Known: east/old, local/agent-0." in told(
        dev, "fleet", "forget", "nobody", code=1
    )
    assert told(dev, "fleet", "forget", "old") == "old is forgotten\n"
    dev.etcd("put", key="/regops/agents/east/old", value=json.dumps(receipt))
    assert document(dev, "fleet", "forget", "old") == {"forgotten": {"id": "old", "datacentre": "east"}}
    assert document(dev, "status")["health"]["status"] == "Healthy"


def test_a_person_asks_what_the_opas_enforced(dev: Dev) -> None:
    applied = document(dev, "status")["last_applied_revision"]

    def enforced() -> list[dict[str, Any]]:
        found = document(dev, "fleet", "--at", "0s")["agents"]
        return [agent for agent in found if (agent["id"], agent["enforced_revision"]) == ("agent-0", applied)]

    (agent,) = until(enforced)
    row = next(line for line in told(dev, "fleet", "--at", "0s").splitlines() if line.startswith("agent-0"))
    assert row.split()[1:5] == ["local", "all", agent["commit"][:12], agent["since"]]
    before = told(dev, "fleet", "--at", "2000-01-01T00:00:00Z")
    assert before.startswith("Not recorded: the record begins at ")
    assert "'yesterday' is no time" in told(dev, "fleet", "--at", "yesterday", code=1)


def test_a_person_asks_what_passes_did_and_what_became_of_a_commit(dev: Dev, clone: Path) -> None:
    file = clone / "policies/projects/web-shop/rego.rego"
    file.write_text(f"{file.read_text()}\ntraced := true\n")
    git("commit", "-qm", "trace me", "--author", "Ann <ann@example.org>", "--", str(file), folder=clone)
    git("push", "-q", folder=clone)
    commit = git("rev-parse", "HEAD", folder=clone).strip()

    def enforced() -> Any:
        found = [each for each in document(dev, "passes") if each["commit"] == commit]
        return found if found and found[0]["seconds"]["enforced"] is not None else None

    (entry,) = until(enforced)
    row = next(line for line in told(dev, "passes").splitlines() if commit[:12] in line)
    assert f"{entry['seconds']['total']:.3f} s" in row
    assert " ".join(row.split()).endswith("1 updated (projects/web-shop) Ann")
    page = told(dev, "trace", commit[:10])
    assert page.splitlines()[:4] == [
        f"Commit:   main@sha1:{commit}",
        "Author:   Ann <ann@example.org>",
        "Subject:  trace me",
        "State:    live",
    ]
    assert [
        line.split("  ")[0] for line in page.splitlines() if line.startswith(("pushed", "applied", "enforced"))
    ] == [
        "pushed",
        "applied in etcd",
        "enforced by the first OPA",
        "enforced by every OPA",
    ]
    assert document(dev, "trace", "web-shop")["commit"] == commit
    assert "there never was a policy projects/nobody" in told(dev, "trace", "nobody", code=1)
    assert "has no commit '1234567'" in told(dev, "trace", "1234567", code=1)


def test_a_person_looks_at_each_policy(dev: Dev) -> None:
    listed = {each["policy"]: each for each in document(dev, "status", "--policies")}
    assert {"platform", "projects/web-shop"} <= set(listed)
    row = next(line for line in told(dev, "status", "--policies").splitlines() if line.startswith("platform"))
    assert row.split()[1:3] == ["Synced", "Healthy"]
    one = told(dev, "status", "web-shop")
    assert "agent-0" in one
    assert document(dev, "status", "projects/web-shop")["etag"] == listed["projects/web-shop"]["etag"]
    done = CliRunner().invoke(main, ["status", "web-shop", "--watch", "--state", str(dev.folder / "state")])
    assert (done.exit_code, "only one of" in done.output) == (2, True)


def test_a_person_watches_the_status_until_interrupted(dev: Dev, clone: Path) -> None:
    words = [sys.executable, "-m", "regops", "status", "--watch", "--state", str(dev.folder / "state")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as watching:
        try:
            assert watching.stdout is not None
            assert "Healthy" in watching.stdout.readline()
            git("commit", "-q", "--allow-empty", "-m", "watched", folder=clone)
            git("push", "-q", folder=clone)
            commit = git("rev-parse", "HEAD", folder=clone).strip()
            assert any(commit[:12] in line for line in watching.stdout)
            os.kill(watching.pid, signal.SIGINT)
            assert watching.wait(10) == 130
        finally:
            watching.kill()


def test_a_person_sees_who_changed_what_and_goes_back(dev: Dev, clone: Path) -> None:
    """History, difference and rollback, as somebody uses them who has just merged a mistake."""
    text = (clone / "policies" / "projects" / "orders" / "rego.rego").read_text()
    git("add", "policies/projects/orders", folder=clone)
    git("commit", "-q", "-m", "Let everybody in (#7)", folder=clone)
    git("push", "-q", folder=clone)
    head = git("rev-parse", "HEAD", folder=clone).strip()
    until(lambda: document(dev, "history", "orders")[0]["commit"] == head)
    newest, former, *_ = document(dev, "history", "projects/orders")
    assert (newest["live"], newest["pull_request"], newest["version"]) == (True, 7, former["version"] + 1)
    line = told(dev, "history", "orders").splitlines()[1].split()
    assert line[:2] == [f"{newest['version']}*", "applied"]
    assert (head[:12], "#7", "everybody") == (line[-6], line[-5], line[-3])
    assert told(dev, "history", "--limit", "1").splitlines()[1].split()[0] == "projects/orders"
    changed = told(dev, "diff", "orders")
    assert "+changed := true" in changed.splitlines()
    number = str(former["version"])
    assert told(dev, "diff", "orders", number, number).rstrip().endswith("are the same")
    assert text in told(dev, "at", "0s", "orders")
    assert "projects/orders" in told(dev, "at", "0s")
    refused = CliRunner().invoke(main, ["rollback", "orders", "--state", str(dev.folder / "state")], input="n\n")
    assert refused.exit_code == 1
    assert "-changed := true" in refused.output.splitlines()
    assert "Nothing was changed." in refused.output
    assert document(dev, "history", "orders")[0]["commit"] == head
    done = told(dev, "rollback", "orders", "--yes")
    assert f"projects/orders is as in version {number} again, by commit " in done
    until(lambda: document(dev, "history", "orders")[0]["live"] is True)
    same = document(dev, "rollback", "orders", "--to", number, "--yes")
    assert (same["policy"], same["version"], same["changed"]) == ("projects/orders", int(number), False)
    words = ("rollback", "orders", "--to", str(newest["version"]), "--yes", "--json")
    forth = dev.run(*words)
    assert "+changed := true" in forth.stderr.splitlines()
    written = json.loads(forth.stdout)
    assert (written["changed"], written["warnings"]) == (True, [])
    until(lambda: document(dev, "history", "orders")[0]["commit"] == written["commit"])
    assert json.loads(dev.run("rollback", "orders", "--to", number, "--yes", "--json").stdout)["changed"] is True
    until(lambda: document(dev, "history", "orders")[0]["live"] is True)
    assert document(dev, "history", "orders")[0]["subject"] == f"Update projects/orders: roll back to version {number}"
    assert "nothing to do" in told(dev, "rollback", "orders", "--to", number, "--yes")
    assert "has no version 999" in told(dev, "rollback", "orders", "--to", "999", "--yes", code=1)
    assert "there never was a policy projects/nobody" in told(dev, "history", "nobody", code=1)
    assert "'yesterday' is no time" in told(dev, "at", "yesterday", code=1)


def test_while_etcd_is_away_the_status_is_unknown_and_commands_say_what_to_do(dev: Dev) -> None:
    etcd = dev.ready()["pids"]["etcd"]
    os.kill(etcd, signal.SIGSTOP)
    try:
        page = told(dev, "status")
        assert "Sync:       Unknown" in page
        assert "Health:     Unknown" in page
        assert "StoreUnavailable" in page
        assert "Is etcd running?" in told(dev, "resume", code=1)
    finally:
        os.kill(etcd, signal.SIGCONT)
    until(lambda: dev.get("/status")["sync"]["status"] == "Synced", 20)


def test_waiting_for_a_sync_has_an_end_and_ctrl_c_ends_it_sooner(dev: Dev) -> None:
    server = dev.ready()["pids"]["server"]
    os.kill(server, signal.SIGSTOP)
    try:
        late = told(dev, "sync", "--wait", "--timeout", "0.3", code=1)
        assert late.startswith("Error: not done within 0.3 s: ")
        before = stored(dev, "/regops/requested")
        words = [sys.executable, "-m", "regops", "sync", "--wait", "--state", str(dev.folder / "state")]
        waiting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        until(lambda: stored(dev, "/regops/requested") != before)
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=10)
    finally:
        os.kill(server, signal.SIGCONT)
    assert waiting.returncode == 130
    assert said == "Interrupted: the request stands, `regops status` shows what comes of it.\n"
    until(lambda: dev.get("/status")["sync"]["status"] == "Synced", 20)
