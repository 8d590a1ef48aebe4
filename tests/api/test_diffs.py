"""The diff of a dry run: what git itself would apply, in bounded time."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from time import monotonic

from api.diffs import unified


def test_git_makes_the_new_text_of_the_old_one_and_the_diff(tmp_path: Path) -> None:
    rng = random.Random(4)
    words = ["a\n", "b\n", "\u2028c\x0c\n", "d\r\n", "\n", *(f"{n}\n" for n in range(40))]
    for turn in range(60):
        old = "".join(rng.choices(words, k=rng.randrange(1, 300)))
        lines = old.split("\n")
        for _ in range(rng.randrange(1, 8)):
            at = rng.randrange(len(lines))
            lines[at : at + rng.randrange(40)] = [word.strip("\n") for word in rng.choices(words, k=rng.randrange(40))]
        new = "\n".join(lines) or "x"
        if old == new:
            continue
        (tmp_path / "file").write_bytes(old.encode())
        done = subprocess.run(
            ["git", "apply", "--unsafe-paths", "-p1", "--unidiff-zero", "-"],
            input=unified("file", old.encode(), new.encode()).encode(),
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (turn, done.stderr)
        assert (tmp_path / "file").read_bytes() == new.encode()


def test_a_small_change_is_a_small_diff() -> None:
    old = "".join(f"line {n}\n" for n in range(1000))
    diff = unified("platform/data.json", old.encode(), old.replace("line 500\n", "line five hundred\n").encode())
    assert diff.split("\n") == [
        *("--- a/platform/data.json", "+++ b/platform/data.json", "@@ -498,7 +498,7 @@"),
        *(" line 497", " line 498", " line 499", "-line 500", "+line five hundred"),
        *(" line 501", " line 502", " line 503", ""),
    ]


def test_a_megabyte_of_few_lines_takes_no_longer_than_any_other() -> None:
    """One dry run of such a text held the whole replica for minutes: no health check was answered meanwhile."""
    rng = random.Random(1)
    old, new = ("".join(f"# {rng.randrange(150)}\n" for _ in range(100_000)).encode() for _ in range(2))
    began = monotonic()
    diff = unified("platform/rego.rego", old, new)
    assert monotonic() - began < 10
    assert diff.startswith("--- a/platform/rego.rego\n+++ b/platform/rego.rego\n@@ -1")
