"""The quick difference of two trees is the plain one."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from reconciler.adapters.git.difference import differing

NAMES = st.sampled_from([f"p{number:03}".encode() for number in range(200)] + [b"a", b"40000 a", b"\xff"])
IDS = st.sampled_from([bytes([byte]) * 20 for byte in (0, 1, 32, 48, 255)] + [b"40000 x\x0040000 y\x00abcd"])
TREES = st.dictionaries(NAMES, st.tuples(st.sampled_from([b"40000", b"100644"]), IDS), max_size=150)

Files = dict[bytes, tuple[bytes, bytes]]


def raw(files: Files) -> bytes:
    return b"".join(b"%b %b\0%b" % (mode, name, oid) for name, (mode, oid) in sorted(files.items()))


def plain(old: Files, new: Files) -> dict[bytes, object]:
    def entry(files: Files, name: bytes) -> object:
        return (files[name][0], name, files[name][1]) if name in files else None

    names = old.keys() | new.keys()
    return {name: (entry(old, name), entry(new, name)) for name in names if old.get(name) != new.get(name)}


@given(old=TREES, changes=st.dictionaries(NAMES, st.none() | st.tuples(st.just(b"40000"), IDS), max_size=70))
@example(old={b"a": (b"40000", b"1" * 20)}, changes={b"a": None})
def test_a_few_changes_are_found_whatever_the_trees_are(
    old: Files, changes: dict[bytes, tuple[bytes, bytes] | None]
) -> None:
    new = {name: entry for name, entry in (old | changes).items() if entry is not None}
    assert differing(raw(old), raw(new)) == plain(old, new)


@given(old=TREES, new=TREES)
def test_trees_that_share_little_differ_as_plainly(old: Files, new: Files) -> None:
    assert differing(raw(old), raw(new)) == plain(old, new)
