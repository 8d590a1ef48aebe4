"""The YAML file of settings. Imported only where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

from reconciler.core.errors import StalledError
from reconciler.settings_file import SettingsFile

_SHAPE: Final = "Write groups such as 'git:' with their settings below, indented."


def read(file: Path) -> SettingsFile:
    """Read it. Raises `StalledError` (``InvalidSettings``) with ``file:line``."""
    loader = None
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        lines = {} if node is None else _lines(node, str(file))
        document = {} if node is None else loader.construct_document(node)
    except OSError as error:
        raise _invalid(f"{file}: {error.strerror}", "Give an existing settings file with --config.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _invalid(_why(error, str(file)), "Correct the line; docs/settings.md shows the form.") from error
    finally:
        if loader is not None:
            loader.dispose()
    return SettingsFile({group: values or {} for group, values in document.items()}, lines, str(file))


def _lines(node: yaml.Node, file: str) -> dict[tuple[str, ...], int]:
    """The line of every group and setting; an error when the file is no mapping of groups, or says a name twice."""
    found: dict[tuple[str, ...], int] = {}
    for key, values in _pairs(node, file):
        _note(found, (key.value,), key, file)
        if isinstance(values, yaml.ScalarNode) and values.tag == "tag:yaml.org,2002:null":
            continue
        for name, _ in _pairs(values, file):
            _note(found, (key.value, name.value), name, file)
    return found


def _pairs(node: yaml.Node, file: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise _invalid(f"{file}:{node.start_mark.line + 1}: this is no mapping of settings", _SHAPE)
    return list(node.value)


def _note(found: dict[tuple[str, ...], int], names: tuple[str, ...], key: yaml.Node, file: str) -> None:
    line = key.start_mark.line + 1
    if names in found:
        raise _invalid(
            f"{file}:{line}: {'.'.join(names)} stands there twice (first in line {found[names]})", "Keep one."
        )
    found[names] = line


def _why(error: yaml.YAMLError | UnicodeDecodeError, file: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        words = ", ".join(filter(None, (error.context, error.problem)))
        return f"{file}:{mark.line + 1}:{mark.column + 1}: this is not YAML: {words}"
    return f"{file} is not YAML: {' '.join(str(error).split())}"


def _invalid(message: str, remedy: str) -> StalledError:
    return StalledError(message, reason="InvalidSettings", remedy=remedy)
