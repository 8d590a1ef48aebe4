"""The alert rules by promtool, and all queries by a real Prometheus that scrapes a running `regops dev`."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.dev import Dev, until
from fixtures.etcd import free_port

PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "deploy" / "prometheus"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(PROMTOOL is None or PROMETHEUS is None, reason="no prometheus: apt-get install prometheus"),
]

EMPTY = {"Failures by reason"}
"""Panels that may have nothing to show: no pass fails here."""


@pytest.mark.parametrize("file", sorted(path.name for path in RULES.glob("*.test.yml")))
def test_each_alert_fires_when_it_should_and_is_quiet_else(file: str) -> None:
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", file], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_is_one() -> None:
    done = subprocess.run(
        [str(PROMTOOL), "check", "config", str(RULES / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """One that scrapes a dev every second, with the rules of the repository."""

    def __init__(self, folder: Path, dev: Dev) -> None:
        self.port = free_port()
        ready = dev.ready()

        def host(url: str) -> str:
            return url.removeprefix("http://")

        jobs = {
            "regops-server": [host(ready["api"])],
            "regops-agent": [host(url) for url in ready["agents"]],
            "opa": [host(url) for url in ready["opa"]],
        }
        config = yaml.safe_load((RULES / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(RULES / "regops.rules.yml")]
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": jobs[job["job_name"]]}]
        self.before: dict[str, float] = {}
        """What was observed before the commits of these tests."""
        self.config = folder / "prometheus.yml"
        self.config.write_text(yaml.safe_dump(config))
        words = [f"--config.file={self.config}", f"--storage.tsdb.path={folder / 'data'}"]
        words += [f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn"]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(PROMETHEUS), *words], stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()

    def ask(self, path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # it is starting
                return None
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except OSError:
            return None

    def samples(self, query: str) -> list[Any]:
        data = self.ask("query", query=query)
        if data is None:
            return []
        return data["result"] if data["resultType"] == "vector" else [data]


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with Dev(tmp_path_factory.mktemp("monitored"), "--opas", "2") as running:
        until(lambda: running.get("/status")["health"]["status"] == "Healthy")
        yield running


def observed(running: Prometheus, to: str) -> float:
    """How many commits were seen to get there: by each OPA (``enforced``), or by all of them (``everywhere``)."""
    found = running.samples(f'sum(regops_propagation_seconds_count{{to="{to}"}})')
    return float(found[0]["value"][1]) if found else 0.0


@pytest.fixture(scope="module")
def prometheus(dev: Dev, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), dev)
    try:
        until(lambda: len(running.samples("up == 1") or []) == 5, 30, running.log.read_text)
        # The first commit is among them where the OPAs had proven the empty bundle before it.
        running.before = {to: observed(running, to) for to in ("enforced", "everywhere")}
        for number, word in enumerate(("one", "two", "three"), 1):
            dev.push({"policies/projects/monitored/rego.rego": f'package projects.monitored\n\nword := "{word}"\n'})
            until(lambda: [dev.ask("projects/monitored/word", opa=opa) for opa in (0, 1)] == [word, word], 30)  # noqa: B023
            until(lambda: observed(running, "everywhere") >= running.before["everywhere"] + number, 30)  # noqa: B023 the same
        yield running
    finally:
        running.stop()


def panels() -> list[tuple[str, str]]:
    document = json.loads((ROOT / "deploy" / "grafana" / "regops.json").read_text())
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "10s").replace("$datacentre", ".*"))
        for panel in document["panels"]
        for target in panel.get("targets", ())
    ]


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    for title, query in panels():
        found = until(lambda query=query: prometheus.ask("query", query=query) is not None)  # type: ignore[misc]
        assert found, title
        if title not in EMPTY:
            until(lambda query=query: prometheus.samples(query), 45, lambda title=title: title)  # type: ignore[misc]


def test_every_rule_is_evaluated_without_an_error_and_nothing_fires(prometheus: Prometheus) -> None:
    def evaluated() -> Any:
        groups = prometheus.ask("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = until(evaluated, 60)
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}
    # The demonstration has more than one event in it that an operator of a real fleet would want to hear of.
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing <= {"RegopsEtcdWarnings"}, firing


def test_decisions_are_counted_around_their_goal(prometheus: Prometheus) -> None:
    """`regops agent opa-config` sets OPA's buckets: without it there is none at 20 ms."""
    query = 'http_request_duration_seconds_bucket{job="opa",handler="v1/data",le="0.02"}'
    assert until(lambda: prometheus.samples(query), 20)


def test_each_opa_that_has_activated_a_commit_is_counted_beside_the_goal(prometheus: Prometheus) -> None:
    """Real activations: OPA proves nothing during one. How long they take, `make bench` says."""
    assert observed(prometheus, "enforced") - prometheus.before["enforced"] == 6, "three commits, two OPAs"
    assert prometheus.samples('regops_propagation_seconds_bucket{to="enforced",le="0.5"}'), "what the burn rates are of"
    assert prometheus.samples("sum(regops_agent_activation_seconds_count) >= 6")
