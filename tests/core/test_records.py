"""The records in etcd are written alike, whoever writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.records import Meta, Record

TEXT = st.text(st.characters(codec="utf-8"))


@given(texts=st.lists(TEXT, min_size=5, max_size=5), version=st.integers(0, 1), data=st.none() | TEXT)
def test_a_meta_is_written_as_any_record_is(texts: list[str], version: int, data: str | None) -> None:
    etag, commit, actor, at, rego = texts
    meta = Meta(etag, commit, actor, at, version, rego, data)
    assert meta.encode() == Record.encode(meta)
    assert Meta.decode(meta.encode()) == meta


@pytest.mark.parametrize("wrong", [{"actor": None}, {"etag": 7}, {"rego_version": "1"}, {"data": []}])
def test_a_meta_that_we_never_wrote_is_none(wrong: dict[str, object]) -> None:
    """Somebody's edit was taken over when the policy was healed, and could not be written: each pass broke off."""
    document = json.loads(Meta("e", "c", "a", "t", 1, "r", None).encode()) | wrong
    with pytest.raises((ValueError, TypeError)):
        Meta.decode(json.dumps(document).encode())
