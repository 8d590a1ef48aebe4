"""A file of settings as values: groups of settings, and the line of each, so that an error can point at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """What the file says; nothing is checked against the known settings yet."""

    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    name: str = ""

    def place(self, *names: str) -> str:
        """``file:line`` of a group or of a setting in it; the nearest one known, empty where there is no file."""
        for length in range(len(names), 0, -1):
            if line := self.lines.get(names[:length]):
                return f"{self.name}:{line}"
        return self.name
