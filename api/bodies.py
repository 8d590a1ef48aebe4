"""Reading a request's body: bounded before it is read whole, and checked field by field."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from api.problems import ProblemError
from api.texts import Number, TooLongError, compact_size, parse_object
from reconciler.core.limits import Limits

LIMITS: Final = Limits()
"""What holds where the caller names no others."""
SLOWEST: Final = 30.0
"""Seconds that a body may take."""
_ESCAPED: Final = 3
"""How many times longer a text may be in a JSON string: characters beyond ASCII, escaped, take three times their UTF-8
bytes at most. Escapes of plain letters take six, and nobody writes those throughout."""
_SPARE: Final = 65536
"""Bytes for everything around rego and data; also the bound of all other bodies."""
_AT_ONCE: Final = 32768
"""Bytes that are parsed on the event loop, within a few milliseconds; more goes to a thread."""
_JSON: Final = "application/json"
_MERGE: Final = "application/merge-patch+json"
_FIELDS: Final = ("rego", "data")
_NAMED: Final = 5
_UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii"})

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a body of this kind may look like."""

    types: Collection[str]
    needs_rego: bool


PUT: Final = Kind((_JSON,), needs_rego=True)
"""A whole policy, also for ``:validate``."""
PATCH: Final = Kind((_JSON, _MERGE), needs_rego=False)
"""Parts of one, or a merge patch."""


@dataclass(frozen=True, slots=True)
class Body:
    """A policy object, or a part of one, and the bytes that it was read from.

    ``rego``, where given, is a text. ``data``, where given, is an object with `Number` in the place of numbers, or, in
    a `PATCH` only, ``None``.
    """

    policy: dict[str, Any]
    raw: bytes


def most_bytes(limits: Limits) -> int:
    """The longest body that is read at all."""
    return _ESCAPED * (limits.rego_bytes + limits.data_bytes) + _SPARE


async def read(request: web.Request, kind: Kind, limits: Limits = LIMITS) -> Body:
    """The policy object of a request. Raises 400, 408, 413 or 415."""
    raw = await read_raw(request, kind.types, most_bytes(limits))
    if not raw.strip():
        raise _invalid('the body is empty: send {"rego": "…", "data": {…}}')
    merging = request.content_type == _MERGE
    if len(raw) <= _AT_ONCE:
        return _body(raw, kind, limits, merging=merging)
    return await asyncio.to_thread(_body, raw, kind, limits, merging=merging)


async def read_object(request: web.Request, model: type[ModelT]) -> ModelT:
    """A small JSON object; an empty body is an empty object. Raises 400, 408, 413 or 415."""
    raw = await read_raw(request, (_JSON,), _SPARE)
    if not raw.strip():
        raw = b"{}"
    _refuse_unknown(parse_object(raw, LIMITS.nesting), tuple(model.model_fields), "this request")
    try:
        return model.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise _invalid(f"{name}: {first['msg']}") from error


# --- bytes -----------------------------------------------------------------------------------------------------------


async def read_raw(request: web.Request, types: Collection[str], most: int) -> bytes:
    """The body, of one of these media types and no longer than ``most`` bytes. Raises 400, 408, 413 or 415."""
    _check_form(request, types)
    if request.content_length is not None and request.content_length > most:
        raise _too_large(f"the body is larger than {most} bytes")
    chunks, size = list[bytes](), 0
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
    except (ConnectionError, web.RequestPayloadError) as error:
        # Nobody is left to read this answer; the log and the audit event are to say what happened.
        raise _invalid("the body broke off before its end") from error
    return b"".join(chunks)


def _check_form(request: web.Request, types: Collection[str]) -> None:
    """Refuse what would be read wrongly, before it is read."""
    if not request.body_exists:
        return
    accepted = ", ".join(types)
    if request.content_type not in types:
        given = repr(request.content_type) if "Content-Type" in request.headers else "a body without Content-Type"
        raise _unsupported(f"send {accepted}, not {given}", {_accepts(request.method): accepted})
    if (request.charset or "utf-8").lower() not in _UTF_8:
        raise _unsupported(f"send UTF-8, not {request.charset!r}", {_accepts(request.method): accepted})
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() not in {"identity", ""}:
        raise _unsupported(f"send the body as it is, not as {coding[:40]!r}", {"Accept-Encoding": "identity"})


def _accepts(method: str) -> str:
    """The header that says which media types would do (RFC 5789, W3C LDP, RFC 9110 section 15.5.16)."""
    return {"PATCH": "Accept-Patch", "POST": "Accept-Post"}.get(method, "Accept")


# --- fields ----------------------------------------------------------------------------------------------------------


def _body(raw: bytes, kind: Kind, limits: Limits, *, merging: bool) -> Body:
    policy = parse_object(raw, limits.nesting + 1)
    _refuse_unknown(policy, _FIELDS, "a policy")
    _check_rego(policy, kind, limits)
    _check_data(policy, kind, limits)
    if not policy and not merging:
        raise _invalid("the body changes nothing: give rego, data or both")
    return Body(policy, raw)


def _check_rego(policy: Mapping[str, Any], kind: Kind, limits: Limits) -> None:
    if "rego" not in policy:
        if kind.needs_rego:
            raise _invalid("rego is missing: the policy's text, as a string")
        return
    rego = policy["rego"]
    if rego is None and not kind.needs_rego:
        raise _invalid("rego cannot be removed: a policy has a rego text")
    if not isinstance(rego, str):
        raise _invalid(f"rego must be a string, not {_kind_of(rego)}")
    size = len(rego.encode())
    if size > limits.rego_bytes:
        raise _too_large(f"rego is {size} bytes; the limit is {limits.rego_bytes}: make it smaller")


def _check_data(policy: Mapping[str, Any], kind: Kind, limits: Limits) -> None:
    """Whether its shortest text fits; how long it is in Git depends on the file there (`api.patch`)."""
    if "data" not in policy:
        return
    data = policy["data"]
    if data is None and kind.needs_rego:
        raise _invalid("data must be a JSON object; leave it out for a policy without data")
    if data is None:
        return
    if not isinstance(data, dict):
        raise _invalid(f"data must be a JSON object, not {_kind_of(data)}")
    try:
        compact_size(data, limits.data_bytes)
    except TooLongError as error:
        raise _too_large(f"data is larger than {limits.data_bytes} bytes: make it smaller") from error


def _refuse_unknown(found: Mapping[str, Any], known: Collection[str], whose: str) -> None:
    unknown = [name for name in found if name not in known]
    if not unknown:
        return
    named = ", ".join(_with_hint(name, known) for name in unknown[:_NAMED])
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    raise _invalid(f"unknown: {named}{more}; {whose} has {' and '.join(known) or 'no fields'}")


def _with_hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name[:60].lower(), known, n=1)
    return f"{name[:60]!r} (did you mean {close[0]!r}?)" if close else repr(name[:60])


def _kind_of(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", Number: "a number"}
    return names.get(type(value), "null")


def _invalid(message: str) -> ProblemError:
    return ProblemError(400, "validation_error", message)


def _too_large(message: str) -> ProblemError:
    return ProblemError(413, "payload_too_large", message, headers={"Connection": "close"})


def _unsupported(message: str, headers: dict[str, str]) -> ProblemError:
    return ProblemError(415, "unsupported_media_type", message, headers=headers)
