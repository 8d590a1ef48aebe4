import gzip
import io
import json
import tarfile
from collections.abc import Mapping

from reconciler.agent.bundle import Bundle, BundleBuilder
from reconciler.agent.scope import ALL, Scope
from reconciler.agent.state import MirrorPolicy, MirrorState
from reconciler.core.model import Content, policy_name
from reconciler.core.records import Applied, Meta

ONE, TWO = "1" * 40, "2" * 40


def policy(rego: bytes, data: bytes | None = None, rego_version: int = 1) -> MirrorPolicy:
    content = Content(rego, data)
    return MirrorPolicy(content, Meta(content.blob_ids().etag, ONE, "ann", "2026-01-01T00:00:00Z", rego_version))


def state(commit: str, policies: Mapping[str, MirrorPolicy]) -> MirrorState:
    applied = Applied(commit[:8], commit, 1, 0, "", "2026-01-01T00:00:00Z")
    return MirrorState(applied, 7, {policy_name(name): item for name, item in policies.items()})


def files(bundle: Bundle) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(bundle.body))) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
    return found


POLICIES = {
    "projects/b": policy(b"package projects.b\n", b"{}"),
    "platform": policy(b"x" * 512, b"y" * 513),
    "projects/a": policy(b"package projects.a\n", rego_version=0),
}


def test_a_bundle_holds_the_exact_bytes_of_every_policy_under_its_path() -> None:
    found = files(BundleBuilder(ALL).build(state(ONE, POLICIES)))
    manifest = json.loads(found.pop(".manifest"))
    assert found == {
        "platform/rego.rego": b"x" * 512,
        "platform/data.json": b"y" * 513,
        "projects/a/rego.rego": b"package projects.a\n",
        "projects/b/rego.rego": b"package projects.b\n",
        "projects/b/data.json": b"{}",
    }
    assert manifest == {
        "revision": ONE,
        "roots": ["platform", "projects"],
        "rego_version": 1,
        "file_rego_versions": {"projects/a/rego.rego": 0},
        "metadata": {"scope": "all"},
    }


def test_the_bytes_do_not_depend_on_who_builds_nor_on_what_was_built_before() -> None:
    seasoned = BundleBuilder(ALL)
    seasoned.build(state(TWO, {"projects/a": policy(b"old"), "projects/z": policy(b"gone")}))
    shuffled = dict(reversed(POLICIES.items()))
    assert seasoned.build(state(ONE, shuffled)) == BundleBuilder(ALL).build(state(ONE, POLICIES))


def test_a_commit_that_changes_nothing_in_scope_keeps_the_bundle() -> None:
    builder = BundleBuilder(ALL)
    first = builder.build(state(ONE, POLICIES))
    assert builder.build(state(TWO, POLICIES), first) is first


def test_content_scope_and_rego_version_each_change_the_etag() -> None:
    base = {"projects/a": policy(b"package projects.a\n")}
    bundles = [
        BundleBuilder(ALL).build(state(ONE, base)),
        BundleBuilder(ALL).build(state(ONE, {"projects/a": policy(b"package projects.a\n", rego_version=0)})),
        BundleBuilder(ALL).build(state(ONE, {"projects/a": policy(b"package projects.a\n", b"{}")})),
        BundleBuilder(Scope.of_projects(["a"])).build(state(ONE, base)),
        BundleBuilder(ALL).build(state(ONE, {})),
    ]
    assert len({bundle.etag for bundle in bundles}) == len(bundles)


def test_a_bundle_of_chosen_projects_owns_only_their_roots() -> None:
    manifest = json.loads(files(BundleBuilder(Scope.of_projects(["b", "a"])).build(state(ONE, {})))[".manifest"])
    assert manifest["roots"] == ["platform", "projects/a", "projects/b"]


def test_where_nothing_was_ever_applied_the_bundle_is_empty_and_its_revision_none() -> None:
    found = files(BundleBuilder(ALL).build(MirrorState(None, 1)))
    assert list(found) == [".manifest"]
    assert json.loads(found[".manifest"])["revision"] == "none"
