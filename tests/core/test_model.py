from reconciler.core.model import BlobIds, Content, is_project_name


def test_blob_ids_are_those_of_git() -> None:
    assert Content(b"").blob_ids() == BlobIds("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", None)


def test_a_policy_without_data_and_one_with_empty_data_have_different_etags() -> None:
    assert Content(b"x").blob_ids().etag != Content(b"x", b"").blob_ids().etag


def test_project_names_are_dns_labels_other_than_platform() -> None:
    assert all(map(is_project_name, ["a", "a-b", "0", "x" * 63]))
    assert not any(map(is_project_name, ["", "-a", "a-", "A", "a.b", "a b", "x" * 64, "platform", "ä", "a\n", "a/b"]))
