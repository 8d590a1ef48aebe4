"""The OpenAPI 3.1 document: one table of operations, and the schemas of `api.schemas`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api import schemas

JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"
PROBLEM: Final = "application/problem+json"

_CODES: Final[Mapping[int, tuple[str, str]]] = {
    400: ("validation_error", "Malformed JSON, or an error of schema, Rego or namespace: `errors` names the places."),
    401: ("unauthorized", "No token, or one that does not count."),
    403: ("forbidden", "The caller may not do this."),
    404: ("not_found", "There is no such policy."),
    405: ("method_not_allowed", "`Allow` says what is possible."),
    408: ("request_timeout", "The body came too slowly."),
    409: ("conflict", "A precondition failed; `ETag` has the current version."),
    413: ("payload_too_large", "rego is larger than 512 KiB, or data than 1 MiB."),
    415: ("unsupported_media_type", "Another content type is needed."),
    422: ("idempotency_key_reused, remote_declined", "The key stands for another request, or the remote refused."),
    428: ("precondition_required", "An update needs `If-Match`."),
    429: ("too_many_requests", "`Retry-After` says when to come again."),
    500: ("internal_error", "A defect of regops."),
    503: ("unavailable", "Git, etcd or OPA is out of reach; nothing is half done. `Retry-After` says when."),
    504: ("outcome_unknown", "The commit was sent and its arrival is not known yet; repeat with the same key."),
}
_READ: Final = (400, 401, 403, 404, 503)
_WRITE: Final = (400, 401, 403, 405, 408, 409, 413, 415, 422, 428, 429, 503, 504)

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
    "Policy-Min-Commit": (
        "header",
        {"type": "string", "pattern": "^[0-9a-f]{40}$"},
        "Wait until this replica has this commit: read one's own write anywhere.",
    ),
    "wait": (
        "query",
        {"type": "string", "enum": ["none", "live", "active"], "default": "live"},
        "Wait until the write is live in etcd, or enforced by every OPA that holds the policy.",
    ),
    "timeout": (
        "query",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 60},
        "Seconds to wait: 5 for `live`, 10 for `active` when left out.",
    ),
    "dry_run": ("query", {"type": "boolean", "default": False}, "The verdict and the diff; nothing is written."),
    "ref": (
        "query",
        {"type": "string", "enum": ["live", "head"], "default": "live"},
        "`head`: what the branch says, valid or not.",
    ),
    "limit": ("query", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Items on a page."),
    "after": ("query", {"type": "string"}, "`next` of the page before."),
}
_HEADERS: Final[Mapping[str, str]] = {
    "ETag": "The version, as a strong entity-tag: the same in every replica and datacentre.",
    "Policy-Commit": "The commit that made this version.",
    "Policy-Sync": "How far the write has got: `pending` (in Git), `live` (in etcd) or `active` (in every OPA).",
    "Policy-Held": "Why the version in Git is not live.",
    "Idempotent-Replay": "`true`: the answer to the first request with this key.",
    "X-Request-ID": "The request's id.",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """One good answer."""

    says: str
    model: type[BaseModel] | None = None
    media: str = JSON
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table. ``body``: media type → model, or a JSON schema."""

    method: str
    path: str
    name: str
    says: str
    replies: Mapping[int, Reply]
    parameters: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[int, ...] = _READ
    open: bool = False


_VERSION: Final = ("ETag", "Policy-Commit")
_WRITTEN: Final = ("ETag", "Policy-Commit", "Policy-Sync", "Idempotent-Replay")
_CONDITIONS: Final = ("If-Match", "If-None-Match", "Idempotency-Key", "wait", "timeout", "dry_run")
_PATCH_SCHEMA: Final = {
    "type": "object",
    "properties": {"rego": {"type": "string"}, "data": {"type": ["object", "null"]}},
    "additionalProperties": False,
}


def operations() -> list[Operation]:
    """Every route of `api.app`; a test compares both."""
    found = [
        _open("/healthz", "healthz", "Whether the process lives.", Reply("It does.", schemas.Alive)),
        Operation(
            "get",
            "/readyz",
            "readyz",
            "Whether this replica can serve policies.",
            {200: Reply("It can.", schemas.Alive), 503: Reply("Not yet.", schemas.Alive)},
            problems=(),
            open=True,
        ),
        _open("/metrics", "metrics", "Prometheus' text format.", Reply("Metrics.", media="text/plain")),
        _open("/openapi.json", "openapi", "This document.", Reply("OpenAPI 3.1.")),
        _open("/docs", "docs", "This document for people.", Reply("A page.", media="text/html")),
        Operation(
            "get",
            "/status",
            "status",
            "Conditions, the applied commit, held policies, and what each OPA enforces.",
            {200: Reply("The status; what cannot be read is Unknown.")},
            problems=(401, 403, 503),
        ),
        Operation(
            "get",
            "/policies",
            "list_policies",
            "The live policies that the caller may read, sorted by name.",
            {200: Reply("A page.", schemas.PolicyList)},
            ("limit", "after", "Policy-Min-Commit", "timeout"),
            problems=(400, 401, 403, 503),
        ),
    ]
    for scope, path in (("platform", "/policies/platform"), ("project", "/policies/{project}")):
        found += _of_policy(scope, path)
    return found + _administration()


def _open(path: str, name: str, says: str, reply: Reply) -> Operation:
    return Operation("get", path, name, says, {200: reply}, problems=(), open=True)


def _of_policy(scope: str, path: str) -> list[Operation]:
    whose = "the platform's policy" if scope == "platform" else "a project's policy"
    changed = Reply("Changed, or nothing to change.", schemas.WriteAnswer, headers=_WRITTEN)
    created = Reply("Created.", schemas.WriteAnswer, headers=_WRITTEN)
    found = [
        Operation(
            "get",
            path,
            f"get_{scope}",
            f"Read {whose} as it is live.",
            {
                200: Reply("The policy.", schemas.PolicyBody, headers=(*_VERSION, "Policy-Held")),
                304: Reply("Unchanged.", headers=_VERSION),
            },
            ("If-None-Match", "Policy-Min-Commit", "ref", "timeout"),
        ),
        Operation(
            "put",
            path,
            f"put_{scope}",
            f"Create or replace {whose} by a commit. An update needs `If-Match`.",
            {200: changed, 201: created},
            _CONDITIONS,
            {JSON: schemas.PolicyBody},
            _WRITE,
        ),
        Operation(
            "patch",
            path,
            f"patch_{scope}",
            f"Replace `rego` or `data` of {whose}, or merge by RFC 7396.",
            {200: changed},
            _CONDITIONS,
            {JSON: {**_PATCH_SCHEMA, "minProperties": 1}, MERGE: _PATCH_SCHEMA},
            (*_WRITE, 404),
        ),
        Operation(
            "post",
            f"{path}:validate",
            f"validate_{scope}",
            f"The verdict that a PUT of {whose} would get.",
            {200: Reply("The verdict.", schemas.Validation)},
            (),
            {JSON: schemas.PolicyBody},
            (400, 401, 403, 405, 408, 413, 415, 503),
        ),
    ]
    deleted = Reply("Deleted.", headers=("Policy-Commit", "Policy-Sync", "Idempotent-Replay"))
    replies = {} if scope == "platform" else {200: Reply("A dry run.", schemas.DryRun), 204: deleted}
    says = "Never possible: every project may stand on it." if scope == "platform" else f"Delete {whose} by a commit."
    found.append(Operation("delete", path, f"delete_{scope}", says, replies, _CONDITIONS, problems=(*_WRITE, 404)))
    return found


def _administration() -> list[Operation]:
    problems = (400, 401, 403, 408, 409, 413, 415, 503)
    return [
        Operation(
            "post",
            "/admin/sync",
            "sync",
            "Make the leader look at the repository now.",
            {202: Reply("Asked for.", schemas.SyncAnswer)},
            body={JSON: schemas.SyncBody},
            problems=problems,
        ),
        Operation(
            "post",
            "/admin/suspend",
            "suspend",
            "Stop applying commits; what is live stays.",
            {200: Reply("Suspended.", schemas.SuspendAnswer)},
            body={JSON: schemas.SuspendBody},
            problems=problems,
        ),
        Operation(
            "post",
            "/admin/resume",
            "resume",
            "Go on applying commits.",
            {200: Reply("Resumed.", schemas.SuspendAnswer)},
            problems=problems,
        ),
        Operation(
            "post",
            "/admin/confirm",
            "confirm",
            "The deletions that are blocked for this commit are meant.",
            {200: Reply("Confirmed.", schemas.ConfirmAnswer)},
            body={JSON: schemas.ConfirmBody},
            problems=problems,
        ),
    ]


# --- rendering -------------------------------------------------------------------------------------------------------


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
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
        "security": [{"token": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    names = (*operation.parameters, "X-Request-ID")
    parameters = [_parameter(name) for name in names]
    if "{project}" in operation.path:
        parameters.insert(0, _project())
    rendered: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.says,
        "parameters": parameters,
        "responses": _responses(operation),
    }
    if operation.body:
        content = {media: {"schema": _schema(model)} for media, model in operation.body.items()}
        rendered["requestBody"] = {"required": operation.path.startswith("/policies"), "content": content}
    if operation.open:
        rendered["security"] = []
    return rendered


def _responses(operation: Operation) -> dict[str, Any]:
    replies: dict[str, Any] = {}
    for status, reply in operation.replies.items():
        schema = _schema(reply.model) if reply.model else {}
        if "dry_run" in operation.parameters and status == 200 and reply.model is not schemas.DryRun:  # noqa: PLR2004 OK
            schema = {"anyOf": [schema, _schema(schemas.DryRun)]}
        replies[str(status)] = {
            "description": reply.says,
            "headers": {name: _header(name) for name in (*reply.headers, "X-Request-ID")},
        }
        if status not in {204, 304}:
            replies[str(status)]["content"] = {reply.media: {"schema": schema}}
    for status in operation.problems:
        codes, says = _CODES[status]
        replies.setdefault(
            str(status),
            {
                "description": f"`{codes}`: {says}",
                "headers": {"X-Request-ID": _header("X-Request-ID")},
                "content": {PROBLEM: {"schema": _schema(schemas.Problem)}},
            },
        )
    return dict(sorted(replies.items()))


def _parameter(name: str) -> dict[str, Any]:
    place, schema, says = _PARAMETERS[name]
    return {"name": name, "in": place, "required": False, "schema": schema, "description": says}


def _project() -> dict[str, Any]:
    return {
        "name": "project",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
        "description": "A project's name: a DNS label, and not `platform`.",
    }


def _header(name: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}, "description": _HEADERS[name]}


def _schema(model: Any) -> dict[str, Any]:
    if isinstance(model, dict):
        return model
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas() -> dict[str, Any]:
    models = {
        model
        for operation in operations()
        for model in (*operation.body.values(), *(reply.model for reply in operation.replies.values()))
        if isinstance(model, type)
    }
    named = sorted({*models, schemas.Problem, schemas.DryRun}, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "serialization") for model in named], ref_template="#/components/schemas/{model}"
    )
    found: dict[str, Any] = definitions["$defs"]
    return found
