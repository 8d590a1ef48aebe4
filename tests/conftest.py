"""Fixtures that every test can use; each outside system has a module of its own in ``tests/fixtures``."""

pytest_plugins = ["fixtures.etcd", "fixtures.git", "fixtures.opa", "fixtures.bundles"]
