"""What a person meets at the command line: answers, errors in one line with the remedy, help with examples."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from regops import toolchain
from regops.cli import main

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
        assert len(done.output.splitlines()) == 1


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


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help_with_an_example(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    assert f"regops {name}" in done.output.partition("Example")[2]
