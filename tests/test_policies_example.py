"""The example policy repository and the guide for its authors, judged by a real OPA."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import yaml

from reconciler.core.model import DATA_FILE, PLATFORM, REGO_FILE, PolicyName, package_of, policy_name
from regops.checking.markdown import MARK

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "policies-example"
POLICIES: Final = EXAMPLE / "policies"
GUIDE: Final = ROOT / "docs" / "policy-authors.md"
NAMES: Final = tuple(
    policy_name(folder.relative_to(POLICIES).as_posix())
    for folder in [POLICIES / "platform", *sorted((POLICIES / "projects").iterdir())]
)
REFUSED_BUILTINS: Final = {("http", "send"), ("opa", "runtime"), ("net", "lookup_ip_addr")}

# The change that the README tells, and that `regops dev --once` pushes to show a decision flip.
DEMO_FILE: Final = Path("projects/billing/rego.rego")
DEMO_OLD: Final = "refund_window_days := 30"
DEMO_NEW: Final = "refund_window_days := 14"
DEMO_QUERY: Final = "data.projects.billing.authz.allow"
DEMO_INPUT: Final = {
    "claims": {"sub": "ann", "roles": ["billing_agent"], "project": "billing"},
    "action": "refund",
    "refund": {"amount": 40, "currency": "EUR", "age_days": 20, "sold_by": "bob"},
}


@pytest.fixture(scope="module")
def opa_binary() -> str:
    local = ROOT / ".tools" / "bin" / "opa"
    found = os.environ.get("REGOPS_OPA") or (str(local) if local.exists() else shutil.which("opa"))
    assert found, "no opa: `make setup` builds it, REGOPS_OPA names another"
    return found


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def succeed(*arguments: str | Path, stdin: str = "") -> str:
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def decide(opa: str, policies: Path) -> object:
    answer = succeed(opa, "eval", "--bundle", policies, "--stdin-input", DEMO_QUERY, stdin=json.dumps(DEMO_INPUT))
    return json.loads(answer)["result"][0]["expressions"][0]["value"]


def syntax_tree(opa: str, file: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(succeed(opa, "parse", "--format", "json", file))
    return tree


def package(tree: dict[str, Any]) -> tuple[str, ...]:
    return tuple(term["value"] for term in tree["package"]["path"][1:])


def references(node: Any) -> Iterator[tuple[str | None, ...]]:
    """Every reference below a node of OPA's syntax tree; a segment known only at run time is ``None``."""
    if isinstance(node, dict):
        if node.get("type") == "ref":
            head, *rest = node["value"]
            # What a call or comprehension gives can be looked into as well: clock(…)[0] has no name at its head.
            yield (
                head["value"] if head["type"] == "var" else None,
                *(term["value"] if term["type"] == "string" else None for term in rest),
            )
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def offences(tree: dict[str, Any], policy: PolicyName) -> list[str]:
    """What the namespace rule refuses in a module; a small second opinion, independent of the validator."""
    own = package_of(policy)
    found = [] if package(tree)[: len(own)] == own else [f"package {package(tree)}"]
    for head, *path in references({key: value for key, value in tree.items() if key != "package"}):
        mine = tuple(path[: len(own)]) == own or path[:1] == ["platform"]
        if (head == "data" and not mine) or (head, *path) in REFUSED_BUILTINS:
            found.append(f"reads {head}{path}")
    return found


def rego_samples() -> list[Any]:
    """The guide's Rego samples with their line numbers; the first line of each says whose it is or who refuses it."""
    text = GUIDE.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```rego\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    numbered = [(text.count("\n", 0, block.start()) + 2, block.group(1)) for block in blocks]
    return [pytest.param(line, sample, id=f"line {line}") for line, sample in numbered]


def test_the_example_is_formatted(opa_binary: str) -> None:
    assert not succeed(opa_binary, "fmt", "--list", "--fail", POLICIES)


def test_the_example_compiles_without_a_warning(opa_binary: str) -> None:
    assert not succeed(opa_binary, "check", "--strict", "--bundle", POLICIES)


def test_every_policy_has_unit_tests_and_all_of_them_pass(opa_binary: str) -> None:
    results = json.loads(succeed(opa_binary, "test", "--bundle", POLICIES, "--format", "json"))
    assert [result["name"] for result in results if result.get("fail") or result.get("error")] == []
    tested = {Path(result["location"]["file"]).relative_to(POLICIES).parent.as_posix() for result in results}
    assert tested == set(NAMES)


def test_the_unit_tests_reach_every_line(opa_binary: str) -> None:
    succeed(opa_binary, "test", "--bundle", POLICIES, "--coverage", "--threshold", "100")


def test_the_example_has_a_platform_and_several_projects_one_with_a_hyphen() -> None:
    assert PLATFORM in NAMES
    assert len(NAMES) >= 4
    assert any("-" in name for name in NAMES)


def test_nothing_of_the_example_would_be_ignored_by_surprise() -> None:
    expected = {f"{name}/{file}" for name in NAMES for file in (REGO_FILE, DATA_FILE, "rego_test.rego")}
    assert {file.relative_to(POLICIES).as_posix() for file in POLICIES.rglob("*") if file.is_file()} == expected


@pytest.mark.parametrize("file", [REGO_FILE, "rego_test.rego"])
@pytest.mark.parametrize("name", NAMES)
def test_a_policy_stays_in_its_own_tree(opa_binary: str, name: PolicyName, file: str) -> None:
    assert offences(syntax_tree(opa_binary, POLICIES / name / file), name) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_uses_its_own_data_and_the_platforms(opa_binary: str, name: PolicyName) -> None:
    tree = syntax_tree(opa_binary, POLICIES / name / REGO_FILE)
    data = json.loads((POLICIES / name / DATA_FILE).read_text(encoding="utf-8"))
    read = {reference[1:] for reference in references(tree) if reference[0] == "data"}
    assert any(path[:1] == ("platform",) for path in read)
    own = package_of(name)
    used = {path[len(own)] for path in read if path[: len(own)] == own and len(path) > len(own)}
    if name != PLATFORM:
        assert data.keys() <= used, "data that no rule reads misleads the reader"


@pytest.mark.parametrize("name", NAMES)
def test_no_data_key_is_a_package_or_rule(opa_binary: str, name: PolicyName) -> None:
    data = json.loads((POLICIES / name / DATA_FILE).read_text(encoding="utf-8"))
    packages = {package(syntax_tree(opa_binary, file)) for file in (POLICIES / name).glob("*.rego")}
    taken = {segments[len(package_of(name))] for segments in packages}
    assert data.keys() & taken == set()


def test_the_demo_change_flips_the_decision_and_breaks_no_test(opa_binary: str, tmp_path: Path) -> None:
    changed = tmp_path / "policies"
    shutil.copytree(POLICIES, changed)
    text = (changed / DEMO_FILE).read_text(encoding="utf-8")
    assert text.count(DEMO_OLD) == 1

    assert decide(opa_binary, changed) is True
    (changed / DEMO_FILE).write_text(text.replace(DEMO_OLD, DEMO_NEW), encoding="utf-8")
    assert decide(opa_binary, changed) is False
    succeed(opa_binary, "check", "--strict", "--bundle", changed)
    succeed(opa_binary, "test", "--bundle", changed)


def test_the_readme_tells_the_demo_change() -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert f"`{DEMO_OLD}`" in readme
    assert (POLICIES / DEMO_FILE).relative_to(EXAMPLE).as_posix() in readme
    assert all(f"/v1/data/{'/'.join(package_of(name))}/authz/allow" in readme for name in NAMES)


def workflow_commands() -> dict[str, list[str]]:
    """What the workflow of each Git host runs, by its file."""
    found = {}
    for name in (".github/workflows/policies.yaml", ".gitea/workflows/policies.yaml"):
        workflow = yaml.safe_load((EXAMPLE / name).read_text(encoding="utf-8"))
        # YAML 1.1 reads the key `on` as true. No path filter: a required check that does not run blocks the merge.
        assert workflow[True]["pull_request"] is None
        steps = workflow["jobs"]["policies"]["steps"]
        assert steps[0]["with"]["fetch-depth"] == 0, "there is nothing to compare with in a shallow clone"
        found[name] = [step["run"] for step in steps if "run" in step]
    job = yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text(encoding="utf-8"))["policies"]
    assert job["variables"]["GIT_DEPTH"] == "0"
    found[".gitlab-ci.yml"] = [*job["before_script"], *job["script"], *job["after_script"]]
    return found


BASES: Final = {
    ".github/workflows/policies.yaml": {"BASE": "HEAD^1"},
    ".gitea/workflows/policies.yaml": {"BASE": "origin/main"},
    ".gitlab-ci.yml": {"CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main"},
}


def test_each_hosts_base_is_the_branch_as_it_is_merged_with() -> None:
    """`pull_request.base.sha` is the branch as it was when the event was made, not the base of what is checked out."""
    named = [(EXAMPLE / name).read_text(encoding="utf-8") for name in BASES]
    assert (
        "BASE: ${{ github.event_name == 'merge_group' && github.event.merge_group.base_sha || 'HEAD^1' }}" in named[0]
    )
    assert "BASE: origin/${{ github.event.pull_request.base.ref }}" in named[1]
    assert "${CI_MERGE_REQUEST_TARGET_BRANCH_SHA:-origin/$CI_MERGE_REQUEST_TARGET_BRANCH_NAME}" in named[2]
    assert not [text for text in named if "base.sha" in text.replace("pull_request.base.sha is the", "")]


@pytest.mark.parametrize(("name", "commands"), workflow_commands().items())
def test_each_hosts_workflow_runs_a_check_that_works(name: str, commands: list[str], tmp_path: Path) -> None:
    """The very lines of the workflow, in a clone with a pull request."""
    (line,) = [each for each in commands if each.startswith("regops check")]
    before = [each for each in commands if each.startswith(("BRANCH=", "git fetch"))]
    shutil.copytree(EXAMPLE, tmp_path / "origin")
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "base")):
        succeed("git", "-C", tmp_path / "origin", *identity, *words)
    clone = tmp_path / "clone"
    succeed("git", "clone", "-q", tmp_path / "origin", clone)
    base = succeed("git", "-C", clone, "rev-parse", "HEAD").strip()
    file = clone / "policies" / DEMO_FILE
    file.write_text(file.read_text(encoding="utf-8").replace(DEMO_OLD, DEMO_NEW), encoding="utf-8")
    succeed("git", "-C", clone, *identity, "commit", "-qam", "change")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for given in (BASES[name], {**BASES[name], "CI_MERGE_REQUEST_TARGET_BRANCH_SHA": base}):
        environment = {**os.environ, "PATH": path, **given}
        script = "\n".join([*before, line])
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "projects/billing" in (clone / "comment.md").read_text(encoding="utf-8"), name
        said = done.stdout.splitlines()[-1]
        assert said.startswith("Passed: 1 policy of 5 changed, all would go live, 0 of "), done.stdout + done.stderr
        assert done.returncode == 0


class Host(http.server.BaseHTTPRequestHandler):
    """A Git host with the comments of one pull request: one of somebody else, then what is written."""

    comments: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        if self.path.endswith("/user"):
            self._answer({"id": 7})
        else:
            self._answer([] if "page=2" in self.path else self.comments)

    def do_POST(self) -> None:
        self.comments.append({"id": len(self.comments) + 10, "author": {"id": 7}, "body": self._body()})
        self._answer(self.comments[-1])

    def do_PATCH(self) -> None:
        (found,) = [each for each in self.comments if self.path.endswith(f"/{each['id']}")]
        found["body"] = self._body()
        self._answer(found)

    def do_PUT(self) -> None:
        self.do_PATCH()

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> str:
        return str(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"])

    def _answer(self, document: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())


@pytest.mark.parametrize("name", [".gitea/workflows/policies.yaml", ".gitlab-ci.yml"])
def test_a_workflow_edits_the_comment_that_it_finds_by_its_mark(name: str, tmp_path: Path) -> None:
    """Each run added one more comment."""
    (command,) = [each for each in workflow_commands()[name] if MARK in each]
    Host.comments = [{"id": 1, "author": {"id": 1}, "body": "nice"}]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    given = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GITHUB_SERVER_URL": url,
        "GITHUB_REPOSITORY": "a/b",
        "NUMBER": "3",
        "TOKEN": "t",
        "CI_API_V4_URL": url,
        "CI_PROJECT_ID": "1",
        "CI_MERGE_REQUEST_IID": "3",
        "REGOPS_COMMENT_TOKEN": "t",
    }
    try:
        for text in ("first", "second"):
            (tmp_path / "comment.md").write_text(f"{MARK}\n{text}", encoding="utf-8")
            subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=given, timeout=60, check=True)
    finally:
        server.shutdown()
        server.server_close()
    assert [each["body"] for each in Host.comments] == ["nice", f"{MARK}\nsecond"]
    assert any(MARK in each for each in workflow_commands()[".github/workflows/policies.yaml"])


def test_the_workflows_have_no_more_rights_than_they_need() -> None:
    workflow = yaml.safe_load((EXAMPLE / ".github/workflows/policies.yaml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read", "pull-requests": "write"}
    for name, commands in workflow_commands().items():
        for command in commands:
            assert "${{" not in command, f"{name}: what a pull request says must not become a command"


@pytest.mark.parametrize("host", [".github", ".gitlab"])
def test_every_project_has_an_owner(host: str) -> None:
    lines = (EXAMPLE / host / "CODEOWNERS").read_text(encoding="utf-8").splitlines()
    owned = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert owned == {"*"} | {f"/policies/{name}/" for name in NAMES if name != PLATFORM}


def test_every_project_has_a_reviewer_on_gitea_too() -> None:
    """Gitea reads the first of ./, docs/ and .gitea/ that has a file, as regular expressions of whole paths."""
    assert not (EXAMPLE / "CODEOWNERS").exists()
    lines = (EXAMPLE / ".gitea/CODEOWNERS").read_text(encoding="utf-8").splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]

    def asked(path: str) -> set[str]:
        return {
            who for rule, who in rules if bool(re.fullmatch(rule.removeprefix("!"), path)) is not rule.startswith("!")
        }

    assert asked("policies/platform/rego.rego") == asked("README.md") == {"@example/platform-team"}
    for name in NAMES:
        assert len(asked(f"policies/{name}/rego.rego")) == 1, name
    assert asked("policies/projects/billing/rego.rego") == {"@example/billing-team"}


@pytest.mark.parametrize(("line", "sample"), rego_samples())
def test_a_sample_of_the_guide_is_as_good_or_bad_as_it_says(
    opa_binary: str, tmp_path: Path, line: int, sample: str
) -> None:
    file = tmp_path / "sample.rego"
    file.write_text(sample, encoding="utf-8")
    first = sample.partition("\n")[0].removeprefix("# ")
    checked = run(opa_binary, "check", file)
    where = f"{GUIDE.name}:{line}: {checked.stderr}"
    if first.startswith("refused by OPA: "):
        assert checked.returncode != 0, where
        assert first.removeprefix("refused by OPA: ") in checked.stderr, where
        return
    assert checked.returncode == 0, where
    if first.startswith("refused by regops: "):
        elsewhere = re.search(r"(projects/[a-z-]+)/rego\.rego", first)
        policy = policy_name(elsewhere.group(1)) if elsewhere else PolicyName("projects/orders")
        assert offences(syntax_tree(opa_binary, file), policy), where
    else:
        assert offences(syntax_tree(opa_binary, file), policy_name(first.rpartition("/")[0])) == [], where


def test_the_guide_and_the_readme_name_the_settings_that_exist() -> None:
    settings = pytest.importorskip("reconciler.settings")
    text = GUIDE.read_text(encoding="utf-8") + (EXAMPLE / "README.md").read_text(encoding="utf-8")
    groups = {name.partition(".")[0] for name in settings.setting_names()}
    named = {name for name in re.findall(r"`([a-z]+\.[a-z_0-9]+)(?:`|:)", text) if name.partition(".")[0] in groups}
    assert {"policy.namespace", "policy.rego_v0", "guard.cap"} <= named
    assert named - {"opa.runtime"} <= settings.setting_names().keys()
