"""Who may read what, on syntax trees as OPA writes them in JSON. Real Rego is judged in ``tests/contract``."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.core.limits import REFUSED_BUILTINS
from reconciler.core.model import PLATFORM, PolicyName, project_policy
from reconciler.core.namespace import Finding, Kind, describe, find, package_path, places, rule_paths, visible

A = project_policy("a")
Node = dict[str, Any]


def var(name: str, row: int = 0, column: int = 1) -> Node:
    return {"type": "var", "value": name} | ({"location": {"row": row, "col": column}} if row else {})


def string(text: str) -> Node:
    return {"type": "string", "value": text}


def ref(path: str, *rest: Node, row: int = 0, column: int = 1) -> Node:
    head, *tail = path.split(".")
    return {"type": "ref", "value": [var(head, row, column), *map(string, tail), *rest]}


def call(function: str, *arguments: Node) -> Node:
    return {"type": "call", "value": [ref(function), *arguments]}


def rule(*terms: Node | list[Node], name: str = "x", **more: Any) -> Node:
    body = [{"index": index, "terms": term} for index, term in enumerate(terms)]
    return {
        "head": {"name": name, "ref": [var(name)], "value": {"type": "boolean", "value": True}},
        "body": body,
    } | more


def module(*rules: Node, package: str = "projects.a", imports: tuple[Node, ...] = ()) -> Node:
    path = [{"type": "var", "value": "data"}, *map(string, package.split("."))]
    return {"package": {"path": path}, "rules": list(rules), "imports": list(imports)}


def reads(*terms: Node | list[Node], policy: PolicyName = A) -> set[str]:
    package = policy.replace("/", ".")
    found = find(module(rule(*terms), package=package), policy, REFUSED_BUILTINS)
    return {".".join(f.path) + ("[…]" if f.dynamic else "") for f in found}


@pytest.mark.parametrize(
    "path", ["input", "input.data.projects.b", "data.projects.a", "data.projects.a.b.c", "data.platform.lib"]
)
def test_a_project_reads_input_its_own_tree_and_the_platform(path: str) -> None:
    assert reads(ref(path)) == set()
    assert reads(ref(path, var("x"))) == set()


@pytest.mark.parametrize(
    "path", ["data.projects.b", "data.projects", "data.system.bundles", "data.projectsa", "data.platforms", "data"]
)
def test_it_reads_nothing_else(path: str) -> None:
    assert reads(ref(path)) == {path}


@pytest.mark.parametrize("path", ["data", "data.projects"])
def test_what_is_computed_above_its_own_tree_could_be_anything(path: str) -> None:
    assert reads(ref(path, var("x"), string("a"))) == {f"{path}[…]"}
    assert reads(ref(path, call("f", ref("input.x")))) == {f"{path}[…]"}


@pytest.mark.parametrize("path", ["data.projects.a", "data.projects", "data"])
def test_the_platform_reads_no_project(path: str) -> None:
    assert reads(ref(path), policy=PLATFORM) == {path}
    assert reads(ref("data.platform.x", var("y")), policy=PLATFORM) == set()


B = ref("data.projects.b")


@pytest.mark.parametrize(
    "terms",
    [
        [[ref("eq"), var("y"), B]],
        [call("count", B)],
        [call("f", call("g", B))],
        [{"type": "array", "value": [B]}],
        [{"type": "set", "value": [B]}],
        [{"type": "object", "value": [[string("k"), B]]}],
        [{"type": "object", "value": [[B, string("v")]]}],
        [{"type": "arraycomprehension", "value": {"term": B, "body": []}}],
        [{"type": "setcomprehension", "value": {"term": var("x"), "body": [{"terms": B}]}}],
        [{"type": "objectcomprehension", "value": {"key": B, "value": var("x"), "body": []}}],
        [{"key": None, "value": var("v"), "domain": B, "body": []}],
        [{"key": None, "value": var("v"), "domain": var("d"), "body": [{"terms": B}]}],
        [{"symbols": [call("internal.member_2", var("x"), B)]}],
        [ref("input", B)],
        [ref("data.platform.x", B)],
        [{"type": "ref", "value": [call("f", B), string("x")]}],
        [{"type": "templatestring", "value": {"parts": [{"terms": B}]}}],
    ],
)
def test_a_reference_is_found_wherever_it_stands(terms: list[Any]) -> None:
    assert reads(*terms) == {"data.projects.b"}


def test_a_reference_is_found_in_values_keys_arguments_else_and_with() -> None:
    head = {"name": "x", "ref": [var("x")], "key": ref("data.k"), "value": ref("data.v"), "args": [ref("data.a")]}
    other = rule(ref("data.e"))
    with_ = [{"target": ref("data.t"), "value": ref("data.w")}]
    made = {"head": head, "body": [{"terms": ref("input"), "with": with_}], "else": other}
    found = find(module(made), A, REFUSED_BUILTINS)
    assert {f.path[1] for f in found} == set("kvaetw")


def test_data_that_stands_alone_is_a_reference_to_everything() -> None:
    assert reads(call("walk", var("data"))) == {"data"}


@pytest.mark.parametrize("name", sorted(REFUSED_BUILTINS))
def test_a_refused_builtin_is_found_as_call_as_operator_and_on_both_sides_of_with(name: str) -> None:
    def replaced(target: str, value: str) -> Node:
        return {**rule(), "body": [{"terms": ref("input"), "with": [{"target": ref(target), "value": ref(value)}]}]}

    wanted = (Finding(Kind.BUILTIN, tuple(name.split("."))),)
    for made in (rule(call(name)), rule([ref(name), var("x")]), replaced(name, "upper"), replaced("upper", name)):
        assert find(module(made), A, REFUSED_BUILTINS) == wanted
        assert find(module(made), A, frozenset()) == ()


def test_a_document_named_like_a_builtin_is_none() -> None:
    assert reads(ref("http.send")) == set()
    assert reads(ref("input.http.send")) == set()


@pytest.mark.parametrize(
    ("policy", "package", "write"),
    [
        ("projects/project", "project.authz", "package projects.project.authz"),
        ("projects/a", "projects.b.authz", "package projects.a.authz"),
        ("projects/a-b", "authz", 'package projects["a-b"].authz'),
        ("projects/a", "platform.authz", "package projects.a.authz"),
        ("projects/a", "projects", "package projects.a"),
        ("projects/a", "a", "package projects.a"),
        ("projects/a", "a.v1", "package projects.a.v1"),
        ("platform", "projects.a.x", "package platform.x"),
        ("platform", "project.x", "package platform.x"),
        ("platform", "authz", "package platform.authz"),
    ],
)
def test_a_package_of_somebody_else_is_told_with_the_line_to_write(policy: str, package: str, write: str) -> None:
    name = PolicyName(policy)
    [finding] = find(module(package=package), name, REFUSED_BUILTINS)
    assert finding == Finding(Kind.PACKAGE, tuple(package.split(".")))
    assert describe(finding, name).endswith(f"write `{write}`")


@pytest.mark.parametrize("package", ["projects.a", "projects.a.authz.v1"])
def test_a_package_at_or_below_the_policys_own_is_fine(package: str) -> None:
    assert find(module(package=package), A, REFUSED_BUILTINS) == ()


def test_messages_name_the_reference_and_what_may_be_read() -> None:
    said = describe(Finding(Kind.REFERENCE, ("data", "projects", "b-c"), dynamic=True), project_policy("a-b"))
    assert 'reads `data.projects["b-c"][…]`' in said
    assert 'its own tree (data.projects["a-b"]) and data.platform' in said
    assert "the platform may read only" in describe(Finding(Kind.REFERENCE, ("data",)), PLATFORM)
    assert "uses http.send" in describe(Finding(Kind.BUILTIN, ("http", "send")), A)


def test_places_come_from_the_parsed_tree_in_the_order_of_the_file() -> None:
    parsed = module(
        rule(ref("data.b", row=4, column=9), ref("data.c", row=3, column=2), ref("data.b", row=3, column=7))
    )
    wanted = find(parsed, A, REFUSED_BUILTINS)
    assert [(f.path[1], place) for f, place in places(parsed, A, REFUSED_BUILTINS, wanted)] == [
        ("c", (3, 2)),
        ("b", (3, 7)),
        ("b", (4, 9)),
    ]


def test_an_alias_is_resolved_and_a_local_variable_of_its_name_is_not_taken_for_it() -> None:
    imports = ({"path": ref("data.projects.b"), "alias": "bb"}, {"path": ref("data.platform"), "alias": "p"})
    parsed = module(rule(ref("bb.x", row=5), ref("p.x", row=6)), imports=imports)
    compiled = module(rule(ref("data.projects.b.x"), ref("data.platform.x")))
    found = find(compiled, A, REFUSED_BUILTINS)
    assert [place for _, place in places(parsed, A, REFUSED_BUILTINS, found)] == [(5, 1)]
    assert places(parsed, A, REFUSED_BUILTINS, ()) == []


def test_what_the_compiler_makes_of_some_in_has_the_place_of_what_was_written() -> None:
    """``some x in data.b`` is compiled to ``data.b[_]``: it had no place but the package's line."""
    written = module(rule({"symbols": [call("internal.member_2", var("x"), ref("data.b", row=7, column=3))]}))
    found = find(module(rule(ref("data.b", var("_")))), A, REFUSED_BUILTINS)
    assert [place for _, place in places(written, A, REFUSED_BUILTINS, found)] == [(7, 3)]


def test_of_a_module_that_does_not_compile_only_what_cannot_be_hidden_is_said() -> None:
    alias = ({"path": ref("data.projects.b"), "alias": "bb"},)
    parsed = module(
        rule(ref("data", var("x"), row=3), ref("bb.x", row=4), call("http.send")), package="b", imports=alias
    )
    assert visible(parsed, A) == [
        (Finding(Kind.PACKAGE, ("b",)), None),
        (Finding(Kind.REFERENCE, ("data",), dynamic=True), (3, 1)),
    ]


@pytest.mark.parametrize("tree", [{}, {"package": None}, {"package": {"path": 1}}])
def test_what_is_no_module_is_refused(tree: Node) -> None:
    with pytest.raises(ValueError, match="no syntax tree"):
        package_path(tree)


def test_rules_are_named_up_to_what_is_computed() -> None:
    head = {"name": "p", "ref": [var("p"), string("q"), var("x"), string("r")], "location": {"row": 4, "col": 1}}
    made = module({"head": head}, {"head": {"name": "old"}, "location": {"row": 9, "col": 2}})
    assert list(rule_paths(made)) == [(("p", "q"), (4, 1)), (("old",), (9, 2))]


def test_a_tree_as_deep_as_no_stack_is_walked() -> None:
    node = ref("data.projects.b")
    for _ in range(20_000):
        node = {"type": "array", "value": [node]}
    assert find(module(rule(node)), A, REFUSED_BUILTINS) == (Finding(Kind.REFERENCE, ("data", "projects", "b")),)
