"""Alert rules and the dashboard name what there is: metrics, labels, runbooks; every alert has its unit tests."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_docs import metric_families, metric_name, metric_objects

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
OTHERS: dict[str, set[str]] = {
    "up": {"job", "instance"},
    "http_request_duration_seconds": {"job", "handler", "code", "method", "instance"},
}
"""Metrics of Prometheus and of OPA."""
EVERYWHERE = {"instance", "job", "cluster", "le"}
WORDS = {
    "sum",
    "by",
    "on",
    "rate",
    "increase",
    "max",
    "min",
    "absent",
    "time",
    "and",
    "histogram_quantile",
    "count",
    "or",
    "vector",
}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((PROMETHEUS / "regops.rules.yml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def known() -> dict[str, set[str]]:
    """Series by name, with the labels that they may have."""
    found: dict[str, set[str]] = dict(OTHERS)
    for name, (labels, _) in metric_families().items():
        found[name] = set(labels)
    histograms = {metric_name(metric) for metric in metric_objects() if metric._type == "histogram"}
    histograms.add("http_request_duration_seconds")
    for name in histograms:
        found |= {f"{name}{suffix}": found[name] for suffix in ("_bucket", "_count", "_sum")}
    return found | {rule["record"]: set() for rule in rules() if "record" in rule}


def named(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every series of an expression, with the labels that it asks for; labels of aggregations by the name ``by``."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?", re.sub(r"\b(by|on) ?\([^)]*\)", " ", bare)):
        name, selector = match[1], match[2] or ""
        if name in WORDS or name.startswith("__") or (not selector and "_" not in name and name != "up"):
            continue
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
    for group in re.findall(r"\bby \(([^)]*)\)", bare):
        yield "by", {label.strip() for label in group.split(",")}


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield str(rule.get("alert") or rule.get("record")), rule["expr"]
    for panel in json.loads((GRAFANA / "regops.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$datacentre", ".*")


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_query_names_metrics_and_labels_that_there_are(where: str, expression: str) -> None:
    series, of_query = known(), set[str]()
    asked = list(named(expression))
    assert any(name != "by" for name, _ in asked), where
    for name, labels in asked:
        if name == "by":
            assert labels <= of_query | EVERYWHERE, f"{where}: by {labels - of_query - EVERYWHERE}"
            continue
        assert name in series, f"{where}: {name} is no metric"
        assert labels <= series[name] | EVERYWHERE, f"{where}: {name} has no {labels - series[name]}"
        of_query |= series[name]


def test_a_query_of_a_metric_that_is_gone_would_be_noticed() -> None:
    assert dict(named('sum by (x) (rate(regops_gone_total{y="1"}[5m]))')) == {"regops_gone_total": {"y"}, "by": {"x"}}
    assert "regops_gone_total" not in known()


def test_only_histograms_have_buckets() -> None:
    assert "regops_propagation_seconds_bucket" in known()
    assert "regops_fleet_lag_seconds_bucket" not in known(), "a gauge"


MANY = {"regops_api_requests_total"}
"""Counters with too many series to begin all of them with the process: routes, methods, statuses."""


def test_what_an_alert_counts_is_there_before_it_happens_for_the_first_time() -> None:
    """`increase` does not see the first event of a series that begins with it: the first refused webhooks, and the
    first failed pushes, were no events."""
    samples = {
        (sample.name, tuple(sample.labels.items()))
        for metric in metric_objects()
        for family in metric.collect()
        for sample in family.samples
    }
    for name, rule in alerts().items():
        for series, selector in re.findall(r"increase\((regops_\w+)(?:\{([^}]*)\})?\[", rule["expr"]):
            wanted = re.findall(r'(\w+)(=~|=)"([^"]*)"', selector)
            found = [
                dict(labels)
                for sample, labels in samples
                if sample == series and all(re.fullmatch(value, dict(labels).get(key, "")) for key, _, value in wanted)
            ]
            assert found or series in MANY, f"{name}: {series}{{{selector}}}"


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_it_means_and_where_its_runbook_is(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
    file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_every_runbook_section_has_its_alert() -> None:
    headings = re.findall(r"^## (Regops\w+)$", (ROOT / "docs" / "runbooks" / "alerts.md").read_text(), re.MULTILINE)
    assert set(headings) == {name for name in alerts() if "Budget" not in name}


def test_the_operators_page_names_every_alert_and_no_other() -> None:
    """It once listed expressions that no rule had."""
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(Regops\w+)`", page))
    assert named == {name for name in alerts() if "Budget" not in name} | {n for n in alerts() if "BudgetFast" in n}
    for file in PROMETHEUS.glob("*.test.yml"):
        assert file.name in page


def test_every_window_that_is_recorded_is_looked_at() -> None:
    """Two were recorded for alerts that nobody had written."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for rule in alerts().values() for name, _ in named(rule["expr"])}
    assert recorded <= asked


def test_every_alert_has_a_unit_test_of_what_fires_it_and_of_what_does_not() -> None:
    """They are run by promtool: `make test-system`."""
    tests = [test for file in PROMETHEUS.glob("*.test.yml") for test in yaml.safe_load(file.read_text())["tests"]]
    found: dict[str, set[bool]] = {}
    for test in tests:
        (query,) = test["promql_expr_test"]
        name = re.search(r'alertname="(\w+)"', query["expr"])
        assert name is not None
        found.setdefault(name[1], set()).add(bool(query["exp_samples"]))
    assert found == {name: {True, False} for name in alerts()}


def test_the_dashboard_is_what_its_generator_writes() -> None:
    """Otherwise: python deploy/grafana/generate.py."""
    made = runpy.run_path(str(GRAFANA / "generate.py"))["text"]()
    assert (GRAFANA / "regops.json").read_text() == made


def test_panels_do_not_lie_on_each_other() -> None:
    panels = json.loads((GRAFANA / "regops.json").read_text())["panels"]
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= own
    assert len({panel["id"] for panel in panels}) == len(panels)
