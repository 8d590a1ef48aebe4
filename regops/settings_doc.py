"""``docs/settings.md`` from the settings' own docstrings: ``python -m regops.settings_doc > docs/settings.md``."""

from __future__ import annotations

import ast
import inspect
import sys
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from reconciler.settings import Settings, setting_names

_HEAD = """# Settings

A YAML file (`--config FILE` or `REGOPS_CONFIG`) and environment variables; the variable wins. In the file a setting
stands in its group; lists are YAML lists there and separated by commas in a variable. Times are seconds. An unknown
name is an error that suggests the right one.

    git:
      remote: https://git.example.com/policies.git
    etcd:
      endpoints: [https://etcd-0:2379, https://etcd-1:2379]

Other variables: `REGOPS_CONFIG` (the file), `REGOPS_STATE` (folder of a running `regops dev`), `REGOPS_SERVER` (URL of
a server that commands ask), `REGOPS_TOKEN` (the token that they show to it), `REGOPS_LOG_LEVEL` (of `server` and
`agent`: debug, info, warning, error), `REGOPS_ETCD` and `REGOPS_OPA` (executables for `regops dev` and the tests).
"""


def document() -> str:
    """The whole page."""
    names = setting_names()
    groups = Settings()
    parts = [_HEAD]
    for group in Settings.model_fields:
        model: BaseModel = getattr(groups, group)
        parts.append(f"\n## {group}\n\n{(type(model).__doc__ or '').strip()}\n")
        parts.append("| setting | variable | default | what |\n|---|---|---|---|")
        said = _docstrings(type(model))
        for name, field in type(model).model_fields.items():
            variable = names[f"{group}.{name}"]
            parts.append(f"| `{group}.{name}` | `{variable}` | {_default(field)} | {said[name]} |")
    return "\n".join(parts) + "\n"


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text under each setting. `KeyError` at the caller's for one that has none."""
    (body,) = ast.parse(inspect.getsource(model)).body
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{model} is no class")
    return {
        field.target.id: inspect.cleandoc(said.value.value)
        for field, said in pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant) and isinstance(said.value.value, str)
    }


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "the host's name"
    value: Any = field.default
    if value is None or value in ("", ()):
        return "-"
    if isinstance(value, tuple):
        return f"`{', '.join(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(document())
