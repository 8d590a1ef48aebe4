"""Brackets and the package line are found in Rego without parsing it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.rego_text import declared_package, render_path, too_deep


@pytest.mark.parametrize(
    ("text", "path", "offset"),
    [
        ("package projects.a", ("projects", "a"), 0),
        ("# a comment with package x\r\n\n\tpackage projects.a.authz # more\n", ("projects", "a", "authz"), 30),
        ('package projects["a-b"].authz\n', ("projects", "a-b", "authz"), 0),
        ('package projects["1"]["if"]\n', ("projects", "1", "if"), 0),
        ("package\tplatform\n", ("platform",), 0),
        ("package projects.a-b\n", ("projects", "a"), 0),
    ],
)
def test_the_package_statement_is_found_after_comments(text: str, path: tuple[str, ...], offset: int) -> None:
    found = declared_package(text)
    assert found is not None
    assert (found.path, found.offset) == (path, offset)
    assert text[offset:].startswith(found.text)


@pytest.mark.parametrize("text", ["", "import rego.v1\npackage a\n", "# package a\n", "packagea\n", 'x := "package a"'])
def test_text_that_does_not_begin_with_a_package_has_none(text: str) -> None:
    assert declared_package(text) is None


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("projects", "a"), "projects.a"),
        (("projects", "a-b", "authz"), 'projects["a-b"].authz'),
        (("projects", "1a"), 'projects["1a"]'),
        (("projects", "if"), 'projects["if"]'),
        (("data", "projects", "data"), 'data.projects["data"]'),
        (("projects", "a_b"), "projects.a_b"),
    ],
)
def test_a_path_is_written_as_every_rego_reads_it(path: tuple[str, ...], text: str) -> None:
    assert render_path(path) == text


@given(st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True), max_size=3))
def test_what_is_rendered_is_read_back(rest: list[str]) -> None:
    path = ("projects", *rest)
    found = declared_package(f"package {render_path(path)}\n")
    assert found is not None
    assert found.path == path


@pytest.mark.parametrize(
    "text",
    [
        "[[1]]",
        '"[[[[" [[1]]',
        "`[[[[` [[1]]",
        '`a\n[[[[ "` [[1]]',
        "# [[[[\n[[1]]",
        '"\\"[[[[" [[1]]',
        '"#" [[1]] # "[[[[',
        "[1] [1] {1} (1) [[1]]",
        "]]]] [[1]]",
        '$"[[[[ {[1]} [[[[" [[1]]',
        '$"\\{[[[[" [[1]]',
        '"{[[[[" [[1]]',
    ],
)
def test_brackets_in_strings_and_comments_do_not_count(text: str) -> None:
    assert too_deep(text, 2) is None
    assert too_deep(text, 1) is not None


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("x := [[[1]]]", 7),
        ("x := {({1})}", 7),
        ('x := $"a{[[1]]}"', 10),
        ("x := $`a\n{[[1]]}`", 11),
        ('x := $"a{$"b{[1]}"}"', 13),
        ('"unclosed\n[[[', 12),
    ],
)
def test_the_first_bracket_that_is_too_deep_is_named(text: str, at: int) -> None:
    assert too_deep(text, 2) == at


def test_half_a_mebibyte_of_anything_is_read_in_a_moment() -> None:
    began = time.process_time()
    for piece in ("[", "]", '"', "`", "#", '$"{', '$"', "\\", "[]", '"\\', "{ ", "a"):
        too_deep(("[" * 65 + "]" * 65 + piece * (512 * 1024 // len(piece)))[: 512 * 1024], 100_000_000)
        too_deep(piece * (512 * 1024 // len(piece)), 64)
    assert time.process_time() - began < 10
