"""`regops dev --shards 4` as a user meets it: the router, git, the status, the gateways' configuration."""

import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.dev import Dev, until
from fixtures.questions import ANSWERED, PROJECTS, REFUSED, UNDEFINED, Question, ask

from reconciler.core.shards import shard_of
from regops.cli import main

COUNT = 4


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with Dev(tmp_path_factory.mktemp("dev"), "--shards", str(COUNT)) as running:
        yield running


def rego(project: str, value: str) -> dict[str, str | None]:
    package = "platform" if project == "platform" else f'projects["{project}"]'
    name = "platform" if project == "platform" else f"projects/{project}"
    return {f"policies/{name}/rego.rego": f'package {package}\n\nvalue := "{value}"\n'}


def port(dev: Dev) -> int:
    return int(dev.ready()["router"].rpartition(":")[2])


def value(dev: Dev, project: str) -> object:
    status, body = ask(port(dev), Question(f"/v1/data/projects/{project}/value", project))
    return body.get("result") if status == 200 else None


def activations(dev: Dev) -> list[float]:
    """How many bundles each OPA was sent."""
    found = []
    for agent in dev.ready()["agents"]:
        with urllib.request.urlopen(f"{agent}/metrics", timeout=5) as answer:
            match = re.search(r"^regops_agent_bundles_sent_total (\S+)$", answer.read().decode(), re.MULTILINE)
        assert match is not None
        found.append(float(match[1]))
    return found


def enforced(dev: Dev, commit: str) -> bool:
    agents = dev.get("/status")["agents"]
    return {agent["enforced_revision"] for agent in agents} == {f"main@sha1:{commit}"}


def test_a_change_of_one_project_activates_in_its_shard_and_the_others_receipts_move_on(dev: Dev) -> None:
    first = dev.push(rego("billing", "old"))
    until(lambda: enforced(dev, first))
    status = dev.get("/status")
    assert sorted(agent["scope"] for agent in status["agents"]) == [f"shard:{i}/{COUNT}" for i in range(1, COUNT + 1)]
    assert value(dev, "billing") == "old"
    before = activations(dev)
    second = dev.push(rego("billing", "new"))
    until(lambda: value(dev, "billing") == "new")
    until(lambda: enforced(dev, second))
    more = [now - then for now, then in zip(activations(dev), before, strict=True)]
    assert more == [float(i == shard_of("billing", COUNT)) for i in range(1, COUNT + 1)]
    (owner,) = dev.get("/status/policies/billing")["enforced_by"]
    assert owner["scope"] == f"shard:{shard_of('billing', COUNT)}/{COUNT}"
    assert len(dev.get("/status/policies/platform")["enforced_by"]) == COUNT


def test_the_router_asks_the_shard_of_each_project_and_refuses_what_could_be_read_otherwise(dev: Dev) -> None:
    files = {name: text for project in PROJECTS for name, text in rego(project, project).items()}
    commit = dev.push(files | rego("platform", "all"))
    until(lambda: enforced(dev, commit))
    for question in ANSWERED:
        status, body = ask(port(dev), question)
        assert (status, body) == (200, {"result": question.project or "all"}), question
    for question in UNDEFINED:
        assert ask(port(dev), question) == (200, {}), question
    for question in REFUSED:
        status, body = ask(port(dev), question)
        assert (status, "result" in str(body)) == (question.status, False), question


def test_a_decision_of_any_shard_can_be_tried_on_the_page(dev: Dev) -> None:
    """The server's OPA has one shard of them: it asks through the router."""
    commit = dev.push({name: text for project in PROJECTS for name, text in rego(project, f"try {project}").items()})
    until(lambda: enforced(dev, commit))
    assert len({shard_of(project, COUNT) for project in PROJECTS}) > 1
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(dev.ready()["page"], timeout=5) as answer:
        mark = re.search(r'name="mark" value="([^"]+)"', answer.read().decode())
    assert mark is not None
    for project in PROJECTS:
        fields = urllib.parse.urlencode({"mark": mark[1], "rule": "value", "input": "{}"}).encode()
        url = f"{dev.ready()['api']}/ui/policies/projects/{project}"
        with browser.open(urllib.request.Request(url, fields, {"Origin": dev.ready()["api"]}), timeout=5) as answer:
            assert f"try {project}" in answer.read().decode().partition('class="decision"')[2].partition("</div>")[0], (
                project
            )


def test_the_commands_tell_the_shards_of_this_fleet(dev: Dev) -> None:
    opas = [url.removeprefix("http://") for url in dev.ready()["opa"]]
    for gateway in ("haproxy", "envoy"):
        done = dev.run("shards", gateway)
        assert done.returncode == 0, done.stderr
        for opa in opas:
            assert opa.rpartition(":")[2] in done.stdout, gateway
    assert "regops shards haproxy" in dev.output, "it says what an installation has instead of its router"


def test_a_later_run_with_fewer_opas_does_not_wait_for_those_of_before(tmp_path: Path) -> None:
    """Their receipts stay in etcd, and silent agents would leave the health Unknown for a week."""
    with Dev(tmp_path, "--shards", "3") as shards:
        until(lambda: len(shards.get("/status")["agents"]) == 3)
    with Dev(tmp_path) as one:
        until(lambda: one.get("/status")["health"]["status"] == "Healthy", 20)
        assert [(agent["id"], agent["scope"]) for agent in one.get("/status")["agents"]] == [("agent-0", "all")]


def test_shards_and_opas_exclude_each_other() -> None:
    done = CliRunner().invoke(main, ["dev", "--shards", "2", "--opas", "2"])
    assert done.exit_code == 2
    assert "--opas and --shards exclude each other" in done.output
