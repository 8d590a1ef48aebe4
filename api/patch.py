"""From the policy object of a request to the bytes that Git will have. Pure; called again whenever the branch moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from api.problems import ProblemError
from api.texts import TooLongError, dump, strict_object
from reconciler.core.limits import Limits
from reconciler.core.model import Content

LIMITS: Final = Limits()
"""What holds where the caller names no others."""


def replaced(policy: Mapping[str, Any], current: Content | None, limits: Limits = LIMITS) -> Content:
    """PUT: ``rego``, and ``data`` or none. Raises 413, as all three do, when the data's text is too long for Git."""
    return Content(policy["rego"].encode(), _data(policy.get("data"), current, limits))


def patched(change: Mapping[str, Any], current: Content, limits: Limits = LIMITS) -> Content:
    """PATCH with ``application/json``: what is given is replaced whole; ``"data": null`` removes the data."""
    rego = change["rego"].encode() if "rego" in change else current.rego
    data = _data(change["data"], current, limits) if "data" in change else current.data
    return Content(rego, data)


def merged(change: Mapping[str, Any], current: Content, limits: Limits = LIMITS) -> Content:
    """PATCH with ``application/merge-patch+json`` (RFC 7396) of the policy object."""
    before: dict[str, Any] = {"rego": current.rego.decode("utf-8", "replace")}
    if current.data is not None and isinstance(change.get("data"), dict):
        before["data"] = _parsed(current, current.data, limits)
    after = merge_patch(before, change)
    if not isinstance(after.get("rego"), str):
        raise ProblemError(400, "validation_error", "rego cannot be removed: a policy has a rego text")
    rego = after["rego"].encode() if "rego" in change else current.rego
    return Content(rego, _data(after.get("data"), current, limits) if "data" in change else current.data)


def merge_patch(target: Any, change: Any) -> Any:
    """RFC 7396 section 2."""
    if not isinstance(change, Mapping):
        return change
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in change.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def _data(data: dict[str, Any] | None, current: Content | None, limits: Limits) -> bytes | None:
    """The text of the data; the former bytes where they mean the same, whatever their form.

    Numbers mean the same when they are written the same: OPA prints 1.0 and 1 differently, so somebody may want
    exactly that change.
    """
    if data is None:
        return None
    former = None
    if current is not None and current.data is not None:
        try:
            former = strict_object(current.data.decode(), limits.nesting)
        except (ValueError, RecursionError):
            former = None
        if former is not None and former == data:
            return current.data
    try:
        return dump(data, former, limit=limits.data_bytes)
    except TooLongError as error:
        message = f"data is larger than {limits.data_bytes} bytes as it is written to Git, indented by two spaces"
        raise ProblemError(413, "payload_too_large", message) from error


def _parsed(current: Content, data: bytes, limits: Limits) -> dict[str, Any]:
    try:
        return strict_object(data.decode(), limits.nesting)
    except (ValueError, RecursionError) as error:
        message = "the data at the head of the branch is no JSON object: replace it whole, with application/json"
        raise ProblemError(409, "conflict", message, headers={"ETag": current.blob_ids().etag}) from error
