"""What a server start looks at in etcd."""

from reconciler.adapters.etcd import EtcdStore


async def test_an_etcd_started_as_it_should_be_needs_no_attention(store: EtcdStore) -> None:
    health = await store.health()
    assert health.db_size > 0
    assert health.quota > health.db_size
    assert health.alarms == ()
    assert health.warnings == ()
