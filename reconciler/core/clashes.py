"""Keys of ``data.json`` where the policy's own package or rules stand.

OPA refuses a bundle in which a rule and data claim one path, and says only which; a key in the place of a package
hides what a reader expects there. Both are told at the key, naming the rule's line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reconciler.core.json_scan import Path, Scan, line_and_column
from reconciler.core.limits import Limits
from reconciler.core.model import DATA_FILE, REGO_FILE, FileError, PolicyName, package_of
from reconciler.core.namespace import Node, package_path, rule_paths
from reconciler.core.rego_text import declared_package, render_path


def data_clashes(policy: PolicyName, module: Mapping[str, Node], data: Mapping[str, Any]) -> tuple[Path, ...]:
    """Paths of the keys (below the policy's root) that clash with the module's package or rules."""
    return tuple(dict.fromkeys(key for key, _ in _clashes(policy, module, data)))


def describe_clashes(
    policy: PolicyName,
    module: Mapping[str, Node],
    data: Mapping[str, Any],
    texts: tuple[str, str],
    limits: Limits,
) -> tuple[FileError, ...]:
    """An error at each clashing key, in the order of the JSON. ``texts`` are Rego and JSON; a ``module`` with locations
    names the rule's line."""
    rego, raw = texts
    keys = Scan(raw, limits.nesting).run().keys
    errors: dict[Path, FileError] = {}
    for key, (what, line) in _clashes(policy, module, data):
        where = f" (line {line} of {REGO_FILE})" if line else ""
        if not line and (package := declared_package(rego)) and what.startswith("package"):
            where = f" (line {line_and_column(rego, package.offset)[0]} of {REGO_FILE})"
        kind, _, name = what.partition(" ")
        message = f'the key "{key[-1]}" stands in the place of {kind} `{name}`{where}: rename one of them'
        place = line_and_column(raw, keys[key]) if key in keys else (None, None)
        errors.setdefault(key, FileError(f"{policy}/{DATA_FILE}", message, *place))
    return tuple(sorted(errors.values(), key=lambda error: (error.line or 0, error.column or 0)))


def _clashes(
    policy: PolicyName, module: Mapping[str, Node], data: Mapping[str, Any]
) -> Iterator[tuple[Path, tuple[str, int | None]]]:
    """Each clashing key with what stands there and, where the module has locations, its line."""
    root = package_of(policy)
    package = package_path(module)
    if package[: len(root)] != root:
        return
    below = package[len(root) :]
    if below and (key := _taken(data, below)):
        yield key, (f"package {render_path(package)}", None)
    for rule, place in rule_paths(module):
        if key := _taken(data, (*below, *rule)):
            yield key, (f"rule {render_path(rule)}", place[0] if place else None)


def _taken(data: Any, path: Path) -> Path | None:
    """The key on the way to ``path`` that claims it: ``path`` itself, or what is no object before it."""
    for depth, part in enumerate(path, 1):
        if part not in data:
            return None
        data = data[part]
        if not isinstance(data, dict):
            return path[:depth]
    return path
