"""The proof, event by event. Times are seconds; a poll is held for 30."""

from reconciler.agent.opa_status import OpaStatus
from reconciler.agent.receipts import Proof

E, X, Y = '"e"', '"x"', '"y"'
FIRST, SECOND = "127.0.0.1:1", "127.0.0.1:2"
ENFORCES_E = Proof().polled(None, FIRST, 0).sending(E).delivered(FIRST).answered(1, 1).polled(E, FIRST, 1)


def sent(proof: Proof, etag: str, now: float = 2, peer: str = FIRST) -> Proof:
    return proof.sending(etag).delivered(peer).answered(proof.poll, now)


def test_nothing_is_proven_before_a_poll_carries_an_etag() -> None:
    proof = Proof()
    assert proof.enforced(0) is None
    proof = proof.polled(None, FIRST, 0)
    assert proof.enforced(0) is None
    assert sent(proof, E).enforced(2) is None


def test_the_poll_that_carries_the_etag_is_the_proof() -> None:
    assert ENFORCES_E.enforced(1) == E


def test_a_status_is_no_proof() -> None:
    proof = sent(Proof().polled(None, FIRST, 0), E).told(OpaStatus("opa-1", active_revision="1" * 40))
    assert proof.enforced(2) is None


def test_the_first_byte_of_another_bundle_withdraws_the_proof() -> None:
    assert ENFORCES_E.sending(X).enforced(2) is None


def test_the_next_poll_proves_the_new_bundle() -> None:
    assert sent(ENFORCES_E, X).polled(X, FIRST, 3).enforced(3) == X


def test_a_held_poll_is_a_sign_of_life_however_long_it_lasts() -> None:
    assert ENFORCES_E.enforced(10_000) == E


def test_an_opa_that_does_not_ask_again_is_silent() -> None:
    proof = ENFORCES_E.answered(2, 30)
    assert proof.enforced(65) == E
    assert proof.enforced(66) is None


def test_a_dropped_connection_counts_after_a_short_grace() -> None:
    proof = ENFORCES_E.answered(2, 10, dropped=True)
    assert proof.enforced(11.9) == E
    assert proof.enforced(12.1) is None
    assert proof.polled(E, SECOND, 13).enforced(13) == E


def test_the_end_of_an_overtaken_poll_is_no_news() -> None:
    proof = ENFORCES_E.polled(E, SECOND, 5).answered(2, 6, dropped=True)
    assert proof.enforced(100) == E


def test_a_restarted_opa_has_nothing() -> None:
    assert ENFORCES_E.polled(None, SECOND, 5).enforced(5) is None


def test_another_opa_on_the_same_agent_withdraws_what_the_first_has_proven() -> None:
    proof = ENFORCES_E.told(OpaStatus("opa-1"))
    assert proof.enforced(2) == E
    assert proof.told(OpaStatus("opa-2")).enforced(2) is None


def test_the_status_of_a_restart_that_was_seen_already_withdraws_nothing() -> None:
    """OPA posts its first status beside its first polls, so it may come after the new process has proven itself."""
    proof = ENFORCES_E.told(OpaStatus("opa-1")).polled(None, SECOND, 5)
    proof = sent(proof, E, 6, SECOND).polled(E, SECOND, 7).told(OpaStatus("opa-2"))
    assert proof.enforced(7) == E


def test_asking_again_with_the_old_etag_is_a_refusal_and_proves_the_old_one() -> None:
    proof = sent(ENFORCES_E, X).polled(E, FIRST, 3)
    assert proof.enforced(3) == E
    assert not proof.may_send(X)
    assert proof.may_send(Y)


def test_an_opa_with_nothing_active_can_refuse_too() -> None:
    proof = sent(Proof().polled(None, FIRST, 0), X).polled(None, FIRST, 3)
    assert not proof.may_send(X)


def test_a_bundle_that_did_not_arrive_whole_is_sent_again() -> None:
    cut_off = ENFORCES_E.sending(X).answered(2, 2, dropped=True).polled(E, SECOND, 3)
    assert cut_off.may_send(X)


def test_a_status_explains_the_refusal_whether_it_comes_before_or_after_the_poll() -> None:
    refusal = OpaStatus("opa-1", refusal="projects/a/rego.rego:3: no")
    before = sent(ENFORCES_E, X).told(refusal).polled(E, FIRST, 3)
    after = sent(ENFORCES_E, X).polled(E, FIRST, 3).told(refusal)
    assert before.refused == after.refused == {X: "projects/a/rego.rego:3: no"}


def test_a_late_status_about_an_earlier_failure_does_not_refuse_what_is_active() -> None:
    proof = sent(ENFORCES_E, X).polled(X, FIRST, 3).told(OpaStatus("opa-1", refusal="an old story"))
    assert proof.may_send(X)


def test_what_turns_out_to_be_active_was_not_refused() -> None:
    proof = sent(ENFORCES_E, X).told(OpaStatus("opa-1", refusal="hasty")).polled(X, FIRST, 3)
    assert proof.may_send(X)
    assert proof.enforced(3) == X


def test_a_new_process_may_judge_otherwise() -> None:
    refused = sent(ENFORCES_E.told(OpaStatus("opa-1")), X).polled(E, FIRST, 3)
    assert refused.polled(None, SECOND, 9).may_send(X)
    assert refused.told(OpaStatus("opa-2")).may_send(X)


def test_the_verdict_of_the_new_process_outlives_its_first_status() -> None:
    proof = ENFORCES_E.told(OpaStatus("opa-1")).polled(None, SECOND, 5)
    proof = sent(proof, X, 6, SECOND).polled(None, SECOND, 7).told(OpaStatus("opa-2"))
    assert not proof.may_send(X)


def test_refusals_are_remembered_within_bounds() -> None:
    proof = ENFORCES_E
    for number in range(100):
        proof = sent(proof, f'"{number}"').polled(E, FIRST, 3)
    assert not proof.may_send('"99"')
    assert len(proof.refused) < 20
