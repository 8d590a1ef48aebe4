"""The decision table: what should be live, what is live, what happens."""

import pytest

from reconciler.core.live import ABSENT, LivePolicy, LiveState
from reconciler.core.model import PLATFORM, BlobIds, PolicyName, project_policy
from reconciler.core.plan import Cause, Change, Operation, Target, make_plan
from reconciler.core.records import Meta

A = project_policy("a")
OLD = BlobIds("0" * 40)
NEW = BlobIds("1" * 40)
WITH_DATA = BlobIds("1" * 40, "2" * 40)


def live(blobs: BlobIds, *, at: int = 7, **files: int) -> LivePolicy:
    meta = Meta(blobs.etag, "c", "a", "t", 1, blobs.rego, blobs.data)
    return LivePolicy(meta, at, {name.replace("_", "."): revision for name, revision in files.items()})


@pytest.mark.parametrize(
    ("target", "found", "operation", "cause"),
    [
        pytest.param(NEW, ABSENT, Operation.CREATE, Cause.COMMIT, id="desired and absent: create"),
        pytest.param(NEW, live(NEW, rego_rego=7), Operation.UNCHANGED, Cause.DRIFT, id="same version: unchanged"),
        pytest.param(NEW, live(OLD, rego_rego=7), Operation.UPDATE, Cause.COMMIT, id="other version: update"),
        pytest.param(NEW, live(NEW, rego_rego=9), Operation.UPDATE, Cause.DRIFT, id="rego edited by hand: heal"),
        pytest.param(NEW, live(NEW), Operation.UPDATE, Cause.DRIFT, id="rego deleted by hand: heal"),
        pytest.param(
            NEW, live(NEW, rego_rego=7, data_json=9), Operation.UPDATE, Cause.DRIFT, id="data added by hand: heal"
        ),
        pytest.param(
            WITH_DATA, live(WITH_DATA, rego_rego=7), Operation.UPDATE, Cause.DRIFT, id="data deleted by hand: heal"
        ),
        pytest.param(
            NEW, LivePolicy(None, 0, {"rego.rego": 3}), Operation.CREATE, Cause.COMMIT, id="foreign keys: overwritten"
        ),
        pytest.param(None, live(OLD, rego_rego=7), Operation.DELETE, Cause.COMMIT, id="gone from Git: delete"),
        pytest.param(None, ABSENT, Operation.UNCHANGED, Cause.COMMIT, id="gone and absent: unchanged"),
    ],
)
def test_the_pair_of_desired_and_live_decides(
    target: BlobIds | None, found: LivePolicy, operation: Operation, cause: Cause
) -> None:
    change = Change(A, Target(target) if target else None, found)
    assert change.operation is operation
    if operation is not Operation.UNCHANGED:
        assert change.cause is cause


def test_the_platform_comes_first_and_deletions_come_last() -> None:
    state = LiveState(policies={PolicyName("projects/0"): live(OLD, rego_rego=7)})
    targets = {project_policy("b"): Target(NEW), A: Target(NEW), PLATFORM: Target(NEW)}
    plan = make_plan(targets, [PolicyName("projects/0")], state)
    assert [change.policy for change in plan.changes] == [PLATFORM, A, project_policy("b"), "projects/0"]


def test_a_plan_for_what_is_live_is_empty() -> None:
    state = LiveState(policies={A: live(NEW, rego_rego=7)})
    assert make_plan({A: Target(NEW)}, [], state).changes == ()
