import pytest

from reconciler.agent.scope import ALL, Scope
from reconciler.core.model import PLATFORM, policy_name

A, B = policy_name("projects/a"), policy_name("projects/b")


@pytest.mark.parametrize("text", ["all", "projects:a", "projects:a,b-c"])
def test_a_scope_is_read_back_from_its_text(text: str) -> None:
    assert str(Scope.parse(text)) == text


@pytest.mark.parametrize("text", ["", "everything", "projects:A", "projects:platform", "projects:a/b"])
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"scope|project"):
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
