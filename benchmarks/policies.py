"""Policies of a given size to measure with: 100 lines each, small data."""

from __future__ import annotations

from collections.abc import Iterator


def rego(project: str, mark: int, rules: int = 14) -> str:
    """About 100 lines; ``mark`` is the decision's value, so that an answer tells which version decided."""
    head = f'package projects["{project}"].authz\n\nmark := {mark}\n\ndefault allow := false\n\n'
    regions = f'data.projects["{project}"].regions'
    body = "".join(
        f'# rule {number}\nallow if {{\n\tinput.role == "role{number}"\n\tsome region in {regions}\n'
        f'\tinput.region == region\n\tstartswith(input.path, "/{number}")\n}}\n\n'
        for number in range(rules)
    )
    return head + body


DATA = '{"regions": ["eu", "us"], "limits": {"small": 10, "large": 1000}}\n'
PLATFORM = 'package platform.authz\n\ndefault allow := false\n\nallow if "platform_admin" in input.claims.roles\n'


def tree(count: int) -> dict[str, str]:
    """Files of a repository with ``count`` projects and a platform."""
    files = {"policies/platform/rego.rego": PLATFORM}
    for number in range(count):
        files[f"policies/projects/p{number}/rego.rego"] = rego(f"p{number}", 0)
        files[f"policies/projects/p{number}/data.json"] = DATA
    return files


LINES: dict[int, int] = {10: 1, 100: 14}
"""How many rules make about so many lines."""


def files(size: int, lines: int = 100) -> Iterator[tuple[str, bytes]]:
    """A repository of ``size`` policies in all, the platform's among them, one file after the other."""
    yield "policies/platform/rego.rego", PLATFORM.encode()
    for number in range(size - 1):
        yield f"policies/projects/p{number}/rego.rego", rego(f"p{number}", 0, LINES[lines]).encode()
        yield f"policies/projects/p{number}/data.json", DATA.encode()
