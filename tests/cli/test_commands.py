"""What a person meets at the command line: answers, errors in one line with the remedy, help with examples."""

import functools
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from regops import toolchain
from regops.cli import main
from regops.commands.tables import policies_table, policy_page

BAD = "package projects.a\n\nx := data.projects.b.y\n"


def policies(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / "policies" / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.fixture
def opa() -> None:
    if toolchain.find("opa") is None:
        pytest.skip("no opa: `make setup` builds it, or set REGOPS_OPA")


@pytest.mark.usefixtures("opa")
def test_check_names_file_line_and_column_and_exits_with_1(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["check", str(policies(tmp_path, projects__a__rego_rego=BAD))])
    assert done.exit_code == 1
    assert done.output.startswith("policies/projects/a/rego.rego:3:6: error: reads `data.projects.b.y`")


@pytest.mark.usefixtures("opa")
def test_check_of_sound_policies_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["check", str(policies(tmp_path, projects__a__rego_rego="package projects.a\n"))])
    assert (done.exit_code, done.output) == (0, "1 policy, all valid\n")


def test_without_a_running_system_the_error_says_what_to_do(tmp_path: Path) -> None:
    for command in ("status", "sync", "suspend", "resume", "fleet", "plan"):
        done = CliRunner().invoke(main, [command, "--state", str(tmp_path)])
        assert done.exit_code == 1
        assert "Start `regops dev`" in done.output
        assert f"in {tmp_path}. " in done.output
        assert "--state PATH or REGOPS_STATE" in done.output
        assert len(done.output.splitlines()) == 1


def test_the_table_of_policies_has_a_line_of_an_error_and_no_more() -> None:
    """The whole error stood in the last column: lines of more than 200 characters, and a second line."""
    row = {
        "policy": "projects/a",
        "sync": {"status": "OutOfSync"},
        "health": {"status": "Degraded"},
        "commit": None,
        "since": None,
        "actor": None,
        "agents": {"current": 0, "total": 1},
    }
    error = {"file": "projects/a/rego.rego", "line": 3, "column": 6, "message": f"{'long ' * 60}\nsecond"}
    held = {"commit": "1" * 40, "reason": "ValidationFailed", "errors": [error]}
    shown = policies_table([{**row, "held": held}])
    head, line = shown.splitlines()
    assert line[head.index("HELD") :].startswith("ValidationFailed: projects/a/rego.rego:3:6: long")
    assert line.endswith("…")
    assert len(line) - head.index("HELD") <= 80
    page = policy_page({**row, "held": held, "enforced_by": []})
    assert "second" in page, "the page of one policy has all of it"


def test_a_wrong_setting_suggests_the_right_one(tmp_path: Path) -> None:
    file = tmp_path / "regops.yaml"
    file.write_text("git:\n  remot: x\n")
    done = CliRunner().invoke(main, ["server", "--config", str(file)])
    assert done.exit_code == 1
    assert "git.remot is no setting. Did you mean git.remote?" in done.output


def test_a_server_without_a_repository_says_which_setting_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGOPS_SERVER_PORT", "0")
    done = CliRunner().invoke(main, ["server", "--role", "reconciler", "--log-level", "error"])
    assert done.exit_code == 1
    assert "REGOPS_GIT_REMOTE" in done.output


def test_a_server_that_is_not_there_or_is_no_regops_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGOPS_TOKEN", "any")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}/"):
        done = CliRunner().invoke(main, ["status", "--server", url])
        assert done.exit_code == 1
        assert done.output.startswith(f"Error: http://127.0.0.1:{port}/status does not answer: Connect call failed")
        assert done.output.endswith("Name another with --server URL or --state FOLDER.\n")
    (tmp_path / "fleet").write_text("{}")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            for path, says in {"": "is no answer of regops", "/nothing": "answers 404"}.items():
                url = f"http://127.0.0.1:{other.server_port}{path}"
                done = CliRunner().invoke(main, ["fleet", "--server", url])
                assert (done.exit_code, says in done.output, len(done.output.splitlines())) == (1, True, 1)
        finally:
            other.shutdown()
            thread.join(5)


def test_what_speaks_to_etcd_does_not_take_another_system_in_silence() -> None:
    """`--server` was passed over: the command then looked at the `regops dev` in the current folder."""
    done = CliRunner().invoke(main, ["plan", "--server", "http://regops.example.com"])
    assert done.exit_code == 1
    assert "Give --config FILE with the settings of that server, or --state." in done.output


@pytest.mark.parametrize("command", ["sync", "suspend", "resume", "status", "fleet"])
def test_what_speaks_to_a_server_asks_for_a_token(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGOPS_TOKEN", raising=False)
    done = CliRunner().invoke(main, [command, "--server", "http://127.0.0.1:1"])
    assert done.exit_code == 1
    assert "Give one with --token-file FILE or in REGOPS_TOKEN." in done.output


def test_a_file_of_the_settings_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "regops.yaml"
    file.write_text(f"etcd:\n  endpoints: ['https://127.0.0.1:1']\n  ca_file: {tmp_path}/ca.pem\n")
    done = CliRunner().invoke(main, ["sync", "--config", str(file)])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: etcd.ca_file: {tmp_path}/ca.pem: No such file or directory.")


@pytest.mark.usefixtures("opa")
def test_a_taken_port_is_named_with_the_settings_to_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jwks.json").write_text('{"keys": []}')
    monkeypatch.setenv("REGOPS_AUTH_ISSUER", "https://issuer.example")
    monkeypatch.setenv("REGOPS_AUTH_JWKS", str(tmp_path / "jwks.json"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for command, variable in {"server": "REGOPS_SERVER_PORT", "agent": "REGOPS_AGENT_PORT"}.items():
            monkeypatch.setenv(variable, str(taken.getsockname()[1]))
            monkeypatch.setenv("REGOPS_GIT_REMOTE", str(tmp_path))
            monkeypatch.setenv("REGOPS_ETCD_ENDPOINTS", "http://127.0.0.1:1")
            done = CliRunner().invoke(main, [command, "--log-level", "error"])
            assert done.exit_code == 1
            assert "Choose another port: server.port or agent.port." in done.output


@pytest.mark.usefixtures("opa")
def test_the_unit_tests_of_a_tree_decide_the_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(text: str | None) -> tuple[int, str]:
        files = {"platform__rego_rego": "package platform\n\nx := 1\n"}
        policies(tmp_path, **files)
        if text is not None:
            (tmp_path / "policies" / "platform" / "rego_test.rego").write_text(f"package platform_test\n\n{text}\n")
        done = CliRunner().invoke(main, ["test", str(tmp_path)])
        return done.exit_code, done.output + capfd.readouterr().out

    assert run(None) == (0, f"no tests: there is no *_test.rego beside a policy below {tmp_path}/policies\n")
    assert run("test_x if data.platform.x == 1") == (0, "PASS: 1/1\n")
    code, said = run("test_x if data.platform.x == 2")
    assert (code, "FAIL: 1/1" in said) == (2, True)
    assert run("test_x if }")[0] == 1


@pytest.mark.usefixtures("opa")
def test_the_unit_tests_of_a_tree_as_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    policies(tmp_path, platform__rego_rego="package platform\n\nx := 1\n")

    def run() -> tuple[int, object]:
        done = CliRunner().invoke(main, ["test", "--json", str(tmp_path)])
        return done.exit_code, json.loads(capfd.readouterr().out)

    assert run() == (0, [])
    file = tmp_path / "policies" / "platform" / "rego_test.rego"
    file.write_text("package platform_test\n\ntest_x if data.platform.x == 1\n\ntest_y if data.platform.x == 2\n")
    code, found = run()
    assert isinstance(found, list)
    assert (code, {each["name"]: each.get("fail", False) for each in found}) == (2, {"test_x": False, "test_y": True})


def test_the_configuration_for_opa_names_an_address_that_it_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, url in {
        "0.0.0.0": "http://127.0.0.1:8282",
        "::": "http://[::1]:8282",
        "": "http://127.0.0.1:8282",
    }.items():
        monkeypatch.setenv("REGOPS_AGENT_HOST", host)
        done = CliRunner().invoke(main, ["agent", "opa-config"])
        assert done.exit_code == 0
        assert f'url: "{url}"' in done.output


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", below) for inner, below in command.commands.items())


@pytest.mark.parametrize(("name", "command"), [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_every_command_has_help_with_an_example_and_says_what_each_option_is_for(
    name: str, command: click.Command
) -> None:
    done = CliRunner().invoke(main, [*name.split(), "--help"])
    assert done.exit_code == 0
    assert f"regops {name}" in done.output.partition("Example")[2]
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_the_overview_cuts_no_line_short() -> None:
    assert "..." not in CliRunner().invoke(main, ["--help"]).output.partition("Commands:")[2]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1"])
def test_what_is_no_shard_is_wrong_usage_with_the_rule(text: str) -> None:
    done = CliRunner().invoke(main, ["agent", "--shard", text])
    assert done.exit_code == 2
    assert f"'{text}' is no shard: write i/n" in " ".join(done.output.split())


def test_a_shard_and_projects_exclude_each_other() -> None:
    done = CliRunner().invoke(main, ["agent", "--shard", "1/2", "--project", "a"])
    assert done.exit_code == 2
    assert "--project and --shard exclude each other" in done.output


def test_the_shard_of_a_project_is_told() -> None:
    done = CliRunner().invoke(main, ["shards", "find", "--of", "8", "billing", "web-shop"])
    assert (done.exit_code, done.output) == (0, "billing 6/8\nweb-shop 8/8\n")
    assert CliRunner().invoke(main, ["shards", "find", "--of", "8", "Billing"]).exit_code == 2


@pytest.mark.parametrize("gateway", ["haproxy", "envoy"])
def test_the_opas_behind_a_gateway_come_from_the_command_line_or_a_file(tmp_path: Path, gateway: str) -> None:
    file = tmp_path / "shards.yaml"
    file.write_text("1: [a:1, b:2]\n2: [c:3]\n")
    words = ["shards", gateway, "--shard-backend", "1=a:1,b:2", "--shard-backend", "2=c:3"]
    by_words = CliRunner().invoke(main, words)
    by_file = CliRunner().invoke(main, ["shards", gateway, "--file", str(file)])
    assert by_words.exit_code == by_file.exit_code == 0
    assert by_words.output == by_file.output
    missing = CliRunner().invoke(main, ["shards", gateway, "--shard-backend", "2=c:3"])
    assert missing.exit_code == 1
    assert missing.output.startswith("Error: shard 1 of 2 has no OPA. Name each shard's OPAs: --shard-backend")
    nowhere = CliRunner().invoke(main, ["shards", gateway, "--state", str(tmp_path)])
    assert (nowhere.exit_code, "Start `regops dev`" in nowhere.output) == (1, True)
    assert CliRunner().invoke(main, ["shards", gateway, "--listen", "8180"]).exit_code == 2
