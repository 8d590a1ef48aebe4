"""What is said about answers against what is answered."""

from __future__ import annotations

import ast
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from api import problems, schemas
from api.problems import ProblemError
from api.statusview import Observed, narrowed, status_document
from reconciler.core.conditions import Condition, StatusRecord
from reconciler.core.model import FileError
from reconciler.core.records import Applied, Held, Receipt, Suspended

ROOT = Path(__file__).parent.parent.parent
COMMIT = "a" * 40
AT = "2026-01-01T00:00:00.000Z"
PLACE = {"remote": "https://git.example.org/policies.git", "branch": "main", "path": "policies"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def observed() -> Observed:
    """A system in which something stands in every field."""
    error = FileError("projects/a/rego.rego", "wrong", 3, 1)
    return Observed(
        record=StatusRecord(
            conditions=(Condition("Ready", "True", "ReconciliationSucceeded", "fine", AT, 7),),
            source=PLACE,
            last_attempted_revision=COMMIT,
            last_handled_reconcile_at="token",
            blocked_deletions=("projects/b",),
            ignored_files=("projects/a/notes.txt",),
            leader="one",
            at=AT,
        ),
        applied=Applied(id="1", commit=COMMIT, height=7, rewrites=0, digest="d", at=AT),
        suspended=Suspended("me", "why", AT),
        held={"projects/a": Held(COMMIT, "ValidationFailed", (error, FileError("projects/a/data.json", "gone")))},
        live=3,
        receipts=(Receipt(id="agent-0", datacentre="dc1", scope="all", enforced_revision=COMMIT, since=AT),),
        alive=frozenset({"dc1/agent-0"}),
        led=True,
    )


@pytest.mark.parametrize(
    "seen", [Observed(), Observed(reachable=False), observed()], ids=["nothing yet", "etcd away", "everything"]
)
def test_every_status_is_as_described(seen: Observed) -> None:
    document = status_document(seen, PLACE, NOW)
    for shown in (document, narrowed(document, lambda _name: False)):
        schemas.Status.model_validate_json(json.dumps(shown), strict=True)


def test_a_status_that_lacks_a_field_of_the_contract_is_noticed() -> None:
    document = status_document(observed(), PLACE, NOW)
    for name in schemas.Status.model_fields:
        with pytest.raises(ValidationError):
            schemas.Status.model_validate({key: value for key, value in document.items() if key != name})


def test_a_problem_is_as_described() -> None:
    error = FileError("body", "wrong", 3, 1)
    for problem in (ProblemError(409, "conflict", "no"), ProblemError(400, "validation_error", "no", errors=[error])):
        document = schemas.Problem.model_validate_json(problem.text("request-1"), strict=True)
        assert (document.status, document.code, document.request_id) == (problem.status, problem.code, "request-1")


def test_every_code_that_the_api_can_answer_is_in_the_closed_list_and_none_besides() -> None:
    found = set(problems._CODES.values())
    for file in (ROOT / "api").rglob("*.py"):
        found |= {code for node in ast.walk(ast.parse(file.read_text())) for code in codes_of(node)}
    assert {"conflict", "outcome_unknown", "unauthorized"} <= found
    assert found | {"http_error"} == set(get_args(schemas.Code))


def codes_of(node: ast.AST) -> list[str]:
    """The code in a call of ``ProblemError``."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "ProblemError":
        return []
    return [code.value for code in node.args[1:2] if isinstance(code, ast.Constant) and isinstance(code.value, str)]


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (schemas.PolicyAnswer, {"rego": "x"}),
        (schemas.PolicyAnswer, {"rego": "x", "data": {"a": 1.5}}),
        (schemas.PolicyAnswer, {"rego": "x", "data_text": "no json"}),
        (schemas.Alive, {"status": "ok"}),
        (
            schemas.DryRun,
            {"valid": True, "errors": [], "warnings": [], "diff": "", "etag_before": None, "etag_after": "e"},
        ),
    ],
)
def test_every_form_of_an_answer_is_allowed(model: type[Any], document: dict[str, Any]) -> None:
    assert model.model_validate(document, strict=True)
