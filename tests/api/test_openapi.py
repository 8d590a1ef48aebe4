"""The OpenAPI document: valid, whole, and in step with the code it describes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from api import schemas
from api.contract import operations
from api.envelope import OPEN
from api.hook_proofs import PROVIDERS
from api.openapi import document

METHODS_THAT_WRITE = {"put", "patch", "delete"}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document("1.2.3")


def rows(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_the_document_is_valid_openapi_3_1(described: dict[str, Any]) -> None:
    jsonschema_rs.validator_for(OPENAPI_31).validate(json.loads(json.dumps(described)))
    assert described["info"]["version"] == "1.2.3"


def test_a_document_with_a_mistake_would_be_noticed() -> None:
    broken = document("1.2.3")
    broken["paths"]["/status"]["get"]["parameters"] = [{"name": "x", "in": "nowhere"}]
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validator_for(OPENAPI_31).validate(broken)


def test_every_reference_leads_to_a_schema_and_every_schema_is_used(described: dict[str, Any]) -> None:
    named = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(described)))
    assert named == set(described["components"]["schemas"])


def test_every_schema_is_a_schema_and_says_what_it_is(described: dict[str, Any]) -> None:
    for name, schema in described["components"]["schemas"].items():
        whole = {**schema, "components": described["components"]}
        jsonschema_rs.Draft202012Validator(whole)
        assert schema["description"], name


def test_what_is_said_once_has_one_name(described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in rows(described)]
    assert len(names) == len(set(names)) == len(operations())


def test_open_routes_are_those_that_need_no_token(described: dict[str, Any]) -> None:
    found = {path for _, path, operation in rows(described) if operation.get("security") == []}
    assert found == OPEN
    for _, path, operation in rows(described):
        assert ("401" in operation["responses"]) is (path not in OPEN or path.startswith("/hooks/")), path


def test_every_problem_is_a_problem_and_every_answer_has_the_requests_id(described: dict[str, Any]) -> None:
    for _, path, operation in rows(described):
        for status, answer in operation["responses"].items():
            assert answer["headers"]["X-Request-ID"]["required"] is True
            if int(status) >= 400 and path != "/readyz":
                schema = answer["content"]["application/problem+json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}


def test_codes_in_the_descriptions_are_codes(described: dict[str, Any]) -> None:
    found = set()
    for _, path, operation in rows(described):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path != "/readyz":
                found |= set(re.findall(r"`(\w+)`", answer["description"].partition(":")[0]))
    assert found == set(get_args(schemas.Code)) - {"expectation_failed", "http_error", "internal_error"}


def test_writes_take_preconditions_and_a_key_and_tell_what_came_of_it(described: dict[str, Any]) -> None:
    for method, path, operation in rows(described):
        if method not in METHODS_THAT_WRITE or ("204" not in operation["responses"] and method == "delete"):
            continue
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {"If-Match", "If-None-Match", "Idempotency-Key", "wait", "timeout", "dry_run"} <= names, path
        assert {"409", "428"} <= set(operation["responses"]), path
        assert "ETag" in operation["responses"]["409"]["headers"]
        for status in {"200", "201", "204"} & set(operation["responses"]):
            answer = operation["responses"][status]
            if status != "200" or method != "delete":
                assert {"Policy-Commit", "Policy-Sync", "Idempotent-Replay"} <= set(answer["headers"]), (path, status)


def test_whoever_shall_come_again_is_told_when(described: dict[str, Any]) -> None:
    for _, path, operation in rows(described):
        for status in {"429", "503", "504"} & set(operation["responses"]):
            if path != "/readyz":
                assert "Retry-After" in operation["responses"][status]["headers"], (path, status)


@pytest.mark.parametrize(
    ("name", "body", "valid"),
    [
        ("PolicyBody", {"rego": "x"}, True),
        ("PolicyBody", {"rego": "x", "data": {}}, True),
        ("PolicyBody", {"rego": "x", "data": None}, False),
        ("PolicyBody", {"data": {}}, False),
        ("PolicyBody", {"rego": "x", "more": 1}, False),
        ("PolicyAnswer", {"rego": "x", "data_text": "y"}, True),
        ("SyncBody", {}, True),
        ("SyncBody", {"remove_foreign": "yes"}, False),
        ("ConfirmBody", {"commit": "abcdef0"}, True),
        ("ConfirmBody", {}, False),
        ("Alive", {"status": "ok"}, True),
        ("Problem", {"code": "new_word"}, False),
    ],
)
def test_the_schemas_allow_what_the_server_takes(
    described: dict[str, Any], name: str, body: dict[str, Any], *, valid: bool
) -> None:
    whole = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
    assert jsonschema_rs.Draft202012Validator(whole).is_valid(body) is valid


def test_bodies_are_required_where_an_empty_one_is_refused(described: dict[str, Any]) -> None:
    required = {
        operation["operationId"]: operation["requestBody"]["required"]
        for _, _, operation in rows(described)
        if "requestBody" in operation
    }
    assert {name for name, needed in required.items() if not needed} == {
        "sync",
        "suspend",
        "rollback_platform",
        "rollback_project",
        *(f"hook_{name}" for name in PROVIDERS),
    }
