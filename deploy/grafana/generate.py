"""Writes regops.json, the Grafana dashboard: python deploy/grafana/generate.py. A test compares both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("regops.json")
_WIDTH: Final = 24
_LEADS: Final = "and on (instance) regops_leader == 1"


@dataclass(frozen=True)
class Panel:
    """One panel. ``queries``: PromQL and legend. ``width`` of 24 columns; ``alarm``: from here on red."""

    title: str
    queries: tuple[tuple[str, str], ...]
    says: str
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    alarm: float | None = None
    low: bool = field(default=False)
    """Whether what is below ``alarm`` is bad instead."""


def quantile(share: float, metric: str, by: str = "", where: str = "") -> str:
    """A quantile of a histogram over the last minutes."""
    labels = f"{{{where}}}" if where else ""
    group = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({group}) (rate({metric}_bucket{labels}[$__rate_interval])))"


def rate(metric: str, by: str, where: str = "") -> str:
    """A counter's rate."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


ROWS: Final[tuple[tuple[str, tuple[Panel, ...]], ...]] = (
    (
        "At a glance",
        (
            Panel(
                "Ready",
                ((f"max(regops_ready {_LEADS})", "ready"),),
                "1: the head of the branch is live.",
                kind="stat",
                width=4,
                alarm=1,
                low=True,
            ),
            Panel(
                "Leaders",
                (("sum(regops_leader)", "leaders"),),
                "1, or one for each etcd cluster.",
                kind="stat",
                width=4,
                alarm=1,
                low=True,
            ),
            Panel(
                "Policies held",
                ((f'sum(regops_policies{{state="held"}} {_LEADS})', "held"),),
                "Versions in Git that do not go live.",
                kind="stat",
                width=4,
                alarm=1,
            ),
            Panel(
                "Deletions that wait",
                ((f"sum(regops_blocked_deletions {_LEADS})", "blocked"),),
                "For a person: regops sync --confirm.",
                kind="stat",
                width=4,
                alarm=1,
            ),
            Panel(
                "OPAs behind or unknown",
                (('sum(regops_fleet_agents{datacentre=~"$datacentre",state=~"behind|unknown"})', "OPAs"),),
                "OPAs that do not prove the applied commit.",
                kind="stat",
                width=4,
                alarm=1,
            ),
            Panel(
                "Fleet lag",
                (("max(regops_fleet_lag_seconds)", "lag"),),
                "Since when something is applied that an OPA which reports does not enforce yet.",
                unit="s",
                kind="stat",
                width=4,
                alarm=30,
            ),
        ),
    ),
    (
        "Propagation",
        (
            Panel(
                "From the trigger to every OPA",
                (
                    (quantile(0.5, "regops_propagation_seconds", "to"), "p50 {{to}}"),
                    (quantile(0.95, "regops_propagation_seconds", "to"), "p95 {{to}}"),
                ),
                "The goal is 500 ms to an OPA's proof (enforced) for 95 %.",
                unit="s",
                width=12,
                alarm=0.5,
            ),
            Panel(
                "OPAs by state",
                (('sum by (state) (regops_fleet_agents{datacentre=~"$datacentre"})', "{{state}}"),),
                "current, behind and unknown add up to all; stale and errors are besides.",
                width=6,
            ),
            Panel(
                "OPAs by commit",
                (("sum by (commit) (regops_fleet_receipts)", "{{commit}}"),),
                "More than one for long is a straggler.",
                width=6,
            ),
            Panel(
                "Activation in OPA",
                ((quantile(0.95, "regops_agent_activation_seconds"), "p95"),),
                "From sending a bundle to OPA's proof: OPA compiles everything that it holds.",
                unit="s",
            ),
            Panel(
                "Agent: reading and building",
                (
                    (quantile(0.95, "regops_agent_read_seconds", "how"), "read p95 {{how}}"),
                    (quantile(0.95, "regops_agent_build_seconds"), "build p95"),
                ),
                "What regops adds at the agent.",
                unit="s",
            ),
            Panel(
                "Agents in trouble",
                (
                    ("sum(regops_agent_stale)", "stale"),
                    ("sum(increase(regops_agent_refusals_total[$__rate_interval]))", "bundles refused"),
                    ("sum by (of) (increase(regops_agent_store_errors_total[$__rate_interval]))", "etcd: {{of}}"),
                ),
                "Agents without etcd, and OPAs that refuse their bundle.",
            ),
        ),
    ),
    (
        "Passes",
        (
            Panel(
                "Passes by outcome",
                ((rate("regops_passes_total", "outcome"), "{{outcome}}"),),
                "unchanged is the rule; transient and stalled are not.",
                unit="ops",
            ),
            Panel(
                "Stages",
                ((quantile(0.95, "regops_stage_seconds", "stage"), "p95 {{stage}}"),),
                "Of passes that wrote.",
                unit="s",
            ),
            Panel(
                "Failures by reason",
                ((rate("regops_pass_failures_total", "reason"), "{{reason}}"),),
                "docs/operations.md has the remedy of each reason.",
                unit="ops",
            ),
            Panel(
                "Conditions",
                ((f"max by (type) (regops_condition {_LEADS})", "{{type}}"),),
                "1 while true; only Ready should be.",
            ),
            Panel(
                "Triggers",
                ((rate("regops_triggers_total", "kind"), "{{kind}}"),),
                "What made the leader look.",
                unit="ops",
            ),
            Panel(
                "Somebody else's hand in etcd",
                (
                    ("sum(increase(regops_drift_healed_total[$__rate_interval]))", "healed"),
                    (f"max(regops_foreign_keys {_LEADS})", "foreign keys"),
                    ("sum(increase(regops_watch_restarts_total[$__rate_interval]))", "watch restarts"),
                    ("sum(increase(regops_mirror_restarts_total[$__rate_interval]))", "mirror restarts"),
                ),
                "Nobody but the servers should write there.",
            ),
        ),
    ),
    (
        "API and decisions",
        (
            Panel(
                "Requests",
                ((rate("regops_api_requests_total", "status"), "{{status}}"),),
                "By status.",
                unit="reqps",
            ),
            Panel(
                "Time to answer",
                ((quantile(0.95, "regops_api_request_seconds", "route"), "p95 {{route}}"),),
                "By route.",
                unit="s",
            ),
            Panel(
                "Writes",
                (
                    ("sum(rate(regops_commits_total[$__rate_interval]))", "commits"),
                    (rate("regops_pushes_total", "result"), "pushes {{result}}"),
                    (quantile(0.95, "regops_push_seconds"), "push p95 (s)"),
                ),
                "Commits by writes over the API, and pushes to the Git remote.",
            ),
            Panel(
                "Webhooks",
                ((rate("regops_hooks_total", "provider, result"), "{{provider}} {{result}}"),),
                "By what they came to.",
                unit="ops",
            ),
            Panel(
                "Decisions of the OPAs",
                (
                    (
                        quantile(0.95, "http_request_duration_seconds", where='job="opa",handler="v1/data"'),
                        "p95",
                    ),
                ),
                "The goal is 20 ms for 95 %.",
                unit="s",
                alarm=0.02,
            ),
            Panel(
                "Error budgets, burn rate over an hour",
                (
                    ("regops:api_errors:ratio_rate1h / 0.001", "API"),
                    ("regops:propagation_slow:ratio_rate1h / 0.05", "propagation"),
                    ("regops:decisions_slow:ratio_rate1h / 0.05", "decisions"),
                ),
                "1 spends the budget just in time; from 14.4 on somebody is paged.",
                alarm=14.4,
            ),
        ),
    ),
    (
        "etcd and the record",
        (
            Panel(
                "etcd's size",
                (("max(regops_etcd_db_size_bytes)", "size"), ("max(regops_etcd_quota_bytes)", "quota")),
                "At its quota etcd takes no writes any more.",
                unit="bytes",
            ),
            Panel(
                "etcd needs attention",
                (("max by (kind) (regops_etcd_warnings)", "{{kind}}"), ("max(regops_etcd_alarms)", "alarms")),
                "The servers' logs say what.",
                alarm=1,
            ),
            Panel(
                "Record lag",
                (("max(regops_record_lag_seconds)", "versions"), (quantile(0.95, "regops_record_seconds"), "p95")),
                "Policies do not wait for it.",
                unit="s",
                alarm=300,
            ),
            Panel(
                "What waits for MongoDB",
                (
                    ("max(regops_record_pending_passes)", "passes"),
                    ("max(regops_receipts_pending)", "receipts"),
                    ("sum(regops_audit_pending)", "audit events"),
                ),
                "Queues are bounded; what overflows is counted.",
            ),
            Panel(
                "Audit",
                (
                    (rate("regops_audit_events_total", "action"), "{{action}}"),
                    ("sum(increase(regops_audit_failures_total[$__rate_interval]))", "not written"),
                ),
                "Events written to the logs.",
            ),
            Panel(
                "Streams of events",
                (("sum(regops_event_listeners)", "listeners"),),
                "Pages and `regops status --watch`.",
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The whole document, for Grafana 9 and later."""
    return {
        "title": "regops",
        "uid": "regops",
        "tags": ["regops", "opa"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    yield {
        "name": "datacentre",
        "type": "query",
        "label": "Datacentre",
        "datasource": _SOURCE,
        "query": {"query": "label_values(regops_fleet_agents, datacentre)", "refId": "datacentre"},
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }


_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in ROWS:
        number += 1
        place = {"h": 1, "w": _WIDTH, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        top, left, high = top + 1, 0, 0
        for panel in panels:
            height = 4 if panel.kind == "stat" else 8
            if left + panel.width > _WIDTH:
                top, left, high = top + high, 0, 0
            number += 1
            yield _panel(panel, number, {"h": height, "w": panel.width, "x": left, "y": top})
            left, high = left + panel.width, max(high, height)
        top += high


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    bad, good = ("green", "red") if panel.low else ("red", "green")
    steps: list[dict[str, Any]] = [{"color": good, "value": None}]
    if panel.alarm is not None:
        steps.append({"color": bad, "value": panel.alarm})
    custom = {"thresholdsStyle": {"mode": "line" if panel.alarm is not None else "off"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": {"mode": "absolute", "steps": steps},
                **({"custom": custom} if panel.kind == "timeseries" else {}),
            },
            "overrides": [],
        },
        "targets": [
            {"refId": chr(65 + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """What is committed."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
