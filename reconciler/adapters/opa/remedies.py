"""What a person can do about OPA's own errors, whose messages (``v1/ast`` of OPA) say what is wrong and no more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from reconciler.core.model import PolicyName, package_of
from reconciler.core.rego_text import render_path

_REMEDIES: Final = tuple(
    (re.compile(pattern), remedy)
    for pattern, remedy in (
        (r"^package expected", "begin the file with `package {package}`"),
        (r"keyword is required", "write it there; `opa fmt --v0-v1` does it for the whole file"),
        (r"^var \S+ is unsafe", "give it a value before it is used, with `:=`, `some` or by a rule of that name"),
        (r"^undefined function", "define it here or correct its name; beside OPA's own there is only data.platform"),
        (r"may be recursive", "write the name of what is read instead of a computed one"),
        (r"is recursive", "break the circle: a rule cannot ask for itself"),
        (r"^conflicting rules|^multiple default rules|redeclared", "rename or delete one of them"),
        (r"arity mismatch|^\S+: (?:too (?:many|few) arguments)", "correct the number of arguments"),
        (r"unexpected eof token", "close what is open: the file ends within a rule"),
        (r"^var cannot be used for rule name", "a rule is `name := value` or `name if {{ … }}`"),
        (r"unexpected lt token", "resolve the merge conflict, if that is one"),
    )
)
_ELSE: Final = "correct this line"


def with_remedy(message: str, policy: PolicyName) -> str:
    """OPA's message, on one line, and what to do about it."""
    package = render_path(package_of(policy))
    remedy = next((text for pattern, text in _REMEDIES if pattern.search(message)), _ELSE)
    return f"{' '.join(message.split())}: {remedy.format(package=package)}"


def one_a_place(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Where OPA's parser gave up it tells every attempt, the innermost first; the outer ones say what else might have
    stood there (``expected rule value term (e.g., allow[<nil>] …``), which helps nobody."""
    found: dict[object, Mapping[str, Any]] = {}
    for number, error in enumerate(errors):
        place = error.get("location") or {}
        parsing = error.get("code") == "rego_parse_error" and "row" in place
        key = (place.get("file"), place["row"], place.get("col")) if parsing else number
        found.setdefault(key, error)
    return list(found.values())
