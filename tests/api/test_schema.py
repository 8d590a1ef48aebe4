"""schemathesis over the OpenAPI document: no server error, and no answer that the document does not tell."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import schemathesis
from fixtures.replicas import Replica
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.core.result import Ok

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The server's own jitter moves the global random state beside hypothesis.
    pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies"),
]

EXAMPLES = 12
"""Requests for each operation, and as many again with a mistake in them."""
LEFT_OUT = {("post", "/admin/suspend"), ("get", "/events")}
"""What would stop the others, and a stream without an end (`test_observation.py` has its documents)."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def run(operation: Any, mode: GenerationMode, headers: dict[str, str], seen: list[int]) -> None:
    """In a thread: schemathesis is synchronous, and the server runs in the loop of the test."""

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def attempt(case: Any) -> None:
        response = case.call(headers=headers)
        seen.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    attempt()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_every_answer_to_generated_requests_is_documented_and_none_is_a_server_error(
    recorded: Replica, mode: GenerationMode
) -> None:
    await recorded.call("POST", "/admin/resume")
    schema = schemathesis.openapi.from_dict((await recorded.get("/openapi.json")).body)
    schema.config.update(base_url=recorded.url)
    seen: list[int] = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if (operation.method, operation.path) in LEFT_OUT:
            continue
        await asyncio.to_thread(run, operation, mode, {"Authorization": f"Bearer {recorded.admin}"}, seen)
    assert {200, 400}.issubset(seen) or mode is GenerationMode.POSITIVE
    assert 200 in seen
