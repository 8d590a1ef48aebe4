"""`regops check --base`: what is live is what production holds, from the branch's history; after it comes the merge."""

from __future__ import annotations

import subprocess
from pathlib import Path

from click.testing import CliRunner
from fixtures.reviews import PLATFORM, Repository, by_name

from regops.cli import main

BETA = "policies/projects/beta/rego.rego"
ROOT = "policies/platform/rego.rego"
WITHOUT_TWICE = 'package platform\n\nimport rego.v1\n\nis_admin if input.role == "admin"\n'
INVALID = "package projects.beta\n\nx := nowhere\n"


def test_a_platform_that_breaks_the_live_version_of_a_held_project_is_told(repository: Repository) -> None:
    """The base was judged without its history: beta's newest version is invalid, so production keeps the former one,
    which needs `twice`. The check said ok, and a server would have held the platform."""
    repository.on_main({BETA: INVALID})
    repository.rebase()
    repository.commit({ROOT: WITHOUT_TWICE})
    found = by_name(repository.document("--no-tests", code=1))
    assert found["platform"]["reason"] == "BreaksProjects"
    assert found["projects/beta"]["already_invalid"] is True


def test_a_project_is_judged_with_the_platform_that_production_holds(repository: Repository) -> None:
    """And the reverse: the branch carries a platform that is held since it breaks beta. A change of beta that is valid
    with the live platform was said to be held."""
    repository.on_main({ROOT: WITHOUT_TWICE})
    repository.rebase()
    repository.commit({BETA: "package projects.beta\n\nx := data.platform.twice(4)\n"})
    found = by_name(repository.document("--no-tests", code=0))
    assert found["projects/beta"]["valid"] is True
    assert (found["platform"]["reason"], found["platform"]["already_invalid"]) == ("BreaksProjects", True)


def test_what_is_held_at_the_base_and_not_touched_is_a_warning(repository: Repository) -> None:
    repository.on_main({BETA: INVALID})
    repository.rebase()
    repository.commit({"policies/projects/gamma/rego.rego": "package projects.gamma\n\ny := 1\n"})
    done = repository.check(code=0)
    assert "beta/rego.rego:3:6: warning: " in done.output
    assert done.output.splitlines()[-1].startswith("Passed: 1 policy of 4 changed, all would go live")


def test_a_change_that_sets_a_held_policy_free_shows_it(repository: Repository) -> None:
    repository.on_main({ROOT: WITHOUT_TWICE})
    repository.rebase()
    repository.commit({BETA: "package projects.beta\n\nx := 4\n"})
    found = by_name(repository.document("--no-tests", code=0))
    assert (found["platform"]["operation"], found["platform"]["valid"]) == ("none", True)


def test_a_shallow_clone_says_what_it_cannot_know(repository: Repository, tmp_path: Path) -> None:
    repository.on_main({BETA: INVALID})
    repository.rebase()
    repository.commit({"README.md": "hello"})
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "-q", "--depth", "2", "--branch", "change", repository.folder.as_uri(), clone], check=True
    )
    done = CliRunner().invoke(main, ["check", str(clone), "--base", "HEAD^", "--no-tests"])
    assert done.exit_code == 0, done.output
    assert "the clone is shallow, so the last good version" in done.output
    assert "(projects/beta)" in done.output


# --- the branch has moved on -----------------------------------------------------------------------------------------


def test_a_change_that_breaks_what_the_branch_got_meanwhile_is_told(repository: Repository) -> None:
    """The head of a pull request was compared with where it left the branch: a project that uses `twice` since then was
    not seen, and the merge would have broken it."""
    repository.commit({ROOT: WITHOUT_TWICE, BETA: None})
    new = "package projects.gamma\n\ny := data.platform.twice(1)\n"
    repository.on_main({"policies/projects/gamma/rego.rego": new})
    document = repository.document("--no-tests", code=1)
    found = by_name(document)
    assert found["platform"]["reason"] == "BreaksProjects"
    assert "projects/gamma" not in found, "what the branch got is no part of the change"
    assert document["base"] == repository.git("merge-base", "main", "change")
    assert document["merged_into"] == repository.git("rev-parse", "main")
    repository.git("checkout", "-q", "--detach", "change")
    assert by_name(repository.document("--no-tests", "--head", "change", code=1))["platform"]["valid"] is False


def test_a_change_that_cannot_be_merged_is_judged_alone_and_says_so(repository: Repository) -> None:
    repository.commit({BETA: "package projects.beta\n\nx := 2\n"})
    repository.on_main({BETA: "package projects.beta\n\nx := 3\n"})
    document = repository.document("--no-tests", code=0)
    assert document["merged_into"] is None
    assert "cannot be merged with it (projects/beta/rego.rego)" in document["notes"][0]
    assert "+x := 2" in by_name(document)["projects/beta"]["rego_diff"]
    assert "warning: the branch has moved on" in repository.check("--no-tests").output


def test_lines_that_both_changed_apart_from_each_other_are_merged(repository: Repository) -> None:
    repository.commit({ROOT: PLATFORM + "\nlast := 1\n"})
    repository.on_main({ROOT: PLATFORM.replace('admin"', 'root"')})
    document = repository.document("--no-tests", code=0)
    assert (document["notes"], document["merged_into"]) == ([], repository.git("rev-parse", "main"))
    assert "+last := 1" in by_name(document)["platform"]["rego_diff"]
    assert "root" not in by_name(document)["platform"]["rego_diff"]
