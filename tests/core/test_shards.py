import hashlib
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.shards import MOST, Shard, shard_of, weight

ROOT = Path(__file__).parent.parent.parent
COUNTS = (1, 2, 3, 4, 8, 64, 1000)
VECTORS = {
    "billing": (1, 2, 2, 2, 6, 26, 635),
    "web-shop": (1, 2, 2, 2, 8, 13, 536),
    "a": (1, 1, 1, 4, 4, 33, 761),
    "p0": (1, 1, 3, 4, 6, 39, 610),
    "p9999": (1, 2, 3, 3, 3, 44, 536),
    "x" * 63: (1, 1, 1, 1, 1, 42, 836),
}
"""Made with `sha256sum` and `sort`. Agents, gateways and servers of all versions agree by these: never change one."""
projects = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("project", VECTORS)
def test_a_project_is_in_the_same_shard_for_ever(project: str) -> None:
    assert tuple(shard_of(project, count) for count in COUNTS) == VECTORS[project]


def test_the_weight_is_the_beginning_of_a_digest() -> None:
    assert weight("billing", 3) == int(hashlib.sha256(b"billing/3").hexdigest()[:12], 16)


@pytest.mark.parametrize("project", VECTORS)
def test_the_line_of_shell_in_the_documents_finds_the_same(project: str) -> None:
    (line,) = re.findall(r"`(for i in .* sha256sum .*)`", (ROOT / "docs" / "operations.md").read_text())
    words = ["bash", "-c", line.replace("billing", project)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert int(said) == shard_of(project, 8)


@given(projects, st.integers(1, 70))
def test_exactly_one_shard_answers_for_a_project(project: str, count: int) -> None:
    owners = [index for index in range(1, count + 1) if Shard(index, count).answers_for(project)]
    assert owners == [shard_of(project, count)]


@given(projects, st.integers(1, 70))
def test_one_more_shard_takes_projects_and_moves_no_other(project: str, count: int) -> None:
    assert shard_of(project, count + 1) in {shard_of(project, count), count + 1}


def test_shards_are_of_about_the_same_size() -> None:
    sizes = Counter(shard_of(f"team-{number}", 16) for number in range(8000))
    assert len(sizes) == 16
    assert max(sizes.values()) < 1.2 * 500
    assert min(sizes.values()) > 0.8 * 500


@pytest.mark.parametrize("text", ["1/1", "2/8", "8/8", f"{MOST}/{MOST}"])
def test_a_shard_is_read_back_from_its_text(text: str) -> None:
    assert str(Shard.parse(text)) == text


@pytest.mark.parametrize("text", ["", "x", "0/4", "5/4", "1", "1/", "/4", "01/4", "-1/4", "1/4/4", "1/0", "1/1001"])
def test_what_is_no_shard_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ValueError, match="is no shard: write i/n"):
        Shard.parse(text)
