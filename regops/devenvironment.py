"""What the processes of a `regops dev` inherit from the user's shell: nothing that moves their ports or folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from reconciler.settings import ENVIRONMENT_PREFIX, NO_SETTINGS, load, setting_names

_OWN_GROUPS: Final = ("etcd.", "server.", "agent.", "auth.", "audit.")
_OWN: Final = frozenset({"git.remote", "git.branch", "git.path", "git.mirror", "git.poll_interval", "opa.binary"})
"""Settings that dev itself gives to what it starts."""
_FOREIGN: Final = ("ETCD_", "OPA_", "GIT_", "SECANTUS_")
"""Every flag of etcd and OPA can also come as a variable; git's would lead into other repositories."""


def inherited(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment to start processes with, and the ``REGOPS_`` variables that are left out and worth a word.

    Settings of what does not move (`policy`, `guard`, `loop`, `api`, how git reaches a remote) are passed on.
    Raises `StalledError` when one of them has an impossible value: better here than in a log of a child.
    """
    passed = {variable for name, variable in setting_names().items() if not _is_own(name)} | {"REGOPS_LOG_LEVEL"}
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith((*_FOREIGN, ENVIRONMENT_PREFIX)) or name in passed
    }
    load(None, kept)
    left_out = environment.keys() - kept.keys() - NO_SETTINGS
    return kept, sorted(name for name in left_out if name.startswith(ENVIRONMENT_PREFIX) and "_TEST_" not in name)


def _is_own(name: str) -> bool:
    return name.startswith(_OWN_GROUPS) or name in _OWN
