"""The documents say what the code does: each setting, command, metric, condition and reason, and every link leads
somewhere."""

import ast
import inspect
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from api import openapi, problems
from api.app import routes
from reconciler import metrics
from reconciler.core import conditions
from reconciler.settings import NO_SETTINGS, setting_names
from regops import cli_doc, settings_doc

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "policies-example").rglob("*.md")])
NO_REASONS = {"EtcdStore", "GitSource", "OpaCompiler", "PolicyName", "ToolError"}
NO_REASONS |= {"MongoAudit", "MongoDatabase", "MongoReceipts", "MongoVersions", "RetryableWriteError"}
"""Words of this form in the code that are names of types."""


def test_the_settings_page_is_what_the_settings_say() -> None:
    assert (DOCS / "settings.md").read_text() == settings_doc.document(), "run: python -m regops.settings_doc"


def test_the_commands_page_is_what_their_help_says() -> None:
    assert (DOCS / "cli.md").read_text() == cli_doc.document(), "run: python -m regops.cli_doc"


def test_every_variable_that_the_code_knows_is_in_the_settings_page() -> None:
    page = (DOCS / "settings.md").read_text()
    sources = [file.read_text() for folder in ("regops", "api", "reconciler") for file in (ROOT / folder).rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"REGOPS_[A-Z]+(?:_[A-Z]+)*\b(?!_)", text)}
    assert named >= NO_SETTINGS
    assert sorted(name for name in named | set(setting_names().values()) if f"`{name}`" not in page) == []


def metric_objects() -> list[MetricWrapperBase]:
    """Every metric, as a process begins with it."""
    found = []
    for _, kind in inspect.getmembers(
        metrics, lambda kind: inspect.isclass(kind) and kind.__module__ == metrics.__name__
    ):
        if issubclass(kind, MetricWrapperBase):
            continue
        found += [each for each in vars(kind(CollectorRegistry())).values() if isinstance(each, MetricWrapperBase)]
    return found


def metric_name(metric: MetricWrapperBase) -> str:
    """As Prometheus shows it."""
    return f"{metric._name}_total" if metric._type == "counter" else f"{metric._name}"


def metric_families() -> dict[str, tuple[tuple[str, ...], str]]:
    """Every metric: its labels and its help."""
    return {metric_name(metric): (metric._labelnames, metric._documentation) for metric in metric_objects()}


@pytest.mark.parametrize("name", metric_families())
def test_every_metric_has_its_row_with_its_labels_and_their_values(name: str) -> None:
    labels, says = metric_families()[name]
    rows = [line for line in OPERATIONS.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1, "docs/operations.md, Metrics: one row for each"
    told = rows[0].split("|")[2].strip()
    assert re.findall(r"`(\w+)`", told) == list(labels)
    values = re.search(r": ((?:[a-z_]+, )+[a-z_]+)", says)
    if values and labels:
        assert told.partition(": ")[2] == values[1]


def test_no_row_tells_of_a_metric_that_is_not_there() -> None:
    assert set(re.findall(r"^\| `(regops_\w+)` \|", OPERATIONS, re.MULTILINE)) == metric_families().keys()


def test_every_condition_has_its_row() -> None:
    types = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    section = OPERATIONS.partition("\n## Conditions\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == types


def reasons() -> dict[str, Path]:
    """Every reason in the code: what is passed as ``reason``, and every other word of that form."""
    found: dict[str, Path] = {}
    for file in (file for folder in ("regops", "api", "reconciler") for file in (ROOT / folder).rglob("*.py")):
        if "_pb" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                words = [node.value]
            elif isinstance(node, ast.Constant) and re.fullmatch(r"(?:[A-Z][a-z]+){2,}", str(node.value)):
                words = [node]
            else:
                continue
            found |= {str(word.value): file for word in words if isinstance(word, ast.Constant) and word.value}
    return found


def test_every_reason_has_a_remedy() -> None:
    assert {"NoCommit", "Timeout", "TooManyDeletions"} <= reasons().keys(), "they are found"
    missing = {reason: file.name for reason, file in reasons().items() if f"`{reason}`" not in OPERATIONS}
    words = {reason: name for reason, name in missing.items() if f" {reason} " not in OPERATIONS}
    assert {reason: name for reason, name in words.items() if reason not in NO_REASONS} == {}


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(goal), f"{page.name}: {target}"


def test_every_decision_is_in_the_table_of_decisions() -> None:
    table = (DOCS / "adr" / "README.md").read_text()
    files = {file.name for file in (DOCS / "adr").glob("0*.md")}
    assert set(re.findall(r"^\| \[\d{4}\]\(([^)]+)\)", table, re.MULTILINE)) == files


def test_every_make_target_that_the_documents_name_exists() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make ([a-z-]+)", listed, re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert named - targets == set()


def test_every_command_that_the_documents_name_exists_with_its_options() -> None:
    sections = dict(re.findall(r"^## (regops.*)\n((?:(?!## ).*\n)*)", (DOCS / "cli.md").read_text(), re.MULTILINE))
    for page in PAGES:
        for command, rest in re.findall(
            r"(?:`|^    )(?:\S*/)?regops ([a-z]+)([^`\n#]*)", page.read_text(), re.MULTILINE
        ):
            texts = [text for name, text in sections.items() if f"{name} ".startswith(f"regops {command} ")]
            assert texts, f"{page.name}: there is no `regops {command}`"
            unknown = [
                word for word in re.findall(r"(?<!\S)--[a-z-]+", rest) if not any(word in text for text in texts)
            ]
            assert unknown == [], f"{page.name}: `regops {command}` does not have this"


API = (ROOT / "docs/api.md").read_text()


def problem_codes() -> set[str]:
    """Every code that a `ProblemError` is raised with, and those of the table."""
    found = set(problems._CODES.values())
    for file in (ROOT / "api").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ProblemError" and len(node.args) > 1:
                code = node.args[1]
                if isinstance(code, ast.Constant):
                    found.add(str(code.value))
    return found


@pytest.mark.parametrize("code", sorted(problem_codes()))
def test_every_problem_has_its_row(code: str) -> None:
    assert re.search(rf"^\| \d+ \| `{code}` \| .", API, re.MULTILINE), f"docs/api.md, Problems: a row for {code}"


def test_no_row_tells_of_a_problem_that_is_not_there() -> None:
    assert set(re.findall(r"^\| \d+ \| `(\w+)` \|", API, re.MULTILINE)) == problem_codes()


def test_every_route_of_the_api_is_told() -> None:
    for route in routes():
        assert f"{route.method} {route.path}`" in API or f"{route.method} {route.path}`," in API, route


@pytest.mark.parametrize("header", openapi._HEADERS)
def test_every_answer_header_is_told(header: str) -> None:
    assert header in API
