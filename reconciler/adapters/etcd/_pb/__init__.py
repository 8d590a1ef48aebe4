"""Generated from ``etcd.proto`` and ``mvcc.proto`` by ``python -m reconciler.adapters.etcd.generate``."""
