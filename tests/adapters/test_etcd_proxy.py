"""Whether the proxy of a user's shell comes between regops and etcd."""

import pytest
from fixtures.etcd import EtcdServer

from reconciler.adapters.etcd import EtcdStore
from reconciler.core.ports import Range


async def test_a_proxy_in_the_environment_is_not_asked_for_etcd(
    etcd_server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a company's proxy every command that reads etcd ended in `deadline_exceeded`, also on one's own machine:
    gRPC's core sends plain connections through ``http_proxy``, those to loopback too."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    store = EtcdStore([etcd_server.endpoint])
    try:
        assert (await store.read(Range("/nothing"))).revision > 0
    finally:
        await store.aclose()
