"""A commit's date is whatever its author's clock had."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.git import Remote
from pygit2.enums import ObjectType

from reconciler.adapters.git import GitSource


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (253_402_300_799, "9999-12-31T23:59:59Z"),
        (253_402_300_800, "9999-12-31T23:59:59Z"),
        (2**62, "9999-12-31T23:59:59Z"),
    ],
)
async def test_a_date_beyond_every_calendar_stops_nothing(tmp_path: Path, seconds: int, said: str) -> None:
    """One push of a commit that was dated into the year 36812 ended every pass, and the record of versions."""
    remote = Remote(tmp_path / "remote.git")
    base = remote.commit({"policies/platform/rego.rego": b"package platform\n"})
    repository = remote._repository
    tree = repository[base].tree_id  # type: ignore[attr-defined]
    person = f"Ann <ann@example.org> {seconds} +0000"
    text = f"tree {tree}\nparent {base}\nauthor {person}\ncommitter {person}\n\nodd\n"
    remote.force_push(str(repository.odb.write(ObjectType.COMMIT, text.encode())))
    source = GitSource(remote=remote.url, mirror=tmp_path / "mirror.git")
    head = await source.fetch()
    assert (await source.info(head)).committed_at == said
    assert (await source.branch_commits([head]))[head].info.committed_at == said
    await source.aclose()
