import pytest

from reconciler.agent.opa_status import OpaStatus, parse_status
from reconciler.agent.version import older_than


def status(**bundle: object) -> dict[str, object]:
    return {"labels": {"id": "opa-1", "version": "1.22.2"}, "bundles": {"regops": bundle}}


def test_an_active_bundle_is_reported_with_the_process_and_its_version() -> None:
    said = parse_status(status(active_revision="c"), "regops")
    assert said == OpaStatus("opa-1", "1.22.2", "c", None)


def test_a_compile_error_is_told_with_its_place() -> None:
    error = {
        "code": "rego_parse_error",
        "message": "eof",
        "location": {"file": "platform/rego.rego", "row": 2, "col": 9},
    }
    said = parse_status(status(code="bundle_error", message="error(s) occurred", errors=[error]), "regops")
    assert said.refusal == "platform/rego.rego:2:9: rego_parse_error: eof"


def test_a_refusal_without_a_list_of_errors_keeps_its_message() -> None:
    said = parse_status(status(code="bundle_error", message="manifest roots [a] do not permit b"), "regops")
    assert said.refusal == "manifest roots [a] do not permit b"


@pytest.mark.parametrize(
    "bundle",
    [
        {"code": "bundle_error", "message": "server replied with Service Unavailable", "http_code": 503},
        {"code": "bundle_error", "message": 'request failed: Get "http://127.0.0.1": connection refused'},
        {},
    ],
)
def test_a_download_that_failed_is_no_refusal(bundle: dict[str, object]) -> None:
    assert parse_status(status(**bundle), "regops").refusal is None


@pytest.mark.parametrize("document", [{}, {"labels": 3, "bundles": []}, {"bundles": {"regops": {"errors": 5}}}])
def test_strange_fields_are_passed_over(document: object) -> None:
    assert parse_status(document, "regops") == OpaStatus(None)


def test_what_is_no_object_is_no_status() -> None:
    with pytest.raises(ValueError, match="object"):
        parse_status([], "regops")


@pytest.mark.parametrize(("version", "older"), [("1.9.0", True), ("1.22.1", True), ("1.22.2", False), ("2.0.0", False)])
def test_versions_are_compared_as_numbers(version: str, older: bool) -> None:
    assert older_than(version, "1.22.2") is older


def test_what_is_no_version_is_not_older() -> None:
    assert not older_than("edge", "1.22.2")
