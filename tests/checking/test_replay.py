"""`regops check --replay`: what counts as another decision, and as the log's own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fixtures.opa import find_opa
from fixtures.reviews import PLATFORM, Repository, decision, log

from reconciler.agent.bundle import BundleBuilder
from reconciler.agent.scope import ALL
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.model import Content, project_policy
from reconciler.core.records import Meta
from regops.checking import replay as engine
from regops.checking.changing import BUILTINS
from regops.checking.decisions import Decision
from regops.checking.evaluator import UNDEFINED, Failed, evaluator

BETA = "policies/projects/beta/rego.rego"
HEAD = "package projects.beta\n\nimport rego.v1\n\n"


def replayed(repository: Repository, file: Path, *words: str) -> Any:
    return repository.document("--no-tests", "--replay", str(file), *words, code=0)["replay"]


def examples(found: Any) -> dict[str, tuple[str | None, str | None]]:
    return {each["decision_id"]: (each["old"], each["new"]) for rule in found["rules"] for each in rule["examples"]}


def test_what_the_log_does_not_tell_is_not_recorded_otherwise(repository: Repository, tmp_path: Path) -> None:
    """A result that was erased or masked differs from every decision; each of them was counted."""
    file = log(
        tmp_path / "log",
        {key: value for key, value in decision(20, erased=["/result"]).items() if key != "result"},
        decision(21, masked=["/result"], result="**"),
        decision(22, result="other"),
    )
    found = replayed(repository, file)
    assert (found["inputs"], found["recorded_otherwise"]) == (3, 1)


def test_a_recorded_failure_is_a_decision(repository: Repository, tmp_path: Path) -> None:
    """The log has `error` where a rule failed, and no result; that was taken for undefined."""
    repository.on_main({BETA: f"{HEAD}x := 1 if input.a\n\nx := 2 if input.b\n"})
    repository.rebase()
    error = {"code": "eval_conflict_error", "message": "…"}
    file = log(
        tmp_path / "log",
        {"decision_id": "so", "path": "projects/beta/x", "input": {"a": 1, "b": 1}, "error": error},
        {"decision_id": "not", "path": "projects/beta/x", "input": {"a": 1}, "error": error},
        {"decision_id": "nor", "path": "projects/beta/x", "input": {"a": 1, "b": 1}, "result": 1},
    )
    assert replayed(repository, file)["recorded_otherwise"] == 2


def test_failures_differ_by_what_went_wrong_and_not_by_the_line(repository: Repository, tmp_path: Path) -> None:
    """All said `error(s) occurred while evaluating query`, so that one failure in the place of another was no flip."""
    conflict = "x := 1 if input.a\n\nx := 2 if input.a\n\n"
    other = "y contains 1 if input.a\n\nx[k] := v if {\n\tsome k in [1, 1]\n\tsome v in [1, 2]\n\tinput.a\n}\n"
    repository.on_main({BETA: f"{HEAD}{conflict}"})
    repository.rebase()
    file = log(tmp_path / "log", {"decision_id": "d", "path": "projects/beta/x", "input": {"a": True}})
    repository.commit({BETA: f"{HEAD}# one line\n# more\n\n{conflict}"})
    assert replayed(repository, file)["flips"] == 0
    repository.commit({BETA: f"{HEAD}{other}"})
    (said,) = examples(replayed(repository, file)).values()
    assert said[0] == "error: eval_conflict_error: rule data.projects.beta.x produced conflicting values: 1 2"
    assert said[1] is not None
    assert said[1] != said[0]


def test_paths_with_numbers_are_asked_as_opa_reads_them(repository: Repository, tmp_path: Path) -> None:
    """OPA's Data API takes `0` in a path for a number; asked as a text it led nowhere in an array. That a project
    whose name is a number cannot be asked for there is the decision that its callers get."""
    policy = f'{HEAD}list := ["old", 2]\n'
    repository.on_main({BETA: policy, "policies/projects/42/rego.rego": 'package projects["42"]\n\nx := 1\n'})
    repository.rebase()
    repository.commit(
        {BETA: policy.replace("old", "new"), "policies/projects/43/rego.rego": 'package projects["43"]\n'}
    )
    file = log(
        tmp_path / "log",
        {"decision_id": "in a list", "path": "projects/beta/list/0", "input": {}, "result": "old"},
        {"decision_id": "a number", "path": "projects/42/x", "input": {}, "error": {"message": "…"}},
    )
    found = replayed(repository, file)
    assert examples(found) == {"in a list": ('"old"', '"new"')}
    assert found["recorded_otherwise"] == 0


def test_half_a_character_in_an_input_is_shown(repository: Repository, tmp_path: Path) -> None:
    """JSON can name it, and no output takes it: a flip with one was a traceback."""
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    file = tmp_path / "log"
    file.write_text(json.dumps(decision(20, input={"age": 20, "name": "\ud800"}, decision_id="\udfff")) + "\n")
    done = repository.check("--no-tests", "--replay", str(file), "--output", "text", "--output", "markdown", code=0)
    assert '"name": "\\ud800"' in done.output
    assert "\\udfff: true → false" in done.output


def test_the_outcome_is_the_same_from_run_to_run(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lots were counted as they ended, so that other examples were shown each time."""
    monkeypatch.setattr(engine, "LOT", 3)
    repository.commit({"policies/projects/alpha/data.json": '{"limit": 21}\n'})
    big = {"blob": "x" * 200_000}
    decisions = [decision(18, input={"age": 18, **(big if n % 7 == 0 else {})}, decision_id=f"n{n}") for n in range(60)]
    file = log(tmp_path / "log", *decisions)
    first = replayed(repository, file, "--examples", "20")
    assert [each["decision_id"] for each in first["rules"][0]["examples"]] == [f"n{n}" for n in range(20)]
    assert replayed(repository, file, "--examples", "20") == first


def test_a_lot_is_closed_before_it_grows_too_large(tmp_path: Path) -> None:
    file = log(tmp_path / "log", *(decision(n, input={"x": "y" * 300_000}) for n in range(9)))
    lots = list(engine._lots([str(file)], None, engine._Counted()))
    assert [len(lot) for lot in lots] == [4, 4, 1]


def test_policies_that_look_at_the_time_are_named_where_the_log_does_not_tell(
    repository: Repository, tmp_path: Path
) -> None:
    """`nondeterministic` was 0 of a log without nd_builtin_cache, as if the rule never looked at the time."""
    repository.on_main(
        {
            BETA: f"{HEAD}x if time.now_ns() > 0\n\nuuid := 4\n",
            "policies/platform/rego.rego": f'{PLATFORM}\nlucky if rand.intn("x", 2) == 1\n',
        }
    )
    repository.rebase()
    repository.commit({BETA: f"{HEAD}x if time.now_ns() > data.platform.twice(1)\n\n# http.send\n"})
    file = log(tmp_path / "log", {"decision_id": "a", "path": "projects/beta/x", "input": {}, "result": True})
    found = replayed(repository, file)
    assert found["changing_builtins"] == {"platform": ["rand.intn"], "projects/beta": ["time.now_ns"]}
    assert found["nondeterministic"] is None
    text = repository.check("--no-tests", "--replay", str(file)).output
    assert "projects/beta calls time.now_ns: asked anew" in text
    log(file, {"decision_id": "a", "path": "projects/beta/x", "nd_builtin_cache": {"time.now_ns": {"[]": 1}}})
    assert replayed(repository, file)["nondeterministic"] == 1


def test_a_clock_that_a_test_or_a_rule_replaces_is_not_called(repository: Repository, tmp_path: Path) -> None:
    repository.commit({BETA: f"{HEAD}x if y with time.now_ns as 1\n\ny := 2\n"})
    assert replayed(repository, log(tmp_path / "log", decision(1, "projects/beta/x")))["changing_builtins"] == {}


def test_the_builtins_that_change_are_those_of_opa() -> None:
    told = subprocess.run([find_opa(), "capabilities", "--current"], capture_output=True, check=True).stdout
    names = {each["name"] for each in json.loads(told)["builtins"] if each.get("nondeterministic")}
    assert names - set(BUILTINS) == {"json.match_schema", "json.verify_schema"}
    assert set(BUILTINS) <= names


def test_a_log_of_something_else_is_an_error(repository: Repository, tmp_path: Path) -> None:
    file = log(tmp_path / "log", {"level": "info", "msg": "Received request.", "req_id": 1})
    done = repository.check("--no-tests", "--replay", str(file), code=2)
    assert f"nothing in {file} is a decision" in done.output


async def test_an_input_that_takes_too_long_is_its_own_decision_only() -> None:
    """The time-out of a lot ended the whole replay."""
    rego = f"{HEAD}x := n if {{\n\tinput.slow\n\tn := count([1 | some a in r; some b in r; some c in r])\n}}\n\n"
    rego += "x := 0 if not input.slow\n\nr := numbers.range(1, 100000)\n"
    content = Content(rego.encode())
    blobs = content.blob_ids()
    policy = MirrorPolicy(content, Meta(blobs.etag, "", "", "", 1, blobs.rego, None))
    bundle = BundleBuilder(ALL).build(MirrorState(None, 0, {project_policy("beta"): policy})).body

    def asked(given: Any) -> Decision:
        return Decision(("projects", "beta", "x"), given, True, None, False, "d", False)

    lot = [asked({}), asked({"slow": True}), asked({"n": 1e999}), asked({})]
    async with evaluator(find_opa(), bundle, lot_seconds=1, one_seconds=2) as one:
        found = await one.decide(lot)
        assert found == [0, Failed("no decision within 2 s"), Failed("a number in the input is too large"), 0]
        assert await one.decide([asked({}), asked({})]) == [0, 0], "OPA has given the slow one up"
    assert UNDEFINED not in found
