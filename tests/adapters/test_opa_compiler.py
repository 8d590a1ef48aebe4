"""The compiler on a real OPA: what it says about one policy, and that one policy does not taint another."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fixtures.opa import find_opa

from reconciler.adapters.opa import OpaCompiler
from reconciler.core.model import PLATFORM, Content, Verdict, project_policy
from reconciler.core.ports import Candidate

A, B = project_policy("a"), project_policy("b")
PLATFORM_TEXT = Candidate(PLATFORM, Content(b"package platform\n\nimport rego.v1\n\nf(x) := x\n"))


@pytest.fixture
async def compiler() -> AsyncIterator[OpaCompiler]:
    async with OpaCompiler(find_opa()) as compiler:
        yield compiler


async def judged(compiler: OpaCompiler, body: str, data: bytes | None = None) -> Verdict:
    text = f"package projects.a\n\n{body}".encode()
    return (await compiler.validate([Candidate(A, Content(text, data))], PLATFORM_TEXT))[A]


async def test_a_place_counts_from_one_also_at_the_end_of_a_file(compiler: OpaCompiler) -> None:
    """OPA counts the column of what is missing at the end from 0; editors know no such place."""
    errors = (await judged(compiler, "x :=\n")).errors
    assert errors
    assert all(error.column is not None and error.column >= 1 for error in errors)


@pytest.mark.parametrize("body", ["x := }\n", "allow[\n", "x = {\n"])
async def test_one_mistake_of_grammar_is_one_error(compiler: OpaCompiler, body: str) -> None:
    """OPA's parser tells each attempt; the second error at one place said `expected rule value term (e.g.,
    allow[<nil>] …`. Both sent whoever reads them in a pull request to the very command that had just found them."""
    (error,) = (await judged(compiler, body)).errors
    assert "expected rule" not in error.message
    assert "regops check" not in error.message


async def test_mistakes_in_two_places_are_two_errors(compiler: OpaCompiler) -> None:
    errors = (await judged(compiler, "foo bar\n")).errors
    assert [(each.line, each.column) for each in errors] == [(3, 1), (3, 5)]
    assert "a rule is `name := value` or `name if { … }`" in errors[0].message


async def test_one_bad_policy_among_a_hundred_leaves_the_others_valid(compiler: OpaCompiler) -> None:
    names = [project_policy(f"p{number}") for number in range(100)]
    texts = {name: Content(f"package projects.{name.removeprefix('projects/')}\n\nx := 1\n".encode()) for name in names}
    texts[names[50]] = Content(b"package projects.p50\n\nx := data.projects.p51.x\n")
    texts[names[60]] = Content(b"package projects.p60\n\nx :=\n")
    texts[names[70]] = Content(b"package projects.p70\n\nallow { input.x }\n")
    verdicts = await compiler.validate([Candidate(name, text) for name, text in texts.items()], None)
    assert {name for name, verdict in verdicts.items() if not verdict.valid} == {names[50], names[60]}
    assert verdicts[names[70]].rego_version == 0
    assert verdicts[names[51]].rego_version == 1


@pytest.mark.parametrize(
    "body",
    [
        "x := data.projects.b.secret\n",
        'x := data["projects"]["b"].secret\n',
        'x := data["projects"][input.name].secret\n',
        "x := data.projects[p].secret if some p in input.names\n",
        "x := data\n",
        "x := data[input.key]\n",
        "x := data.system\n",
        "x := [v | v := data.projects[_]]\n",
        "x if { walk(data, [_, v]); v == 1 }\n",
        "x := walk_it(data)\n\nwalk_it(d) := d.projects.b\n",
        "x := true with data.projects.b as {}\n",
        "y := 1\n\nx := y with input as data.projects.b\n",
        'x := http.send({"method": "GET", "url": "http://127.0.0.1"})\n',
        "x := opa.runtime()\n",
        'x := net.lookup_ip_addr("localhost")\n',
    ],
)
async def test_what_leaves_the_namespace_is_refused_at_its_line(compiler: OpaCompiler, body: str) -> None:
    verdict = await judged(compiler, f"import rego.v1\n\n{body}")
    assert not verdict.valid, body
    assert all((error.line or 0) >= 1 for error in verdict.errors)


@pytest.mark.parametrize(
    "body",
    [
        "x := data.platform.f(1)\n",
        "x := data.projects.a.list[input.n]\n",
        'x := data["projects"].a.list\n',
        "import data.platform as shared\n\nx := shared.f(2)\n",
        "x := y if y := 1\n",
    ],
)
async def test_what_keeps_to_its_own_tree_and_the_platform_is_valid(compiler: OpaCompiler, body: str) -> None:
    verdict = await judged(compiler, f"import rego.v1\n\n{body}", b'{"list": [1]}')
    assert verdict.valid, verdict.errors


async def test_data_that_claims_a_rules_place_is_told_at_its_key(compiler: OpaCompiler) -> None:
    verdict = await judged(compiler, "limit := 1\n", b'{\n  "limit": 2\n}\n')
    (error, *_) = verdict.errors
    assert (error.file, error.line, error.column) == ("projects/a/data.json", 2, 3)


async def test_a_compiler_that_was_killed_is_started_again(compiler: OpaCompiler) -> None:
    assert (await judged(compiler, "x := 1\n")).valid
    process = compiler._process
    assert process is not None
    assert process._process is not None
    process._process.kill()
    assert (await judged(compiler, "x := 2\n")).valid
    assert not (await judged(compiler, "x :=\n")).valid
