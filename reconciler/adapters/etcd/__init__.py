"""etcd by grpc.aio: gateway, watch and fenced election (docs/adr/0003)."""
