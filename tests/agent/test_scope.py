import pytest

from reconciler.agent.scope import ALL, Scope
from reconciler.core.model import PLATFORM, policy_name

A, B = policy_name("projects/a"), policy_name("projects/b")


@pytest.mark.parametrize("text", ["all", "projects:a", "projects:a,b-c", "shard:2/8"])
def test_a_scope_is_read_back_from_its_text(text: str) -> None:
    assert str(Scope.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "everything", "projects:A", "projects:platform", "projects:a/b", "shard:0/4", "shard:"]
)
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"scope|project|shard"):
        Scope.parse(text)


def test_chosen_projects_come_with_the_platform_and_nothing_else() -> None:
    scope = Scope.of_projects(["a"])
    assert scope.contains(PLATFORM)
    assert scope.contains(A)
    assert not scope.contains(B)
    assert scope.listed() == (PLATFORM, A)
    assert scope.roots() == ("platform", "projects/a")


def test_the_whole_scope_owns_both_trees() -> None:
    assert ALL.contains(PLATFORM)
    assert ALL.contains(B)
    assert ALL.listed() is None
    assert ALL.roots() == ("platform", "projects")


def test_the_shards_of_a_number_share_the_projects_and_each_has_the_platform() -> None:
    shards = [Scope.parse(f"shard:{index}/4") for index in range(1, 5)]
    for number in range(50):
        project = policy_name(f"projects/team-{number}")
        assert sum(shard.contains(project) for shard in shards) == 1
    assert all(shard.contains(PLATFORM) for shard in shards)


def test_a_shard_owns_the_tree_of_all_projects() -> None:
    """Its own projects alone would leave the others' places free for whoever can write to that OPA."""
    shard = Scope.parse("shard:1/2")
    assert shard.listed() is None
    assert shard.roots() == ("platform", "projects")
