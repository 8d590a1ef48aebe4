"""The engine: Git tree → plan → etcd → agent → OPA. The core is pure; adapters do the IO; loops say when."""
