"""Beside every OPA: etcd → mirror → bundle, and the receipts that prove what that OPA enforces."""
