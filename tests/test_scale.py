"""Ten thousand policies, on a real Git and etcd; the compiler only reads words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fixtures.git import Remote
from test_focus import Noting

from reconciler.adapters.etcd import Election, EtcdStore
from reconciler.adapters.git import GitSource
from reconciler.core.guards import Limits
from reconciler.core.keyspace import Keyspace
from reconciler.core.live import decode_live, live_ranges
from reconciler.core.model import project_policy
from reconciler.core.ports import Range
from reconciler.reconcile import Reconciler

COUNT = 10_000


async def test_ten_thousand_policies_get_in_and_one_change_is_all_that_the_next_pass_touches(
    tmp_path: Path, store: EtcdStore, prefix: str
) -> None:
    keys = Keyspace(f"{prefix}policies/", f"{prefix}regops/")
    remote = Remote(tmp_path / "remote.git")
    remote.commit({f"policies/projects/p{number}/rego.rego": b"v%d" % number for number in range(COUNT)})
    source = GitSource(remote=remote.url, mirror=tmp_path / "mirror.git")
    judge = Noting(source, "hold-platform")
    reconciler = Reconciler(source, store, judge, keyspace=keys, limits=Limits())

    async def live() -> Mapping[str, bytes]:
        kvs = (await store.read(Range(keys.policies, prefix=True))).ranges[0]
        return {kv.key.removeprefix(keys.policies): kv.value for kv in kvs}

    try:
        async with Election(store, keys.leader, "me").lead() as lead:
            first = await reconciler.run(lead.fence)
            wanted = {f"projects/p{number}/rego.rego": b"v%d" % number for number in range(COUNT)}
            assert await live() == wanted
            assert (first.live.count, first.live.applying) == (COUNT, None)
            one, gone = project_policy("p77"), project_policy("p9999")
            remote.commit({f"policies/{one}/rego.rego": b"another", f"policies/{gone}": None})
            second = await reconciler.run(lead.fence)
            assert judge.focus == frozenset({one, gone})
            assert second.live.applied is not None
            assert set(second.live.applied.changed or ()) == {one, gone}
            del wanted[f"{gone}/rego.rego"]
            assert await live() == wanted | {f"{one}/rego.rego": b"another"}
            known, found = second.live, decode_live(keys, await store.read(*live_ranges(keys)))
            assert (known.policies, known.count) == (found.policies, COUNT - 1)
            reconciler.invalidate()
            assert not (await reconciler.run(lead.fence)).wrote
    finally:
        await source.aclose()
