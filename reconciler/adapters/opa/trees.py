"""Large answers of OPA without keeping the event loop from turning: 512 KiB of Rego are 6 MB of syntax tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from reconciler.core.errors import TransientError

_QUICK: Final = 65536
"""Bytes that are parsed in less than a millisecond."""


def tree_of(module: bytes) -> Mapping[str, Any]:
    """The compiled syntax tree in OPA's answer about a module. To be called in a thread.

    The C scanner lets no other thread run before its end, unless it calls back into Python: hence the hook, which makes
    it three times as slow. Raises `TransientError` (``CompilerUnavailable``) when there is no tree.
    """
    try:
        document = json.loads(module, object_hook=_as_it_is if len(module) > _QUICK else None)
    except ValueError as error:
        raise TransientError(f"the compiler did not answer: {error}", reason="CompilerUnavailable") from error
    tree = document.get("result", {}).get("ast")
    if not isinstance(tree, dict):
        raise TransientError("the compiler does not have the module", reason="CompilerUnavailable")
    return tree


def _as_it_is(found: dict[str, Any]) -> dict[str, Any]:
    return found
