"""Fixtures that every test can use; each outside system has a module of its own in ``tests/fixtures``."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

pytest_plugins = [
    "fixtures.etcd",
    "fixtures.git",
    "fixtures.opa",
    "fixtures.bundles",
    "fixtures.mongo",
    "fixtures.reviews",
]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that is run in this process sets up logging as for one of its own; later tests read logs too."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
