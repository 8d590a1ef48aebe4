"""The digest of what is live follows from the set alone, however it came to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.digest import LiveDigest
from reconciler.core.model import PolicyName

ETAGS = st.dictionaries(st.integers(0, 400).map(lambda n: PolicyName(f"projects/p{n}")), st.sampled_from("abc"))


@given(old=ETAGS, changes=ETAGS, gone=st.sets(st.integers(0, 400).map(lambda n: PolicyName(f"projects/p{n}"))))
def test_taken_further_it_is_that_of_the_new_set(
    old: dict[PolicyName, str], changes: dict[PolicyName, str], gone: set[PolicyName]
) -> None:
    new = {name: etag for name, etag in (old | changes).items() if name not in gone}
    after = LiveDigest.of(old).after(changes.keys() - gone, gone, lambda name: new[name])
    assert after == LiveDigest.of(new)
    assert after.hex == LiveDigest.of(dict(reversed(new.items()))).hex
    assert (after.hex == LiveDigest.of(old).hex) == (new == old)
