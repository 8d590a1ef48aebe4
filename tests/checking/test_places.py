"""`regops check --base` where people and pipelines run it: in folders, clones and paths of all sorts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fixtures.reviews import Repository, by_name

from regops.cli import main

ALPHA_DATA = "policies/projects/alpha/data.json"
BETA = "policies/projects/beta/rego.rego"


def check(*words: str | Path) -> Result:
    done = CliRunner().invoke(main, ["check", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def clone(repository: Repository, into: Path, *words: str) -> Path:
    subprocess.run(["git", "clone", "-q", *words, repository.folder.as_uri(), into], check=True, capture_output=True)
    return into


# --- deletions -------------------------------------------------------------------------------------------------------


def test_a_blocked_deletion_is_shown_as_such_and_is_a_warning(repository: Repository) -> None:
    """It was shown as `deleted`, and `all would go live`; and counted as one of the policies after the merge, where it
    is none, so that of 0 policies 3 changed."""
    repository.commit({"policies/platform/rego.rego": None})
    document = repository.document("--no-tests", code=0)
    platform = by_name(document)["platform"]
    assert (platform["operation"], platform["deletion_blocked"]) == ("delete", True)
    text = repository.check("--no-tests", code=0).output
    assert "deletion blocked" in text
    assert text.splitlines()[-1] == "Passed: 1 policy of 3 changed, 1 stays live until a person confirms the deletion"
    assert "| `platform` | delete | deletion blocked |" in repository.check("--no-tests", "--output", "markdown").output


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({BETA: None}, "1 policy of 3 changed, 1 would be deleted"),
        (
            {BETA: None, ALPHA_DATA: '{"limit": 18}', "policies/projects/c/rego.rego": "package projects.c\n\noops("},
            "3 policies of 4 changed, 1 would go live, 1 would be deleted, 1 would be held",
        ),
        (
            {f"policies/projects/alpha/{name}": None for name in ("rego.rego", "data.json", "rego_test.rego")}
            | {BETA: None, "policies/platform/rego.rego": None, "README.md": "moved"},
            "3 policies of 3 changed, 3 stay live until a person confirms the deletion",
        ),
    ],
    ids=["a deletion", "one of each", "all are deleted"],
)
def test_the_summary_counts_what_becomes_of_each_policy(
    repository: Repository, files: dict[str, str | None], says: str
) -> None:
    """It said `3 policies of 0 changed`, and `all would go live` of what was to be deleted."""
    repository.commit(files)
    done = repository.check("--no-tests", "--output", "text", "--output", "markdown")
    lines = [line.partition(": ")[2] for line in done.output.splitlines() if line.startswith(("Passed: ", "Failed: "))]
    assert lines == [says, says]


@pytest.mark.parametrize("words", [(), ("--head", "change")])
@pytest.mark.parametrize("left", ["nothing", "another folder"])
def test_a_change_that_leaves_no_policies_is_stopped_by_the_guard(
    repository: Repository, words: tuple[str, ...], left: str
) -> None:
    repository.git("rm", "-q", "-r", "policies")
    repository.commit({"README.md": "moved"} if left == "nothing" else {"policies/other/README.md": "x"})
    document = repository.document("--no-tests", *words, code=0)
    assert document["blocked_deletions"] == ["platform", "projects/alpha", "projects/beta"]
    assert "no policies at all" in document["blocked_reason"]


def test_a_policy_that_was_invalid_by_its_layout_and_is_deleted_is_shown(repository: Repository) -> None:
    repository.on_main({"policies/projects/Odd/rego.rego": "x", "policies/projects/half/data.json": "{}"})
    repository.rebase()
    repository.commit({"policies/projects/Odd/rego.rego": None, "policies/projects/half/data.json": None})
    found = by_name(repository.document("--no-tests", code=0))
    assert {name: each["operation"] for name, each in found.items()} == {
        "projects/Odd": "delete",
        "projects/half": "delete",
    }


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def below(repository: Repository) -> Repository:
    """A repository that has its policies in a folder of its own, beside others."""
    repository.git("checkout", "-q", "main")
    (repository.folder / "team").mkdir()
    repository.git("mv", "policies", "team/policies")
    repository.commit({"policies/projects/other/rego.rego": "package projects.other\n\nz := 1\n"})
    repository.git("checkout", "-q", "-B", "change")
    repository.commit({f"team/{ALPHA_DATA}": '{"limit": 19, "name": "a"}\n'})
    return repository


@pytest.mark.parametrize("words", [(), ("--head", "change")])
def test_a_folder_below_the_root_is_compared_with_itself(below: Repository, words: tuple[str, ...]) -> None:
    """Its files were compared with the policies at the repository's root: everything was new."""
    done = check(below.folder / "team", "--base", "main", *words)
    assert done.exit_code == 0, done.output
    assert "1 policy of 3 changed" in done.output
    done = check(below.folder / "team", "--base", "main", "--output", "github", "--min-coverage", "99")
    assert "::error file=team/policies/projects/alpha/rego.rego," in done.output, "from the root, as hosts want it"


def test_files_are_named_from_the_root_everywhere(below: Repository, tmp_path: Path) -> None:
    """A diff said a/projects/…, so that `git apply` did not take it, and `--json` named other files than the text."""
    repository = below
    broken = "package projects.other\n\nz := nowhere\n"
    former = repository.git("rev-parse", "HEAD")
    repository.commit({"team/policies/projects/other/rego.rego": "package projects.other\n\nz := 2\n"})
    found = json.loads(check(repository.folder / "team", "--base", former, "--json").stdout)
    (tmp_path / "patch").write_text(found["policies"][0]["rego_diff"])
    repository.git("apply", "--check", "--reverse", str(tmp_path / "patch"))
    repository.commit({"team/policies/projects/other/rego.rego": broken})
    place = "team/policies/projects/other/rego.rego"
    for words in ((repository.folder / "team",), (repository.folder, "--path", "team/policies", "--commit", "HEAD")):
        assert check(*words).output.startswith(f"{place}:3:6: error: ")
        (error,) = json.loads(check(*words, "--json").stdout)["invalid"][0]["errors"]
        assert error["file"] == place


def test_two_revisions_can_be_compared_from_any_folder(repository: Repository) -> None:
    repository.commit({BETA: "package projects.beta\n\nx := 2\n"})
    done = check(repository.folder / "policies/projects", "--base", "main", "--head", "change", "--no-tests")
    assert "1 policy of 3 changed" in done.output


@pytest.mark.parametrize("path", ["./policies", "policies/", ".//policies//."])
def test_a_path_may_be_written_in_several_ways(repository: Repository, path: str) -> None:
    """Each of these was a traceback, also of a check without --base."""
    repository.commit({BETA: "package projects.beta\n\nx := nowhere\n"})
    assert "policies/projects/beta/rego.rego:3:6: error" in repository.check("--path", path, code=1).output
    assert "policies/projects/beta/rego.rego:3:6: error" in check(repository.folder, "--path", path).output


@pytest.mark.parametrize("path", [".", "", "../policies", "/policies", "a/../b"])
@pytest.mark.parametrize("command", ["check", "test"])
def test_a_path_that_leads_to_no_folder_inside_is_wrong_usage(repository: Repository, path: str, command: str) -> None:
    done = CliRunner().invoke(main, [command, str(repository.folder), "--path", path])
    assert (done.exit_code, "name a folder inside the repository" in done.output) == (2, True)


def test_names_that_are_no_text_are_told(repository: Repository) -> None:
    """Git takes any bytes as a name; a file of such a name in a working tree was a traceback."""
    folder = os.fsencode(repository.folder / "policies/projects/beta")
    Path(os.fsdecode(folder + b"/\xff.txt")).write_text("x")
    assert "beta/\\xff.txt: ignored" in repository.check(code=0).output
    done = check(repository.folder)
    assert (done.exit_code, "beta/\\xff.txt: ignored" in done.output) == (0, True)
    Path(os.fsdecode(folder + b"/\xff_test.rego")).write_text("package x\n")
    assert repository.document(code=0)["tests"]["total"] == 2, "no test of that name is run"


# --- clones ----------------------------------------------------------------------------------------------------------


def test_a_clone_without_the_base_says_how_to_get_it(repository: Repository, tmp_path: Path) -> None:
    shallow = clone(repository, tmp_path / "shallow", "--depth", "1", "--branch", "change")
    for base in ("origin/main", "HEAD^1", "main"):
        done = check(shallow, "--base", base)
        assert (done.exit_code, "The clone is shallow. Fetch the history" in done.output) == (2, True), done.output
        assert "fetch-depth: 0" in done.output


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_clone_of_another_user_says_what_to_configure(repository: Repository) -> None:
    subprocess.run(["chown", "-R", "12345", str(repository.folder)], check=True)
    done = check(repository.folder, "--base", "main")
    assert done.exit_code == 2
    assert f"git config --global --add safe.directory {repository.folder}" in done.output


def test_a_clone_without_blobs_says_how_to_get_them(repository: Repository, tmp_path: Path) -> None:
    repository.commit({BETA: "package projects.beta\n\nx := 2\n"})
    repository.git("config", "uploadpack.allowFilter", "true")
    for number, kind in enumerate(("blob:none", "tree:0")):
        partial = clone(repository, tmp_path / f"partial{number}", f"--filter={kind}", "--branch", "change")
        done = check(partial, "--base", "origin/main")
        assert (done.exit_code, "git fetch --refetch --no-filter" in done.output) == (2, True), done.output
        subprocess.run(["git", "-C", partial, "fetch", "-q", "--refetch", "--no-filter"], check=True)
        assert check(partial, "--base", "origin/main").exit_code == 0, "and it helps"
