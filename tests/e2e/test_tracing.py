"""One trace from a write over the API, or from a webhook, to the OPA that enforces it; across real processes."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.collector import Collector, Spanned
from fixtures.dev import Dev, git, until

WAY = {"regops.pass", "regops.fetch", "regops.validate", "regops.apply", "etcd.txn", "regops.agent.read"}
WAY |= {"regops.agent.serve", "opa.activate", "PUT /policies/{project}"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Dev]:
    environment = {"REGOPS_TRACING_ENDPOINT": collector.url}
    with Dev(tmp_path_factory.mktemp("traced"), environment=environment) as running:
        until(lambda: running.get("/status")["health"]["status"] == "Healthy")
        yield running


def send(dev: Dev, method: str, path: str, body: Any, **headers: str) -> Any:
    request = urllib.request.Request(f"{dev.ready()['api']}{path}", json.dumps(body).encode(), method=method)
    request.add_header("Content-Type", "application/json")
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    with urllib.request.urlopen(request, timeout=15) as answer:
        return answer.headers


def whole(collector: Collector, trace: str) -> dict[str, Spanned]:
    found = until(lambda: (spans := collector.of(trace)).keys() >= WAY and spans, 15, lambda: collector.of(trace))
    return {name: spans[0] for name, spans in found.items()}


def above(spans: dict[str, Spanned], name: str) -> list[str]:
    """The names from a span up to the one that began."""
    by_id = {each.id: each for each in spans.values()}
    found, at = [], spans[name]
    while at.parent in by_id:
        at = by_id[at.parent]
        found.append(at.name)
    return found


def test_a_write_is_one_trace_from_the_request_to_opas_proof(dev: Dev, collector: Collector) -> None:
    trace = "a" * 31 + "1"
    token = dev.ready()["tokens"]["admin"]
    headers = send(
        dev,
        "PUT",
        "/policies/traced?wait=active",
        {"rego": "package projects.traced\n\nallow := true\n"},
        traceparent=f"00-{trace}-{'b' * 16}-01",
        Authorization=f"Bearer {token}",
    )
    spans = whole(collector, trace)
    put = spans["PUT /policies/{project}"]
    assert (put.parent, put.attributes["http.response.status_code"]) == ("b" * 16, 201)
    assert above(spans, "regops.pass") == ["PUT /policies/{project}"]
    assert above(spans, "etcd.txn") == ["regops.apply", "regops.pass", "PUT /policies/{project}"]
    assert above(spans, "opa.activate") == ["regops.apply", "regops.pass", "PUT /policies/{project}"]
    assert {spans[name].service for name in ("regops.pass", put.name)} == {"regops-server"}
    assert spans["opa.activate"].service == "regops-agent"
    assert spans["opa.activate"].attributes["vcs.ref.head.revision"] == headers["Policy-Commit"]
    message = git("log", "-1", "--format=%B", headers["Policy-Commit"], folder=dev.folder / "state/git/policies.git")
    assert f"Trace-Parent: 00-{trace}-{put.id}-01" in message
