"""`regops check --base`: what a change looks like, and settings under which it is judged."""

from __future__ import annotations

import re

import pytest
from fixtures.reviews import Repository, by_name

from reconciler.core.model import FileError
from regops.checking import findings
from regops.checking.findings import Operation, PolicyFinding, Review
from regops.checking.markdown import as_markdown

ALPHA_DATA = "policies/projects/alpha/data.json"
BETA = "policies/projects/beta/rego.rego"
ROOT = "policies/platform/rego.rego"
WITHOUT_TWICE = 'package platform\n\nimport rego.v1\n\nis_admin if input.role == "admin"\n'


# --- differences -----------------------------------------------------------------------------------------------------


def test_data_that_changes_in_its_form_only_is_shown_as_text(repository: Repository) -> None:
    repository.commit({ALPHA_DATA: '{\n  "limit": 18,\n  "name": "a"\n}\n'})
    alpha = by_name(repository.document(code=0))["projects/alpha"]
    assert (alpha["operation"], alpha["data_changes"]) == ("update", [])
    assert '+  "limit": 18,' in alpha["data_diff"]


def test_a_value_of_several_lines_stands_below_its_mark(repository: Repository) -> None:
    """Its last line stood further left than the mark of the change, as if it belonged to nothing."""
    repository.commit({ALPHA_DATA: '{"limit": 18, "name": {"first": "a"}}\n'})
    text = repository.check(code=0).output
    shown = text[text.index("policies/projects/alpha/data.json\n") :].partition("\n\n")[0].splitlines()
    assert shown[1:] == ['  ~ /name: "a" → {', '      "first": "a"', "    }"]


def test_a_change_of_line_ends_is_shown(repository: Repository) -> None:
    repository.git("config", "core.autocrlf", "false")
    repository.commit({BETA: "package projects.beta\r\n\r\nx := data.platform.twice(21)\r\n"})
    beta = by_name(repository.document(code=0))["projects/beta"]
    assert (beta["operation"], beta["valid"]) == ("update", True)
    assert "-x := data.platform.twice(21)\n" in beta["rego_diff"]
    assert "+x := data.platform.twice(21)\r" in beta["rego_diff"]


def test_bytes_that_are_no_text_can_be_shown(repository: Repository) -> None:
    repository.commit({BETA: b'package projects.beta\n\nx := "\xff"\n'})
    for form in ("text", "github", "markdown", "json"):
        done = repository.check("--output", form, code=1)
        assert "projects/beta" in done.output
        assert done.output.encode()


# --- settings --------------------------------------------------------------------------------------------------------


def test_projects_that_a_platform_would_drive_out_are_errors_where_that_is_the_setting(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGOPS_POLICY_ON_PLATFORM_BREAK", "withdraw-projects")
    repository.commit({ROOT: WITHOUT_TWICE})
    found = by_name(repository.document("--no-tests", code=1))
    assert found["platform"]["valid"] is True
    beta = found["projects/beta"]
    assert (beta["operation"], beta["valid"], beta["reason"]) == ("none", False, "BrokenByPlatform")


def test_references_between_projects_are_warnings_where_that_is_the_setting(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = "package projects.gamma\n\ny := data.projects.beta.x\n"
    repository.commit({"policies/projects/gamma/rego.rego": new})
    repository.check("--no-tests", code=1)
    monkeypatch.setenv("REGOPS_POLICY_NAMESPACE", "warn")
    document = repository.document(code=0)
    assert by_name(document)["projects/gamma"]["valid"] is True
    assert [each["file"] for each in document["warnings"]] == ["policies/projects/gamma/rego.rego"]


# --- comments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call", ["@octo", "@org/team", "#12", "!34", "org/repo#5", "GH-12", "~label", "$7", "%3", "&9"]
)
def test_a_comment_calls_nobody_and_nothing(call: str) -> None:
    r"""`\@name` in Markdown is `@name` once it is rendered, and only then are mentions looked for."""
    failure = findings.TestFailure("projects/a/rego_test.rego", 3, "test_x", f"see {call} now")
    found = PolicyFinding("projects/a", Operation.UPDATE, "ValidationFailed", (FileError("a", f"ask {call}"),))
    review = Review(
        base="b" * 40,
        head=None,
        path="policies",
        total=1,
        policies=(found, PolicyFinding("projects/@octo", Operation.CREATE, rego="+x\n")),
        tests=findings.Tests(failures=(failure,), error=f"no {call}"),
        notes=(f"note {call}",),
    )
    text = as_markdown(review)
    outside = re.sub(r"^(`{3,})[a-z]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"`[^`]+`|<code>.*?</code>", "", outside)
    rendered = re.sub(r"\\(.)", r"\1", outside)
    assert not re.search(r"[@#!~$%&]\w|GH-\d", rendered), rendered
