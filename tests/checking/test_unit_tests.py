"""`regops check --base` and `regops test`: which Rego unit tests run, with what, and whose failure is whose."""

from __future__ import annotations

import re
from pathlib import Path

import pygit2
import pytest
from click.testing import CliRunner
from fixtures.git import Remote
from fixtures.reviews import PLATFORM, Repository, by_name

from reconciler.adapters.git.tree import Layout
from reconciler.adapters.git.unit_tests import unit_tests
from regops.cli import main

ALPHA_TESTS = "policies/projects/alpha/rego_test.rego"
BETA = "policies/projects/beta/rego.rego"
ROOT = "policies/platform/rego.rego"
BETA_TESTS = "policies/projects/beta/rego_test.rego"
FAILING = "package projects.beta_test\n\ntest_never if false\n"
GAMMA = {"policies/projects/gamma/rego.rego": "package projects.gamma\n\ny := 1\n"}
V0 = "package projects.old\n\nallow { input.x == 1 }\n"
V0_TEST = 'package projects.old_test\n\ntest_x { data.projects.old.allow with input as {"x": 1} }\n'


@pytest.mark.parametrize(
    "broken",
    [
        {BETA: "package projects.beta\n\nx := nowhere\n"},
        {BETA_TESTS: FAILING},
        {BETA_TESTS: "package projects.beta_test\n\noops("},
        {BETA_TESTS: "package projects.beta_test\n\ntest_x if nowhere(1)\n"},
    ],
    ids=["an invalid policy", "a failing test", "a test that does not parse", "a test that does not compile"],
)
def test_what_one_team_broke_fails_nobody_elses_change(repository: Repository, broken: dict[str, str]) -> None:
    """One invalid policy on the branch made `opa test` fail as a whole, and with it every other team's change."""
    repository.on_main(broken)
    repository.rebase()
    repository.commit(GAMMA)
    document = repository.document("--min-coverage", "0", code=0)
    assert document["tests"]["error"] is None
    assert by_name(document)["projects/gamma"]["valid"] is True
    assert document["tests"]["coverage"]["projects/alpha"] > 0, "the others' coverage is known"
    assert [each["already_failing"] for each in document["tests"]["failures"]] == (
        [True] if BETA_TESTS in broken else []
    )


def test_what_failed_before_is_a_warning_in_each_form(repository: Repository) -> None:
    repository.on_main({BETA_TESTS: FAILING})
    repository.rebase()
    repository.commit(GAMMA)
    done = repository.check("--output", "text", "--output", "github", "--output", "markdown", code=0)
    assert f"{BETA_TESTS}:3: warning: test_never failed (so before)" in done.output
    assert f"::warning file={BETA_TESTS},line=3,title=test_never (so before)::" in done.output
    assert f":warning: `{BETA_TESTS}:3` test\\_never failed (so before)" in done.output
    assert "1 of 3 tests failed, 1 of these so before" in done.output


def test_a_failure_that_the_change_adds_fails_it_beside_a_former_one(repository: Repository) -> None:
    repository.on_main({BETA_TESTS: FAILING})
    repository.rebase()
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    failures = repository.document(code=1)["tests"]["failures"]
    assert {each["name"]: each["already_failing"] for each in failures} == {
        "test_never": True,
        "test_old_enough": False,
    }


def test_the_tests_of_a_held_version_are_not_run(repository: Repository) -> None:
    repository.commit({"policies/projects/alpha/rego.rego": "package projects.alpha\n\noops("})
    document = repository.document("--min-coverage", "90", code=1)
    assert (document["tests"]["total"], document["tests"]["failures"], document["tests"]["error"]) == (0, [], None)
    assert document["tests"]["below_min_coverage"] == [], "it is an error once, not twice"


def test_figures_of_tests_that_say_nothing_of_a_version_are_not_shown(repository: Repository) -> None:
    """A held version had `0` tests and the coverage of the one that stays live, and a deleted policy had `0`."""
    repository.commit({"policies/projects/alpha/rego.rego": "package projects.alpha\n\noops(", BETA: None})
    document = repository.document("--min-coverage", "90", code=1)
    found = by_name(document)
    assert [(each["tests"], each["coverage"]) for each in found.values()] == [(None, None), (None, None)]
    assert document["tests"]["coverage"].keys().isdisjoint(found)
    assert document["tests"]["below_min_coverage"] == []
    done = repository.check("--output", "text", "--output", "markdown", code=1)
    assert re.search(r"^projects/alpha +update +held: ValidationFailed +- +-$", done.output, re.MULTILINE)
    assert "| `projects/beta` | delete | deleted | - | - |" in done.output


def test_a_failing_test_says_which_expression_does_not_hold(repository: Repository) -> None:
    """It said `test_x failed` and no more: one had to run it elsewhere to see why."""
    first = "test_x if {\n\tdata.projects.beta.x == 42\n\tdata.projects.beta.x != 42\n}\n"
    repository.commit({BETA_TESTS: f"package projects.beta_test\n\n{first}\ntest_not if not data.platform\n"})
    failures = repository.document(code=1)["tests"]["failures"]
    assert [(each["name"], each["line"], each["message"]) for each in failures] == [
        ("test_x", 3, "line 5 does not hold: data.projects.beta.x != 42"),
        ("test_not", 8, "line 8 does not hold: not data.platform"),
    ]
    done = repository.check("--output", "text", "--output", "markdown")
    says = "line 5 does not hold: data.projects.beta.x"
    assert f"{BETA_TESTS}:3: error: test_x failed: {says} != 42" in done.output
    assert f":x: `{BETA_TESTS}:3` test\\_x failed: {says} \\!= 42" in done.output


def test_a_platform_that_breaks_tests_elsewhere_is_told_with_their_policies(repository: Repository) -> None:
    repository.commit({ROOT: PLATFORM.replace('"admin"', '"root"')})
    document = repository.document(code=1)
    assert document["tests"]["broken_elsewhere"] == ["projects/alpha"]
    (failure,) = document["tests"]["failures"]
    assert (failure["file"], failure["line"], failure["name"]) == (ALPHA_TESTS, 7, "test_admins")
    done = repository.check("--output", "text", "--output", "github", "--output", "markdown", code=1)
    says = "platform breaks tests of policies that are not changed: "
    assert f"policies: error: {says}projects/alpha" in done.output
    assert f"::{says}projects/alpha" in done.output
    assert f":x: {says}`projects/alpha`" in done.output


def test_coverage_is_no_second_complaint_while_a_test_fails(repository: Repository) -> None:
    """OPA tells no coverage of a run that fails, and that was taken for a coverage of 0 %."""
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    assert repository.document("--min-coverage", "50", code=1)["tests"]["below_min_coverage"] == []


def test_policies_in_rego_v0_are_tested_as_they_are_served(repository: Repository) -> None:
    """They are accepted, with a warning; `opa test` without a manifest refused everything because of one of them."""
    repository.commit({"policies/projects/old/rego.rego": V0, "policies/projects/old/rego_test.rego": V0_TEST})
    document = repository.document(code=0)
    assert (by_name(document)["projects/old"]["tests"], document["tests"]["total"]) == (1, 3)
    assert document["tests"]["coverage"]["projects/old"] == 100
    done = CliRunner().invoke(main, ["test", str(repository.folder)])
    assert done.exit_code == 0, done.output
    modern = 'package projects.old_test\n\ntest_x if data.projects.old.allow with input as {"x": 1}\n'
    repository.commit({"policies/projects/old/rego_test.rego": modern})
    assert repository.document(code=0)["tests"]["total"] == 3, "their tests may be v1"


def test_what_is_never_published_is_not_there_for_tests_either(
    repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tests that pass only since they see a helper that no OPA will ever get say nothing."""
    repository.commit(
        {
            "policies/projects/beta/helper.rego": "package projects.beta\n\nhelp := 1\n",
            "policies/projects/beta/sub/data.json": '{"z": 1}',
            BETA_TESTS: "package projects.beta_test\n\nimport data.projects.beta\n\ntest_h if beta.help == 1\n"
            "test_s if beta.sub.z == 1\n",
        }
    )
    failures = repository.document(code=1)["tests"]["failures"]
    assert {each["name"] for each in failures} == {"test_h", "test_s"}
    assert CliRunner().invoke(main, ["test", str(repository.folder)]).exit_code == 2
    assert "policies/projects/beta/rego_test.rego" in capfd.readouterr().out


def test_tests_have_no_builtin_that_policies_may_not_use_and_no_environment(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull request brings its tests along: `opa.runtime().env` had the pipeline's secrets, `http.send` a way out."""
    monkeypatch.setenv("PIPELINE_SECRET", "s3cret")
    monkeypatch.setenv("REGOPS_POLICY_REFUSED_BUILTINS", "http.send")
    repository.commit({BETA_TESTS: "package projects.beta_test\n\ntest_x if opa.runtime().env.PIPELINE_SECRET\n"})
    assert [each["name"] for each in repository.document(code=1)["tests"]["failures"]] == ["test_x"]
    assert CliRunner().invoke(main, ["test", str(repository.folder)]).exit_code == 2
    monkeypatch.delenv("REGOPS_POLICY_REFUSED_BUILTINS")
    (failure,) = repository.document(code=1)["tests"]["failures"]
    assert (failure["name"], "undefined function opa.runtime" in failure["message"]) == (None, True)
    assert CliRunner().invoke(main, ["test", str(repository.folder)]).exit_code == 1


def test_a_tree_whose_names_lead_elsewhere_writes_nothing_there(remote: Remote, tmp_path: Path) -> None:
    """A tree may hold any bytes as a name: one of `../../…_test.rego` was written outside of the scratch folder."""
    base = remote.head
    outside = tmp_path / "outside_test.rego"
    up = b"../" * 12 + str(outside).encode().lstrip(b"/")
    remote.commit({b"policies/projects/alpha/rego.rego": b"package projects.alpha\n\nallow := true\n\nx := 1\n"})
    repository = pygit2.Repository(str(remote.path))
    tree = _with_name(repository, remote.head, up)
    who = pygit2.Signature("a", "a@localhost", 0, 0)
    head = repository.create_commit(None, who, who, "evil", tree, [remote.head])
    done = CliRunner().invoke(main, ["check", str(remote.path), "--base", base, "--head", str(head)])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert not outside.exists()
    assert unit_tests(repository, Layout("policies"), str(head)) == {}


def _with_name(repository: pygit2.Repository, commit: str, name: bytes) -> pygit2.Oid:
    """The tree of ``commit`` with a file of this name beside alpha's rego.rego."""
    blob = repository.create_blob(b"package x\n")
    path = ["policies", "projects", "alpha"]
    trees = [repository[commit].peel(pygit2.Commit).tree]
    for part in path:
        trees.append((trees[-1] / part).peel(pygit2.Tree))
    raw = b"100644 %b\0%b" % (name, blob.raw) + repository.odb.read(trees[-1].id)[1]
    made = repository.write(pygit2.enums.ObjectType.TREE, raw)
    for part, above in zip(reversed(path), reversed(trees[:-1]), strict=True):
        builder = repository.TreeBuilder(above)
        builder.insert(part, made, pygit2.enums.FileMode.TREE)
        made = builder.write()
    return made
