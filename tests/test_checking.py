"""`regops check --base`: what a reviewer is told of a change; on real Git repositories and a real OPA."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fixtures.reviews import Repository, by_name, decision, log

from reconciler.core.model import FileError
from regops.checking.decisions import Decision, Skipped, Unreadable, read
from regops.checking.findings import Example, Flips, Operation, PolicyFinding, Replay, Review
from regops.checking.github import as_annotations
from regops.checking.markdown import LONGEST, as_markdown, code, fenced
from regops.cli import main

# --- what changes ----------------------------------------------------------------------------------------------------


def test_what_changes_is_shown_as_a_reviewer_reads_it(repository: Repository) -> None:
    repository.commit(
        {
            "policies/projects/alpha/data.json": '{"limit": 21, "name": "a"}\n',
            "policies/projects/gamma/rego.rego": "package projects.gamma\n\ny := 1\n",
            "policies/projects/beta/rego.rego": None,
        }
    )
    document = repository.document(code=1)
    found = by_name(document)
    assert {name: each["operation"] for name, each in found.items()} == {
        "projects/alpha": "update",
        "projects/beta": "delete",
        "projects/gamma": "create",
    }
    assert found["projects/alpha"]["data_changes"] == [{"path": "/limit", "op": "replace", "from": 18, "to": 21}]
    assert found["projects/alpha"]["rego_diff"] == ""
    assert "+y := 1" in found["projects/gamma"]["rego_diff"]
    assert "-x := data.platform.twice(21)" in found["projects/beta"]["rego_diff"]
    assert document["base"] == repository.git("rev-parse", "main")
    text = repository.check().output
    assert "~ /limit: 18 → 21" in text
    said = "Failed: 3 policies of 4 changed, 2 would go live, 1 would be deleted, 1 of 2 tests failed"
    assert text.splitlines()[-1] == said


def test_files_that_are_not_committed_are_checked_as_they_lie_there(repository: Repository) -> None:
    repository.write({"policies/projects/beta/rego.rego": "package projects.beta\n\nx := 2\n"})
    assert list(by_name(repository.document(code=0))) == ["projects/beta"]
    assert by_name(repository.document("--head", "HEAD", code=0)) == {}


def test_what_the_branch_got_meanwhile_is_no_part_of_the_change(repository: Repository) -> None:
    repository.commit({"policies/projects/gamma/rego.rego": "package projects.gamma\n\ny := 1\n"})
    repository.git("checkout", "-q", "main")
    repository.commit({"policies/projects/beta/rego.rego": None})
    repository.git("checkout", "-q", "change")
    assert list(by_name(repository.document(code=0))) == ["projects/gamma"]


def test_nothing_changed_is_said(repository: Repository) -> None:
    repository.commit({"README.md": "hello"})
    assert repository.check(code=0).output.splitlines()[-1] == "Passed: 0 policies of 3 changed, 0 of 2 tests failed"


# --- what does not go live -------------------------------------------------------------------------------------------


def test_an_invalid_policy_fails_the_check_with_its_place(repository: Repository) -> None:
    repository.commit({"policies/projects/beta/rego.rego": "package projects.beta\n\nx := nowhere\n"})
    done = repository.check(code=1)
    assert done.output.startswith("policies/projects/beta/rego.rego:3:6: error: ")
    assert by_name(repository.document())["projects/beta"]["valid"] is False


def test_a_platform_that_breaks_a_project_elsewhere_is_told_with_the_project(repository: Repository) -> None:
    repository.commit({"policies/platform/rego.rego": "package platform\n\nimport rego.v1\n\nis_boss if input.boss\n"})
    found = by_name(repository.document("--no-tests", code=1))["platform"]
    assert found["reason"] == "BreaksProjects"
    assert any("projects/beta would break" in error["message"] for error in found["errors"])


def test_what_was_invalid_before_is_a_warning_and_does_not_fail(repository: Repository) -> None:
    repository.git("checkout", "-q", "main")
    repository.commit({"policies/projects/beta/rego.rego": "package projects.beta\n\nx := nowhere\n"})
    repository.git("checkout", "-q", "change")
    repository.git("rebase", "-q", "main")
    repository.commit({"policies/projects/gamma/rego.rego": "package projects.gamma\n\ny := 1\n"})
    done = repository.check("--no-tests", code=0)
    assert re.search(r"beta/rego.rego:3:6: warning: .* \(so before\)", done.output)
    repository.commit({"policies/projects/beta/rego.rego": "package projects.beta\n\nx := elsewhere\n"})
    repository.check("--no-tests", code=1)


def test_deletions_that_the_guard_would_block_are_a_warning(repository: Repository) -> None:
    repository.commit({"policies/platform/rego.rego": None, "policies/projects/beta/rego.rego": None})
    document = repository.document("--no-tests")
    assert "platform" in document["blocked_deletions"]
    assert "deletions would wait for a person" in repository.check("--no-tests").output


def test_a_file_that_is_not_published_is_told(repository: Repository) -> None:
    repository.commit({"policies/projects/beta/notes.txt": "x"})
    assert "policies/projects/beta/notes.txt: ignored" in repository.check(code=0).output


# --- unit tests ------------------------------------------------------------------------------------------------------


def test_tests_run_with_their_coverage(repository: Repository) -> None:
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 19}\n'})
    document = repository.document(code=0)
    assert (document["tests"]["total"], document["tests"]["failed"]) == (2, 0)
    assert document["tests"]["coverage"]["projects/alpha"] == pytest.approx(66.7, abs=0.1)
    assert by_name(document)["projects/alpha"]["tests"] == 2
    assert "67 %" in repository.check().output


def test_a_test_that_fails_is_named_with_its_line(repository: Repository) -> None:
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    done = repository.check(code=1)
    assert "policies/projects/alpha/rego_test.rego:8: error: test_old_enough failed" in done.output
    repository.check("--no-tests", code=0)


def test_tests_that_do_not_compile_are_an_error(repository: Repository) -> None:
    repository.commit({"policies/projects/alpha/rego_test.rego": "package projects.alpha_test\n\noops("})
    document = repository.document(code=1)
    (failure,) = document["tests"]["failures"]
    assert (failure["file"], failure["line"]) == ("policies/projects/alpha/rego_test.rego", 3)
    assert (failure["name"], failure["already_failing"]) == (None, False)
    assert "rego_parse_error" in failure["message"]


def test_what_changes_without_enough_tests_fails_where_that_is_asked_for(repository: Repository) -> None:
    repository.commit({"policies/projects/beta/rego.rego": "package projects.beta\n\nx := 2\n"})
    repository.check(code=0)
    done = repository.check("--min-coverage", "80", code=1)
    assert "1 covered by less than 80 %" in done.output
    assert repository.document("--min-coverage", "80")["tests"]["below_min_coverage"] == ["projects/beta"]


# --- revisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--base", "nowhere"), "'nowhere' is no commit of"),
        (("--base", "main", "--head", "nowhere"), "'nowhere' is no commit of"),
        (("--base", "main", "--commit", "HEAD"), "name the revision with --head"),
        (("--head", "HEAD"), "need --base"),
        (("--replay", "x"), "need --base"),
        (("--base", "main", "--output", "html"), "choose one of text, github, markdown, json"),
        (("--base", "main", "--path", "elsewhere"), "is no folder"),
        (("--base", "main", "--replay", "missing.ndjson"), "missing.ndjson: No such file"),
    ],
)
def test_what_cannot_be_compared_is_said(repository: Repository, words: tuple[str, ...], says: str) -> None:
    """With the exit code of wrong usage: 1 says that the change is bad, and nobody has looked at it."""
    done = CliRunner().invoke(main, ["check", str(repository.folder), *words])
    assert done.exit_code == 2
    assert says in done.output
    assert "Traceback" not in done.output


def test_histories_without_a_common_commit_cannot_be_compared(repository: Repository) -> None:
    repository.git("checkout", "-q", "--orphan", "other")
    repository.commit({"README.md": "other"})
    assert "there is no commit that both come from" in repository.check(code=2).output


def test_a_shallow_clone_says_how_to_get_the_history(repository: Repository, tmp_path: Path) -> None:
    """As a checkout of a pull request without `fetch-depth: 0`."""
    repository.commit({"README.md": "one"})
    repository.git("checkout", "-q", "main")
    repository.commit({"README.md": "two"})
    url = repository.folder.as_uri()
    shallow = tmp_path / "shallow"
    for words in (
        ("clone", "-q", "--depth", "1", "--branch", "change", url, str(shallow)),
        ("-C", str(shallow), "fetch", "-q", "--depth", "1", "origin", "main:main"),
    ):
        subprocess.run(["git", *words], check=True, capture_output=True)
    done = CliRunner().invoke(main, ["check", str(shallow), "--base", "main"])
    assert (done.exit_code, "fetch-depth: 0" in done.output) == (2, True)
    subprocess.run(["git", "-C", str(shallow), "fetch", "-q", "--unshallow"], check=True, capture_output=True)
    assert CliRunner().invoke(main, ["check", str(shallow), "--base", "main"]).exit_code == 0


# --- replay ----------------------------------------------------------------------------------------------------------


def test_the_recorded_decisions_that_flip_are_counted_with_examples(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    file = log(tmp_path / "log", *(decision(age) for age in range(15, 25)))
    document = repository.document("--no-tests", "--replay", str(file), "--examples", "2", code=0)
    found = document["replay"]
    assert (found["inputs"], found["flips"], found["recorded_otherwise"]) == (10, 3, 0)
    (rule,) = found["rules"]
    assert (rule["policy"], rule["rule"]) == ("projects/alpha", "allow")
    assert rule["examples"] == [
        {"decision_id": "d18", "old": "true", "new": "false", "input": '{"age": 18}'},
        {"decision_id": "d19", "old": "true", "new": "false", "input": '{"age": 19}'},
    ]
    text = repository.check("--no-tests", "--replay", str(file)).output
    assert "Replay: 3 of 10 inputs flip" in text
    assert text.splitlines()[-1].endswith("3 of 10 inputs flip")


def test_what_cannot_be_asked_again_is_counted_with_its_reason(repository: Repository, tmp_path: Path) -> None:
    file = log(
        tmp_path / "log",
        decision(1),
        decision(2, "system/main"),
        decision(3, erased=["/input/age"]),
        decision(4, masked=["/input/age"]),
        {"decision_id": "q", "query": "data.x", "input": {}},
        decision(5, result="other"),
        decision(6, nd_builtin_cache={"time.now_ns": {}}),
    )
    with file.open("a") as more:
        more.write('oops\n{"half": 1}\n\n')
    found = repository.document("--no-tests", "--replay", str(file), code=0)["replay"]
    assert (found["inputs"], found["flips"], found["recorded_otherwise"], found["nondeterministic"]) == (3, 0, 1, 1)
    assert found["skipped"] == {
        "a part of its input was erased or masked": 2,
        "a query without a path": 1,
        "a rule outside platform and projects": 1,
    }
    assert found["unreadable"] == 2
    assert found["unreadable_places"][0].startswith(f"{file}:8: no JSON")
    assert found["unreadable_places"][1].startswith(f"{file}:9: no decision of OPA")


def test_a_log_without_any_decision_is_an_error(repository: Repository, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("not a log\n")
    done = repository.check("--no-tests", "--replay", str(file), code=2)
    assert f"{file}:1: no JSON" in done.output
    assert "Name a decision log of OPA" in done.output


def test_rules_that_come_go_or_fail_are_decisions_too(repository: Repository, tmp_path: Path) -> None:
    """A conflict fails one input; the others of its lot are decided all the same."""
    before = "package projects.beta\n\nimport rego.v1\n\nx := 1 if input.a\n\nold := true\n"
    after = "package projects.beta\n\nimport rego.v1\n\nx := 1 if input.a\n\nx := 2 if input.b\n\nnew := true\n"
    repository.git("checkout", "-q", "main")
    repository.commit({"policies/projects/beta/rego.rego": before})
    repository.git("checkout", "-q", "change")
    repository.git("rebase", "-q", "main")
    repository.commit({"policies/projects/beta/rego.rego": after})
    path = "projects/beta"
    file = log(
        tmp_path / "log",
        {"decision_id": "same", "path": f"{path}/x", "input": {"a": True}, "result": 1},
        {"decision_id": "conflict", "path": f"{path}/x", "input": {"a": True, "b": True}, "result": 1},
        {"decision_id": "gone", "path": f"{path}/old", "input": {}, "result": True},
        {"decision_id": "come", "path": f"{path}/new", "input": {}},
        {"decision_id": "without", "path": f"{path}/x"},
    )
    found = repository.document("--no-tests", "--replay", str(file), code=0)["replay"]
    examples = {e["decision_id"]: (e["old"], e["new"]) for rule in found["rules"] for e in rule["examples"]}
    assert examples["gone"] == ("true", None)
    assert examples["come"] == (None, "true")
    assert examples["conflict"][0] == "1"
    assert examples["conflict"][1] is not None
    assert examples["conflict"][1].startswith("error: ")
    assert (found["inputs"], found["flips"]) == (5, 3)


def test_a_policy_that_would_be_held_decides_as_before(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"policies/projects/alpha/rego.rego": "package projects.alpha\n\noops("})
    file = log(tmp_path / "log", decision(20))
    assert repository.document("--no-tests", "--replay", str(file), code=1)["replay"]["flips"] == 0


def test_many_decisions_are_replayed_in_order_of_their_rules(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    file = log(tmp_path / "log", *(decision(age % 40) for age in range(3000)))
    found = repository.document("--no-tests", "--replay", str(file), code=0)["replay"]
    assert (found["inputs"], found["flips"]) == (3000, 225)
    limited = repository.document("--no-tests", "--replay", str(file), "--replay-limit", "100", code=0)["replay"]
    assert limited["inputs"] == 100


@pytest.mark.parametrize("form", ["lines", "gzip", "array", "pretty"])
def test_logs_are_read_in_each_form_in_which_opa_gives_them(tmp_path: Path, form: str) -> None:
    documents = [decision(1), decision(2, "platform/authz/allow"), {"x": 1}]
    lines = "".join(f"{json.dumps(each)}\n" for each in documents).encode()
    file = tmp_path / "log"
    file.write_bytes(
        {
            "lines": lines,
            "gzip": gzip.compress(json.dumps(documents).encode()),
            "array": json.dumps(documents).encode(),
            "pretty": json.dumps(documents, indent=2).encode(),
        }[form]
    )
    first, second, third = read(str(file))
    assert isinstance(first, Decision)
    assert (first.path, first.input, first.result, first.id) == (
        ("projects", "alpha", "allow"),
        {"age": 1},
        False,
        "d1",
    )
    assert isinstance(second, Decision)
    assert second.path == ("platform", "authz", "allow")
    assert isinstance(third, Unreadable)
    assert not isinstance(first, Skipped)


# --- forms -----------------------------------------------------------------------------------------------------------


def finding(**changed: Any) -> PolicyFinding:
    return PolicyFinding(**{"policy": "projects/a", "operation": Operation.UPDATE, **changed})


def review(*policies: PolicyFinding, **changed: Any) -> Review:
    return Review(**{"base": "b" * 40, "head": None, "path": "policies", "total": 1, "policies": policies, **changed})


def test_annotations_are_escaped_as_the_runner_wants_it() -> None:
    error = FileError("projects/a/rego.rego", "50% wrong:\nline two, end", 3, 7)
    (command, summary) = as_annotations(review(finding(errors=(error,), reason="ValidationFailed"))).splitlines()
    assert command == (
        "::error file=policies/projects/a/rego.rego,line=3,col=7,title=projects/a would be held::"
        "50%25 wrong:%0Aline two, end"
    )
    assert summary.startswith("Failed: ")
    odd = FileError("projects/a,b:c/rego.rego", "x")
    assert "file=policies/projects/a%2Cb%3Ac/rego.rego,title=" in as_annotations(review(finding(errors=(odd,))))


def test_nothing_breaks_out_of_a_comment() -> None:
    evil = "</details><script>`x` ```` | [a](http://evil) <!-- @everyone"
    error = FileError("projects/a/rego.rego", evil, 1, 1)
    flips = Flips("projects/a", "allow", 2, 1, (Example("d1", evil, None, f"{evil}\n````"),))
    text = as_markdown(
        review(
            finding(errors=(error,), rego=f"+{evil}\n+```\n", data_text=f"-{evil}\n"),
            replay=Replay(rules=(flips,)),
        )
    )
    outside = re.sub(r"^(`{3,})[a-z]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script>" not in outside.replace("\\<", "")
    assert "](http://evil)" not in outside.replace("\\]", "")
    assert text.count("<details>") == outside.count("</details>"), "what is folded is folded"


def test_a_comment_that_is_too_long_is_cut_and_says_so() -> None:
    many = [finding(policy=f"projects/p{number}", rego="+x\n" * 2000) for number in range(50)]
    text = as_markdown(review(*many))
    assert len(text) <= LONGEST
    assert text.endswith("_The rest is left out: the whole is in the log of this check._\n")
    assert text.count("```") % 2 == 0


@pytest.mark.parametrize("text", ["plain", "`", "``", "a`b``c", "```", "a|b"])
def test_code_ends_where_it_should(text: str) -> None:
    span = code(text)
    ticks = re.match("`+", span)
    assert ticks is not None
    assert span.count(ticks[0]) >= 2
    assert ticks[0] not in text
    assert fenced(text).splitlines()[0].strip("`") == ""
    assert fenced(text).splitlines()[0] not in text


def test_several_forms_are_written_at_once(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"policies/projects/beta/rego.rego": "package projects.beta\n\nx := nowhere\n"})
    comment, document = tmp_path / "comment.md", tmp_path / "check.json"
    done = repository.check(
        *("--output", "github", "--output", f"markdown={comment}", "--output", f"json={document}", "--no-tests"), code=1
    )
    assert done.stdout.startswith("::error file=policies/projects/beta/rego.rego,line=3,col=6,")
    assert comment.read_text().startswith("<!-- regops check -->\n### regops check: failed\n")
    assert json.loads(document.read_text())["passed"] is False
