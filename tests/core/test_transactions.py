"""How a plan is cut into etcd transactions."""

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.keyspace import Keyspace
from reconciler.core.live import ABSENT, LivePolicy, LiveState
from reconciler.core.model import BlobIds, Content, FileError, project_policy
from reconciler.core.plan import Change
from reconciler.core.plan import Target as Version
from reconciler.core.ports import Compare, Delete, Fence, Put, Target
from reconciler.core.records import Applied, Held, Meta
from reconciler.core.transactions import Frame, Step, change_step, held_steps, join, pack

KEYS = Keyspace()
A = project_policy("a")
META = Meta("e", "c", "a", "t")
APPLIED = Applied("i", "c", 1, 0, "d", "t")


def step(size: int, number: int) -> Step:
    return Step((Compare(str(number), Target.MOD, 0),) * 3, (Put(str(number), b"x" * size),) * 3)


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(3, 20), st.integers(100, 3000))
def test_steps_keep_their_order_and_are_never_torn_apart(sizes: list[int], operations: int, limit: int) -> None:
    steps = [step(size, number) for number, size in enumerate(sizes)]
    batches = pack(steps, max_operations=operations, max_bytes=limit)
    assert [found for batch in batches for found in batch] == steps
    for batch in batches:
        assert len(batch) == 1 or sum(len(part.operations) for part in batch) <= operations
        assert len(batch) <= 1 or sum(part.size for part in batch) <= limit


def test_no_steps_are_one_empty_transaction_for_the_frame() -> None:
    assert pack([]) == [()]


def test_an_update_compares_every_key_and_drops_data_that_the_commit_no_longer_has() -> None:
    live = LivePolicy(META, 5, {"rego.rego": 5, "data.json": 5})
    change = Change(A, Version(BlobIds("1" * 40)), live)
    made = change_step(KEYS, change, Content(b"rego"), META)
    assert {(c.key, c.revision) for c in made.compares} == {(KEYS.rego(A), 5), (KEYS.data(A), 5), (KEYS.meta(A), 5)}
    assert Delete(KEYS.data(A)) in made.operations


def test_a_create_demands_that_no_key_exists() -> None:
    change = Change(A, Version(BlobIds("1" * 40)), ABSENT)
    assert {c.revision for c in change_step(KEYS, change, Content(b"r", b"{}"), META).compares} == {0}


def test_every_transaction_fails_for_a_deposed_leader_an_older_plan_and_a_suspension() -> None:
    frame = Frame(KEYS, Fence(KEYS.leader, 3), APPLIED, applied_revision=4, applying_revision=0)
    expected = {
        Compare(KEYS.leader, Target.CREATE, 3),
        Compare(KEYS.applied, Target.MOD, 4),
        Compare(KEYS.suspended, Target.CREATE, 0),
    }
    for transaction in (frame.only(Step()), frame.first(Step()), frame.middle(Step(), 9), frame.last(Step(), 9)):
        assert expected <= set(transaction.compares)


def test_only_the_last_of_several_transactions_says_applied() -> None:
    frame = Frame(KEYS, Fence(KEYS.leader, 3), APPLIED, applied_revision=4, applying_revision=0)
    for unfinished in (frame.first(Step()), frame.middle(Step(), 9)):
        assert KEYS.applied not in {operation.key for operation in unfinished.operations}
    last = frame.last(Step(), 9)
    assert Delete(KEYS.applying) in last.operations
    assert KEYS.applied in {operation.key for operation in last.operations}
    assert Compare(KEYS.applying, Target.MOD, 9) in last.compares


def test_held_records_are_written_when_they_changed_and_deleted_when_over() -> None:
    same, new = Held("c", "r", ()), Held("c", "r", (FileError("f", "m"),))
    live = LiveState(held={"x": same, "y": same}, held_revisions={"x": 1, "y": 2, "unreadable": 3})
    written = join(held_steps(KEYS, {"x": same, "z": new}, live))
    assert set(written.operations) == {
        Delete(KEYS.held("y")),
        Delete(KEYS.held("unreadable")),
        Put(KEYS.held("z"), new.encode()),
    }


def test_policy_keys_fit_with_a_policy_at_its_limits() -> None:
    change = Change(A, Version(BlobIds("1" * 40, "2" * 40)), ABSENT)
    big = change_step(KEYS, change, Content(b"r" * 524288, b"d" * 1048576), META)
    assert pack([big, big]) == [(big,), (big,)]
