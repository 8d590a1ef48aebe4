"""etcd by grpc.aio: gateway, watch and fenced election (docs/adr/0003)."""

import os

# What gRPC's core prints by itself (a line for every failed handshake) says less than the errors raised here, and is
# no JSON. It reads this once, when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from reconciler.adapters.etcd.election import Election, Leadership
from reconciler.adapters.etcd.gateway import EtcdStore

__all__ = ["Election", "EtcdStore", "Leadership"]
