"""The private OPA and the process that started it."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fixtures.dev import alive, until
from fixtures.opa import find_opa

from reconciler.adapters.opa.process import OpaProcess

PROGRAM = """
import asyncio, pathlib, sys
from reconciler.adapters.opa.process import OpaProcess
async def main():
    opa = OpaProcess(pathlib.Path(sys.argv[1]))
    await opa.start()
    print(opa._process.pid, opa._folder, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_the_private_opa_dies_with_a_server_that_is_killed() -> None:
    """Nobody else knew of it: every server killed without a word, by the kernel for its memory say, left an OPA behind
    that asked a dead address for ever."""
    server = subprocess.Popen([sys.executable, "-c", PROGRAM, str(find_opa())], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    opa, folder = server.stdout.readline().split()
    assert alive(int(opa))
    server.send_signal(signal.SIGKILL)
    server.wait(10)
    server.stdout.close()
    until(lambda: not alive(int(opa)))
    assert Path(folder).is_dir(), "the folder is what a killed server leaves"
    shutil.rmtree(folder)


async def test_a_long_name_of_the_folder_for_temporary_files_keeps_no_opa_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path has room for 107 bytes: below a longer TMPDIR nothing was validated any more."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    process = OpaProcess(find_opa())
    try:
        await process.start()
        assert process.running
    finally:
        await process.stop()
    assert list(long.iterdir()) == []
