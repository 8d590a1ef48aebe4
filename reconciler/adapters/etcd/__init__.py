"""etcd by grpc.aio: gateway, watch and fenced election (docs/adr/0003)."""

from reconciler.adapters.etcd.election import Election, Leadership
from reconciler.adapters.etcd.gateway import EtcdStore

__all__ = ["Election", "EtcdStore", "Leadership"]
