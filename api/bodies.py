"""Reading a request's body: bounded before it is read whole, and checked field by field."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from api.problems import ProblemError
from api.texts import Number, dump, parse_object

SLOWEST: Final = 30.0
"""Seconds that a body may take."""
REGO_BYTES: Final = 512 * 1024
DATA_BYTES: Final = 1024 * 1024
BODY_BYTES: Final = 3 * (REGO_BYTES + DATA_BYTES) + 65536
"""A text may be three times as long in a JSON string that escapes what is not ASCII."""
_SMALL: Final = 65536
_NESTING: Final = 65
_JSON: Final = "application/json"
_FIELDS: Final = ("rego", "data")

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a body of this kind may look like."""

    types: Collection[str]
    needs_rego: bool


PUT: Final = Kind((_JSON,), needs_rego=True)
PATCH: Final = Kind((_JSON, "application/merge-patch+json"), needs_rego=False)


@dataclass(frozen=True, slots=True)
class Body:
    """A policy object, or a part of one, and the bytes that it was read from."""

    policy: dict[str, Any]
    raw: bytes


async def read(request: web.Request, kind: Kind) -> Body:
    """The policy object of a request. Raises 400, 408, 413 or 415."""
    raw = await _raw(request, kind.types, BODY_BYTES)
    if not raw.strip():
        raise _invalid('the body is empty: send {"rego": "…", "data": {…}}')
    policy = parse_object(raw, _NESTING)
    _refuse_unknown(policy, _FIELDS)
    merging = request.content_type != _JSON
    _check_rego(policy, kind)
    if policy.get("data") is not None and not isinstance(policy["data"], dict):
        raise _invalid(f"data must be a JSON object, not {_kind_of(policy['data'])}")
    if "data" in policy and policy["data"] is None and kind.needs_rego:
        raise _invalid("data must be a JSON object; leave it out for a policy without data")
    if not policy and not merging:
        raise _invalid("the body changes nothing: give rego, data or both")
    if len(policy.get("rego") or "") > REGO_BYTES or len((policy.get("rego") or "").encode()) > REGO_BYTES:
        raise _too_large(f"rego is larger than {REGO_BYTES} bytes")
    if isinstance(policy.get("data"), dict) and len(dump(policy["data"])) > DATA_BYTES:
        raise _too_large(f"data is larger than {DATA_BYTES} bytes as it is written to Git")
    return Body(policy, raw)


async def read_object(request: web.Request, model: type[ModelT]) -> ModelT:
    """A small JSON object; an empty body is an empty object."""
    raw = await _raw(request, (_JSON,), _SMALL)
    if not raw.strip():
        raw = b"{}"
    parse_object(raw, _NESTING)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise _invalid(f"{name}: {first['msg']}") from error


async def _raw(request: web.Request, types: Collection[str], most: int) -> bytes:
    if request.body_exists and request.content_type not in types:
        accepted = ", ".join(types)
        name = "Accept-Patch" if request.method == "PATCH" else "Accept-Post"
        raise ProblemError(
            415,
            "unsupported_media_type",
            f"send {accepted}, not {request.content_type!r}",
            headers={name: accepted} if request.method != "PUT" else {},
        )
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ProblemError(415, "unsupported_media_type", "send the body without a Content-Encoding")
    if request.content_length is not None and request.content_length > most:
        raise _too_large(f"the body is larger than {most} bytes")
    chunks, size = [], 0
    try:
        async with asyncio.timeout(SLOWEST):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > most:
                    raise _too_large(f"the body is larger than {most} bytes")
                chunks.append(chunk)
    except TimeoutError as error:
        message = f"the body did not arrive within {SLOWEST:g} s"
        raise ProblemError(408, "request_timeout", message, headers={"Connection": "close"}) from error
    return b"".join(chunks)


def _check_rego(policy: dict[str, Any], kind: Kind) -> None:
    if "rego" not in policy:
        if kind.needs_rego:
            raise _invalid("rego is missing: the policy's text, as a string")
        return
    rego = policy["rego"]
    if rego is None and not kind.needs_rego:
        raise _invalid("rego cannot be removed: a policy has a rego text")
    if not isinstance(rego, str):
        raise _invalid(f"rego must be a string, not {_kind_of(rego)}")


def _refuse_unknown(policy: dict[str, Any], known: Collection[str]) -> None:
    for name in policy:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"a policy has {' and '.join(known)}"
            raise _invalid(f"{name[:60]!r} is no field of a policy: {hint}")


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", Number: "a number"}
    return names.get(type(value), "null")


def _invalid(message: str) -> ProblemError:
    return ProblemError(400, "validation_error", message)


def _too_large(message: str) -> ProblemError:
    return ProblemError(413, "payload_too_large", message, headers={"Connection": "close"})
