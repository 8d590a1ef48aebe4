from reconciler.agent.state import MirrorState, changed_since, goes_back
from reconciler.core.records import Applied


def applied(name: str, previous: str | None, *changed: str, height: int = 1, rewrites: int = 0) -> Applied:
    return Applied(name, "c" * 40, height, rewrites, "", "", previous, changed)


def unsaid(name: str, previous: str, commit: str = "c" * 40, digest: str = "of others") -> Applied:
    return Applied(name, commit, 1, 0, digest, "", previous, None)


OURS = MirrorState(applied("one", None), 5)


def test_along_an_unbroken_chain_only_the_named_policies_changed() -> None:
    history = [applied("two", "one", "platform"), applied("three", "two"), applied("four", "three", "projects/a")]
    assert changed_since(OURS, history) == frozenset({"platform", "projects/a"})


def test_a_missing_link_means_that_everything_may_have_changed() -> None:
    assert changed_since(OURS, [applied("three", "two", "platform")]) is None
    assert changed_since(OURS, [applied("two", "one"), applied("four", "three")]) is None


def test_an_apply_that_does_not_say_what_changed_means_everything() -> None:
    assert changed_since(OURS, [applied("two", "one", "platform"), unsaid("three", "two")]) is None


def test_the_same_apply_written_anew_changes_nothing() -> None:
    """A new leader writes ``applied`` anew and does not say what changed, and a fleet read all records of all policies:
    5 MB for each agent of 10,000 policies, at the same moment."""
    again = unsaid("two", "one", digest="")
    assert changed_since(OURS, [again]) == frozenset()
    assert changed_since(OURS, [again, applied("three", "two", "platform")]) == frozenset({"platform"})
    assert changed_since(OURS, [unsaid("two", "one", digest="d")]) is None
    assert changed_since(OURS, [unsaid("two", "one", commit="d" * 40, digest="")]) is None
    assert changed_since(OURS, [unsaid("two", "zero", digest="")]) is None


def test_who_has_nothing_reads_everything() -> None:
    assert changed_since(None, [applied("one", None)]) is None
    assert changed_since(MirrorState(None, 5), [applied("one", None)]) is None


def test_a_rewritten_history_is_newer_whatever_its_height() -> None:
    assert goes_back((0, 9), applied("x", None, height=8))
    assert not goes_back((0, 9), applied("x", None, height=9))
    assert not goes_back((0, 9), applied("x", None, height=1, rewrites=1))
    assert not goes_back(None, applied("x", None))
