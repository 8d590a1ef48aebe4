"""The OpenAPI 3.1 document, made of the table in `api.contract` and the schemas of `api.schemas`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from api import schemas
from api.contract import TAGS, Operation, Reply, operations

PROBLEM: Final = "application/problem+json"
_COMMIT: Final = {"type": "string", "pattern": "^[0-9a-f]{40}$"}

_PROBLEMS: Final[Mapping[int, tuple[tuple[str, ...], str, tuple[str, ...]]]] = {
    400: (("validation_error",), "Malformed JSON, or an error of schema, Rego or namespace: `errors` has places.", ()),
    401: (("unauthorized",), "No token, or one that does not count.", ("WWW-Authenticate",)),
    403: (("forbidden",), "The caller may not do this.", ()),
    404: (("not_found",), "There is no such policy.", ()),
    405: (("method_not_allowed",), "`Allow` says what is possible.", ("Allow",)),
    408: (("request_timeout",), "The body came too slowly.", ()),
    409: (("conflict",), "A precondition failed; `ETag` has the version at the branch's head.", ("ETag",)),
    413: (("payload_too_large",), "rego is larger than 512 KiB, data than 1 MiB, or the whole body too large.", ()),
    415: (
        ("unsupported_media_type",),
        "Another content type or coding is needed: a header says which.",
        ("Accept", "Accept-Patch", "Accept-Post", "Accept-Encoding"),
    ),
    422: (
        ("idempotency_key_reused", "remote_declined"),
        "The key stands for another request, or the Git remote's own rules refused the commit.",
        (),
    ),
    428: (("precondition_required",), "An update needs `If-Match`; `ETag` has the current version.", ("ETag",)),
    429: (("too_many_requests",), "`Retry-After` says when to come again.", ("Retry-After",)),
    503: (
        ("unavailable",),
        "Git, etcd or OPA is out of reach, or too many writes are under way; nothing is half done.",
        ("Retry-After",),
    ),
    504: (
        ("outcome_unknown",),
        "The commit was sent and its arrival is not known yet: repeat with the same `Idempotency-Key`.",
        ("Retry-After",),
    ),
}
"""Status → codes, meaning, headers."""
_KEPT: Final = frozenset({400, 404, 409, 422, 428})
"""Refusals that an idempotency key gives again."""

_PARAMETERS: Final[Mapping[str, tuple[str, dict[str, Any], str]]] = {
    "If-Match": ("header", {"type": "string"}, "The ETag of the version that is changed (RFC 9110)."),
    "If-None-Match": ("header", {"type": "string"}, "`*`: only where there is none. For GET: answer 304 when equal."),
    "Idempotency-Key": (
        "header",
        {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        "The same key and request give the same answer for 24 hours, on any replica.",
    ),
    "X-Request-ID": (
        "header",
        {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        "Stands in every log line, in the commit and in the answer; made when it is missing.",
    ),
    "Policy-Min-Commit": ("header", _COMMIT, "Wait until this replica has this commit: read one's own write anywhere."),
    "wait": (
        "query",
        {"type": "string", "enum": ["none", "live", "active"], "default": "live"},
        "Wait until the write is live in etcd, or enforced by every OPA that holds the policy.",
    ),
    "timeout": (
        "query",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 60},
        "Seconds to wait: when left out, 10 for `active`, else 5.",
    ),
    "dry_run": ("query", {"type": "boolean", "default": False}, "The verdict and the diff; nothing is written."),
    "ref": (
        "query",
        {"type": "string", "enum": ["live", "head"], "default": "live"},
        "`head`: what the branch says, valid or not.",
    ),
    "limit": ("query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Items on a page."),
    "versions_limit": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
        "Items on a page.",
    ),
    "passes_limit": (
        "query",
        {"type": "integer", "minimum": 1, "maximum": 200, "default": 20},
        "Items on a page.",
    ),
    "commit": (
        "query",
        {"type": "string", "minLength": 4, "maxLength": 40, "pattern": "^[0-9a-fA-F]+$"},
        "A commit, or its first digits. Either this or `policy`.",
    ),
    "traced_policy": ("query", {"type": "string"}, "A policy: the newest commit that changed it is traced."),
    "at": (
        "query",
        {"type": "string", "format": "date-time"},
        "What was live at this time: the version, with its text, as `/versions/{version}` gives it.",
    ),
    "fleet_at": ("query", {"type": "string", "format": "date-time"}, "What was enforced at this time."),
    "policy": ("query", {"type": "string"}, "`platform`, `projects/<project>` or `<project>`."),
    **{
        name: ("query", {"type": "string", "minLength": 1, "maxLength": 200}, f"Only events with this {says}.")
        for name, says in {
            "actor": "actor (a token's `sub`, or a commit's author)",
            "action": "action",
            "result": "result",
            "request_id": "request id",
        }.items()
    },
    "since": ("query", {"type": "string", "format": "date-time"}, "Only events from this time on."),
    "until": ("query", {"type": "string", "format": "date-time"}, "Only events before this time."),
    "from": (
        "query",
        {"type": "string", "pattern": "^([1-9][0-9]{0,8}|live|head)$"},
        "A version, `live` or `head`; when left out, the version before `to`.",
    ),
    "to": (
        "query",
        {"type": "string", "pattern": "^([1-9][0-9]{0,8}|live|head)$", "default": "live"},
        "The same.",
    ),
    "after": ("query", {"type": "string"}, "`next` of the page before."),
    "exclude": ("query", {"type": "array", "items": {"type": "string"}}, "Checks to leave out, such as `git`."),
}
_SPECIAL: Final = frozenset({"versions_limit", "passes_limit", "fleet_at", "traced_policy"})
"""Parameters that mean something else in other operations: they are called by the last word."""
_HEADERS: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "ETag": (
        {"type": "string", "pattern": '^"[0-9a-f]{40}"$'},
        "The version, as a strong entity-tag: the same in every replica and datacentre.",
    ),
    "Policy-Commit": (_COMMIT, "The commit that made this version."),
    "Policy-Sync": (
        {"type": "string", "enum": ["pending", "live", "active"]},
        "How far the write has got: `pending` (in Git), `live` (in etcd) or `active` (in every OPA).",
    ),
    "Policy-Held": ({"type": "string"}, "Why the version in Git is not live."),
    "Idempotent-Replay": (
        {"type": "string", "const": "true"},
        "This is the answer to the first request with this key.",
    ),
    "X-Request-ID": ({"type": "string"}, "The request's id."),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds."),
    "WWW-Authenticate": ({"type": "string"}, "What is needed, and what is wrong (RFC 6750)."),
    "Allow": ({"type": "string"}, "The methods that are possible."),
    "Accept": ({"type": "string"}, "The media types that are possible, for PUT."),
    "Accept-Patch": ({"type": "string"}, "The same for PATCH."),
    "Accept-Post": ({"type": "string"}, "The same for POST."),
    "Accept-Encoding": ({"type": "string"}, "The content codings that are possible."),
}


def document(version: str) -> dict[str, Any]:
    """The OpenAPI document of this version of regops."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations():
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "regops",
            "version": version,
            "description": "Reads the live policies of Open Policy Agent, and writes them by committing to Git.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": says} for name, says in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "security": [{"token": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    parameters = [_parameter(name) for name in (*operation.parameters, "X-Request-ID")]
    if "{project}" in operation.path:
        parameters.insert(0, _project())
    if "{version}" in operation.path:
        parameters.insert(0, _version())
    rendered: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.says,
        "parameters": parameters,
        "responses": _responses(operation),
    }
    if operation.body:
        content = {media: {"schema": _schema(model)} for media, model in operation.body.items()}
        rendered["requestBody"] = {"required": operation.body_required, "content": content}
    if operation.open:
        rendered["security"] = []
    if operation.example:
        rendered["x-curl"] = operation.example
    return rendered


def _responses(operation: Operation) -> dict[str, Any]:
    replies: dict[str, Any] = {str(status): _problem(status, operation) for status in operation.problems}
    for status, reply in operation.replies.items():
        replies[str(status)] = _reply(status, reply, operation)
    return dict(sorted(replies.items()))


def _reply(status: int, reply: Reply, operation: Operation) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        "description": reply.says,
        "headers": {**_headers((*reply.headers, "X-Request-ID"), required=True), **_headers(reply.maybe)},
    }
    if status in {204, 304}:
        return rendered
    schema = _schema(reply.model) if reply.model else {"type": "object" if reply.media.endswith("json") else "string"}
    if reply.other:
        schema = {"anyOf": [schema, _schema(reply.other)]}
    content: dict[str, Any] = {reply.media: {"schema": schema}}
    if status in operation.problems:
        content[PROBLEM] = {"schema": _schema(schemas.Problem)}
    return {**rendered, "content": content}


def _problem(status: int, operation: Operation) -> dict[str, Any]:
    codes, says, names = _PROBLEMS[status]
    replayed = ("Idempotent-Replay",) if status in _KEPT and "Idempotency-Key" in operation.parameters else ()
    return {
        "description": f"{', '.join(f'`{code}`' for code in codes)}: {says}",
        "headers": {**_headers(("X-Request-ID",), required=True), **_headers((*names, *replayed))},
        "content": {PROBLEM: {"schema": _schema(schemas.Problem)}},
    }


def _parameter(name: str) -> dict[str, Any]:
    place, schema, says = _PARAMETERS[name]
    return {
        "name": name.rpartition("_")[2]
        if name in {"versions_limit", "passes_limit", "fleet_at", "traced_policy"}
        else name,
        "in": place,
        "required": False,
        "schema": schema,
        "description": says,
    }


def _project() -> dict[str, Any]:
    return {
        "name": "project",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
        "description": "A project's name: a DNS label, and not `platform`.",
    }


def _version() -> dict[str, Any]:
    return {
        "name": "version",
        "in": "path",
        "required": True,
        "schema": {"type": "integer", "minimum": 1, "maximum": 999999999},
        "description": "The number of a version.",
    }


def _headers(names: tuple[str, ...], *, required: bool = False) -> dict[str, Any]:
    found = {name: _HEADERS[name] for name in names}
    return {
        name: {"schema": schema, "description": says, "required": required} for name, (schema, says) in found.items()
    }


def _schema(model: Any) -> dict[str, Any]:
    if isinstance(model, dict):
        return model
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas() -> dict[str, Any]:
    used = {
        model
        for operation in operations()
        for model in (
            *operation.body.values(),
            *(model for reply in operation.replies.values() for model in (reply.model, reply.other)),
        )
        if isinstance(model, type)
    }
    named = sorted({*used, schemas.Problem}, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in named],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    found: dict[str, Any] = definitions["$defs"]
    return found


class _Untitled(GenerateJsonSchema):
    """Without a title for each field that only says its name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 pydantic's signature
        return False
