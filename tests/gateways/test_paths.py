import pytest
from fixtures.questions import ANSWERED, REFUSED, UNDEFINED, Question

from reconciler.core.shards import shard_of
from regops.gateways.paths import Refusal, destination


@pytest.mark.parametrize("question", [*ANSWERED, *UNDEFINED])
def test_a_question_goes_to_the_shard_of_its_project(question: Question) -> None:
    found = destination(question.method, question.path.partition("?")[0], 3)
    assert found == (shard_of(question.project, 3) if question.project else None)


@pytest.mark.parametrize("question", REFUSED)
def test_what_could_be_read_otherwise_is_refused(question: Question) -> None:
    found = destination(question.method, question.path.partition("?")[0], 3)
    assert isinstance(found, Refusal)
    assert found.status == question.status
