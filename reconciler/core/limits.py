"""What a policy may be: sizes, nesting, builtins and the two switches of validation. Plain values, passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

REFUSED_BUILTINS: Final = frozenset({"http.send", "net.lookup_ip_addr", "opa.runtime"})
"""Refused by default: they reach out of the decision, or read OPA's own environment."""


RULES: Final = 1
"""The rules by which verdicts are found; raised when a change of ours makes another verdict of the same policy. What
was found by other rules is not remembered."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and switches of validation; a verdict depends on all of them, so they belong into a verdict's key.

    Sizes are bytes. ``nesting`` bounds brackets in JSON and in Rego, because OPA's syntax tree grows with the square
    of the nesting. ``errors`` bounds what one verdict reports. ``namespace`` and ``rego_v0`` say whether a policy that
    leaves its namespace, or that compiles only as Rego v0, is invalid or only warned of.
    """

    rego_bytes: int = 512 * 1024
    data_bytes: int = 1024 * 1024
    nesting: int = 64
    errors: int = 20
    namespace: Literal["enforce", "warn"] = "enforce"
    rego_v0: Literal["warn", "refuse"] = "warn"
    refused_builtins: frozenset[str] = REFUSED_BUILTINS

    def text(self) -> str:
        """All of them on one line, the same for equal ones in every process."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return repr({**found, "refused_builtins": sorted(self.refused_builtins)})
