"""A key of data.json in the place of a package or rule is told at the key."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reconciler.core.clashes import data_clashes, describe_clashes
from reconciler.core.limits import Limits
from reconciler.core.model import PLATFORM, PolicyName, project_policy

A = project_policy("a")


def module(package: str, *rules: str) -> dict[str, Any]:
    """Rules as ``name`` or ``a.b``; ``[]`` is a computed part. The n-th stands in line n + 3."""
    path = [{"type": "var", "value": "data"}, *({"type": "string", "value": part} for part in package.split("."))]
    heads = []
    for line, name in enumerate(rules, 3):
        first, *rest = name.split(".")
        terms = [{"type": "var", "value": first}]
        terms += [{"type": "var", "value": "x"} if p == "[]" else {"type": "string", "value": p} for p in rest]
        heads.append({"head": {"name": first, "ref": terms, "location": {"row": line, "col": 1}}})
    return {"package": {"path": path}, "rules": heads}


def clashes(package: str, rules: list[str], data: Any, policy: PolicyName = A) -> list[str]:
    return ["/".join(path) for path in data_clashes(policy, module(package, *rules), data)]


@pytest.mark.parametrize(
    ("package", "rules", "data", "keys"),
    [
        ("projects.a", ["allow"], {"roles": [], "x": {"allow": 1}}, []),
        ("projects.a", ["allow"], {"allow": 1}, ["allow"]),
        ("projects.a", ["allow"], {"allow": {}}, ["allow"]),
        ("projects.a", ["allow", "deny"], {"deny": 1, "allow": 1}, ["allow", "deny"]),
        ("projects.a", ["p.q"], {"p": {"r": 1}}, []),
        ("projects.a", ["p.q"], {"p": {"q": 1}}, ["p/q"]),
        ("projects.a", ["p.q"], {"p": 1}, ["p"]),
        ("projects.a", ["p.[].q"], {"p": {"r": 1}}, ["p"]),
        ("projects.a.authz", ["allow"], {"authz": {}}, ["authz"]),
        ("projects.a.authz", ["allow"], {"authz": {"allow": 1}}, ["authz", "authz/allow"]),
        ("projects.a.authz", ["allow"], {"authz": [1]}, ["authz"]),
        ("projects.a.authz", ["allow"], {"allow": 1}, []),
        ("projects.a.v1.authz", [], {"v1": {"x": 1}}, []),
        ("projects.a.v1.authz", [], {"v1": {"authz": {}}}, ["v1/authz"]),
        ("projects.b", ["allow"], {"allow": 1}, []),
    ],
)
def test_a_key_clashes_where_a_package_or_a_rule_stands(
    package: str, rules: list[str], data: Any, keys: list[str]
) -> None:
    assert clashes(package, rules, data) == keys


def test_the_platforms_data_lies_at_its_own_root() -> None:
    assert clashes("platform", ["lib"], {"lib": 1}, PLATFORM) == ["lib"]
    assert clashes("platform.lib", ["f"], {"lib": 1}, PLATFORM) == ["lib"]


def test_each_error_stands_at_its_key_and_names_the_line_of_the_rule() -> None:
    raw = '{\n  "x": {"allow": 1},\n  "deny": 1,\n  "allow": true}'
    texts = ("package projects.a\n\nallow if input.x\ndeny if input.y\n", raw)
    errors = describe_clashes(A, module("projects.a", "allow", "deny"), json.loads(raw), texts, Limits())
    assert [str(error) for error in errors] == [
        (
            'projects/a/data.json:3:3: the key "deny" stands in the place of rule `deny` (line 4 of rego.rego): '
            "rename one of them"
        ),
        (
            'projects/a/data.json:4:3: the key "allow" stands in the place of rule `allow` (line 3 of rego.rego): '
            "rename one of them"
        ),
    ]


def test_a_key_in_the_place_of_the_package_names_the_package_and_its_line() -> None:
    texts = ('# about\npackage projects["a-b"].authz\n', '{"authz": {"note": 1}}')
    errors = describe_clashes(
        project_policy("a-b"), module("projects.a-b.authz"), json.loads(texts[1]), texts, Limits()
    )
    assert [str(error) for error in errors] == [
        (
            'projects/a-b/data.json:1:2: the key "authz" stands in the place of package `projects["a-b"].authz` '
            "(line 2 of rego.rego): rename one of them"
        )
    ]
