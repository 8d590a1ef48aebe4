"""Who may read what (architecture, "Names and keys"), decided on OPA's syntax tree in JSON, never on text.

`find` judges the *compiled* tree (``GET /v1/policies/<id>``): imports and aliases are resolved there and local
variables renamed, so nothing hides and nothing is taken for something else; but it has no locations. `places` finds
the same findings in the *parsed* tree (``opa parse --json-include locations``), for the message only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from reconciler.core.model import PLATFORM, PolicyName, package_of, project_of
from reconciler.core.rego_text import render_path

Node = Any
"""A value of OPA's syntax tree as JSON."""
Place = tuple[int, int]
"""Line and column, from 1."""

_LEAVES: Final = frozenset({"string", "number", "boolean", "null"})
_UNWALKED: Final = frozenset({"annotations", "comments", "location", "ref", "name"})
"""Keys of rules, heads and expressions with nothing in them that is evaluated (a head's own name is no reference)."""


class Kind(StrEnum):
    """What is wrong with a reference."""

    PACKAGE = "package"
    REFERENCE = "reference"
    BUILTIN = "builtin"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation. ``path`` is the ground beginning of the reference (``("data", "projects", "b")``), or the
    builtin's name in parts, or the package without ``data``; ``dynamic`` whether something computed follows it."""

    kind: Kind
    path: tuple[str, ...]
    dynamic: bool = False

    @property
    def spelled(self) -> tuple[Kind, tuple[str, ...]]:
        """What the parsed and the compiled tree have in common."""
        return self.kind, self.path


@dataclass(frozen=True, slots=True)
class _Use:
    """A reference as it stands in a tree: its head, what follows, and whether it is called or put in by ``with``."""

    parts: list[Node]
    function: bool


def find(module: Mapping[str, Node], policy: PolicyName, refused: frozenset[str]) -> tuple[Finding, ...]:
    """Each violation of the policy's namespace in a compiled module, once.

    Raises `ValueError` when the module has no package, that is, when it is no syntax tree of OPA.
    """
    package = package_path(module)
    findings = dict.fromkeys(finding for finding, _ in _findings(module, policy, refused, {}))
    own = package_of(policy)
    if package[: len(own)] != own:
        return (Finding(Kind.PACKAGE, package), *findings)
    return tuple(findings)


def places(
    module: Mapping[str, Node], policy: PolicyName, refused: frozenset[str], wanted: tuple[Finding, ...]
) -> list[tuple[Finding, Place]]:
    """Where the findings stand in the parsed module, in the order of the file.

    The parsed tree knows no scopes (a local variable named like an import looks like the import), therefore only what
    `find` found too is kept.
    """
    by_path = {finding.spelled: finding for finding in wanted}  # `some x in data.b` is compiled to `data.b[_]`
    found = dict.fromkeys(
        (finding if finding in wanted else by_path[finding.spelled], place)
        for finding, place in _findings(module, policy, refused, _imports(module))
        if place is not None and finding.spelled in by_path
    )
    return sorted(found, key=lambda pair: pair[1])


def visible(module: Mapping[str, Node], policy: PolicyName) -> list[tuple[Finding, Place | None]]:
    """What can be said of a parsed module that does not compile: its package, and references that name ``data``
    themselves, in the order of the file. Aliases and builtins wait until it compiles: a local variable may hide them.
    """
    package = package_path(module)
    own = package_of(policy)
    outside = [(Finding(Kind.PACKAGE, package), None)] if package[: len(own)] != own else []
    found = dict.fromkeys(_findings(module, policy, frozenset(), {}))
    return [*outside, *sorted(found, key=lambda pair: pair[1] or (0, 0))]


def package_path(module: Mapping[str, Node]) -> tuple[str, ...]:
    """The module's package without the leading ``data``; `ValueError` when there is none."""
    try:
        return tuple(str(term["value"]) for term in module["package"]["path"][1:])
    except (KeyError, TypeError) as error:
        raise ValueError("no syntax tree of a Rego module") from error


def rule_paths(module: Mapping[str, Node]) -> Iterator[tuple[tuple[str, ...], Place | None]]:
    """The ground beginning of each rule's name below the package (``a.b`` of ``a.b[x]``), with its place."""
    for rule in module.get("rules") or ():
        head = rule["head"]
        terms = head.get("ref") or [{"type": "var", "value": head["name"]}]
        path = [str(terms[0]["value"])]
        for term in terms[1:]:
            if term.get("type") != "string":
                break
            path.append(term["value"])
        yield tuple(path), _place(head) or _place(rule)


def describe(finding: Finding, policy: PolicyName, written: tuple[str, ...] = ()) -> str:
    """What is wrong and what to do; ``written`` is the package as it stands in the file, where that is known."""
    if finding.kind is Kind.PACKAGE:
        return _describe_package(written or finding.path, policy)
    if finding.kind is Kind.BUILTIN:
        name = ".".join(finding.path)
        return f"uses {name}, which policies may not use here: pass what it would fetch in `input` or in data.json"
    name = render_path(finding.path) + ("[…]" if finding.dynamic else "")
    if policy == PLATFORM:
        return f"reads `{name}`: the platform may read only `input` and its own tree, data.platform"
    own = render_path(("data", *package_of(policy)))
    return (
        f"reads `{name}`: a project may read only `input`, its own tree ({own}) and data.platform; "
        "what several projects need belongs into the platform"
    )


def _describe_package(path: tuple[str, ...], policy: PolicyName) -> str:
    project = project_of(policy)
    whose = f"project {project}" if project else "the platform"
    return (
        f"`package {render_path(path)}` is not in the namespace of {whose}: "
        f"write `package {render_path((*package_of(policy), *_own_part(path, project)))}`"
    )


def _own_part(path: tuple[str, ...], project: str | None) -> tuple[str, ...]:
    """What of a package that is not the policy's own is not meant as its namespace."""
    if path[0] == "projects":
        return path[2:]
    return path[1:] if path[0] in {"platform", "platforms", "project", project} else path


# --- the walk --------------------------------------------------------------------------------------------------------


def _findings(
    module: Mapping[str, Node], policy: PolicyName, refused: frozenset[str], imports: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[Finding, Place | None]]:
    for use in _uses(module.get("rules") or []):
        head = use.parts[0]
        if head.get("type") != "var":
            continue
        start = imports.get(head["value"], (head["value"],))
        path, dynamic = _ground(start, use.parts[1:])
        if path[0] == "data":
            if not _may_read(path, policy):
                yield Finding(Kind.REFERENCE, path, dynamic), _place(head)
        elif use.function and not dynamic and ".".join(path) in refused:
            yield Finding(Kind.BUILTIN, path), _place(head)


def _ground(start: tuple[str, ...], rest: list[Node]) -> tuple[tuple[str, ...], bool]:
    path = list(start)
    for term in rest:
        if not isinstance(term, dict) or term.get("type") != "string":
            return tuple(path), True
        path.append(term["value"])
    return tuple(path), False


def _may_read(path: tuple[str, ...], policy: PolicyName) -> bool:
    own = package_of(policy)
    return path[1 : 1 + len(own)] == own or path[1:2] == (PLATFORM,)


def _uses(rules: Node) -> Iterator[_Use]:
    """Every reference, and every variable that stands for itself, in depth and without recursion."""
    stack: list[Node] = [rules]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            yield from _WALKS.get(node.get("type", ""), _walk_other)(node, stack)


def _walk_leaf(_node: dict[str, Node], _stack: list[Node]) -> Iterator[_Use]:
    return iter(())


def _walk_var(node: dict[str, Node], _stack: list[Node]) -> Iterator[_Use]:
    yield _Use([node], function=False)


def _walk_ref(node: dict[str, Node], stack: list[Node]) -> Iterator[_Use]:
    head, *rest = node["value"]
    stack.extend(rest)
    if head.get("type") == "var":
        yield _Use(node["value"], function=False)
    else:
        stack.append(head)


def _walk_call(node: dict[str, Node], stack: list[Node]) -> Iterator[_Use]:
    stack.append(node["value"])
    yield from _functions(node["value"][0])


def _walk_other(node: dict[str, Node], stack: list[Node]) -> Iterator[_Use]:
    """Rules, heads, expressions, `with`, `every`, collections and comprehensions: whatever they hold."""
    stack.extend(value for key, value in node.items() if key not in _UNWALKED)
    terms = node.get("terms")
    if isinstance(terms, list) and terms:
        yield from _functions(terms[0])
    for replacement in node.get("with") or ():
        yield from _functions(replacement["target"])
        yield from _functions(replacement["value"])


def _functions(term: Node) -> Iterator[_Use]:
    """The term where a function may stand: an operator, or either side of ``with``."""
    if term.get("type") == "ref":
        yield _Use(term["value"], function=True)
    elif term.get("type") == "var":
        yield _Use([term], function=True)


_WALKS: Final[Mapping[str, Callable[[dict[str, Node], list[Node]], Iterator[_Use]]]] = {
    **dict.fromkeys(_LEAVES, _walk_leaf),
    "var": _walk_var,
    "ref": _walk_ref,
    "call": _walk_call,
}


def _imports(module: Mapping[str, Node]) -> dict[str, tuple[str, ...]]:
    """What each imported name stands for, where that is below ``data`` (``rego`` and ``future`` are none)."""
    names = {}
    for entry in module.get("imports") or ():
        path = tuple(str(term["value"]) for term in entry["path"]["value"])
        if path[0] in {"data", "input"}:
            names[entry.get("alias") or path[-1]] = path
    return names


def _place(node: Mapping[str, Node]) -> Place | None:
    location = node.get("location")
    return (location["row"], location["col"]) if location else None
