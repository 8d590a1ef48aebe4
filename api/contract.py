"""What every route takes and answers: ONE table, of which the OpenAPI document is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

from api import schemas
from api.hook_proofs import PROVIDERS

JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Reply:
    """One good answer. ``headers`` are always there, ``maybe`` in some cases; ``other`` is another form of the body."""

    says: str
    model: type[BaseModel] | None = None
    other: type[BaseModel] | None = None
    media: str = JSON
    headers: tuple[str, ...] = ()
    maybe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table. ``body``: media type → model, or a JSON schema. ``problems``: the statuses of errors.
    ``open``: needs no token. ``example``: what `curl` gets besides the path, for people."""

    method: str
    path: str
    name: str
    tag: str
    says: str
    replies: Mapping[int, Reply]
    problems: tuple[int, ...]
    parameters: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    body_required: bool = True
    open: bool = False
    example: str = ""


POLICIES: Final = "Policies"
HISTORY: Final = "History"
HOOKS: Final = "Webhooks"
ADMINISTRATION: Final = "Administration"
OBSERVATION: Final = "Observation"
TAGS: Final[Mapping[str, str]] = {
    POLICIES: "Read what is live; write by committing to the policy repository.",
    HISTORY: "What was: versions, who made them, what changed, what was live when.",
    ADMINISTRATION: "For platform admins: what a person tells the reconciler. Audited.",
    HOOKS: "A Git host says that something was pushed: the leader looks at once instead of at its next poll.",
    OBSERVATION: "What is applied and enforced, health, and this document.",
}

_READ: Final = (400, 401, 403, 404, 503)
_BODY: Final = (400, 408, 413, 415)
_COMMIT: Final = (400, 401, 403, 409, 422, 428, 429, 503, 504)
_CONDITIONS: Final = ("If-Match", "If-None-Match", "Idempotency-Key", "wait", "timeout", "dry_run")
_VERSION: Final = ("ETag", "Policy-Commit")
_TAG: Final = ("ETag",)
_CONDITIONAL: Final = ("If-None-Match",)
_SAME: Final = "`If-None-Match` names this state."
_WRITTEN: Final = ("ETag", "Policy-Commit", "Policy-Sync", "Idempotent-Replay")
_PATCH_SCHEMA: Final = {
    "type": "object",
    "properties": {"rego": {"type": "string"}, "data": {"type": ["object", "null"]}},
    "additionalProperties": False,
}
_PUT_EXAMPLE: Final = """-X PUT -H 'Content-Type: application/json' -H 'If-Match: "<etag>"' -d @policy.json"""
_PATCH_EXAMPLE: Final = (
    "-X PATCH -H 'Content-Type: application/merge-patch+json' -H 'If-Match: \"<etag>\"' "
    """-d '{"data": {"limits": {"refund": 50}}}'"""
)


def operations() -> list[Operation]:
    """Every route of `api.app`; a test compares both."""
    found = [
        Operation(
            "get",
            "/policies",
            "list_policies",
            POLICIES,
            "The live policies that the caller may read, sorted by name.",
            {200: Reply("A page; with `at`, everything that was live then.", schemas.PolicyList, schemas.PoliciesAt)},
            problems=(400, 401, 403, 503),
            parameters=("limit", "after", "Policy-Min-Commit", "timeout", "at"),
        )
    ]
    for scope, path in (("platform", "/policies/platform"), ("project", "/policies/{project}")):
        found += [
            _get(scope, path),
            _put(scope, path),
            _patch(scope, path),
            _delete_platform(path) if scope == "platform" else _delete(path),
            _validate(scope, path),
            _rollback(scope, path),
        ]
    return found + _history() + _administration() + _hooks() + _observation()


# --- policies --------------------------------------------------------------------------------------------------------


def _whose(scope: str) -> str:
    return "the platform's policy" if scope == "platform" else "a project's policy"


def _get(scope: str, path: str) -> Operation:
    return Operation(
        "get",
        path,
        f"get_{scope}",
        POLICIES,
        f"Read {_whose(scope)} as it is live, or with `ref=head` as the branch has it.",
        {
            200: Reply(
                "The policy; with `at`, the version.",
                schemas.PolicyAnswer,
                schemas.VersionAnswer,
                headers=_VERSION,
                maybe=("Policy-Held",),
            ),
            304: Reply("`If-None-Match` names this version.", headers=_VERSION, maybe=("Policy-Held",)),
        },
        problems=_READ,
        parameters=("If-None-Match", "Policy-Min-Commit", "ref", "timeout", "at"),
        example="-i",
    )


def _put(scope: str, path: str) -> Operation:
    return Operation(
        "put",
        path,
        f"put_{scope}",
        POLICIES,
        f"Create or replace {_whose(scope)} by a commit. An update needs `If-Match`.",
        {
            200: Reply("Replaced, or the same as before.", schemas.WriteAnswer, schemas.DryRun, maybe=_WRITTEN),
            201: Reply("Created.", schemas.WriteAnswer, headers=_VERSION, maybe=("Policy-Sync", "Idempotent-Replay")),
        },
        problems=(*_COMMIT, *_BODY),
        parameters=_CONDITIONS,
        body={JSON: schemas.PolicyBody},
        example=_PUT_EXAMPLE,
    )


def _patch(scope: str, path: str) -> Operation:
    return Operation(
        "patch",
        path,
        f"patch_{scope}",
        POLICIES,
        f"Change a part of {_whose(scope)}: with `{JSON}` `rego` or `data` is replaced whole and `null` removes the "
        f"data, with `{MERGE}` the policy is merged by RFC 7396.",
        {200: Reply("Changed, or the same as before.", schemas.WriteAnswer, schemas.DryRun, maybe=_WRITTEN)},
        problems=(*_COMMIT, *_BODY, 404),
        parameters=_CONDITIONS,
        body={JSON: {**_PATCH_SCHEMA, "minProperties": 1}, MERGE: _PATCH_SCHEMA},
        example=_PATCH_EXAMPLE,
    )


def _delete(path: str) -> Operation:
    return Operation(
        "delete",
        path,
        "delete_project",
        POLICIES,
        "Delete a project's policy by a commit.",
        {
            200: Reply("A dry run.", schemas.DryRun),
            204: Reply("Deleted.", headers=("Policy-Commit",), maybe=("Policy-Sync", "Idempotent-Replay")),
        },
        problems=(*_COMMIT, 404),
        parameters=_CONDITIONS,
        example="-X DELETE -H 'If-Match: \"<etag>\"'",
    )


def _delete_platform(path: str) -> Operation:
    says = "Never possible: every project may stand on it."
    return Operation("delete", path, "delete_platform", POLICIES, says, {}, problems=(401, 403, 405, 503))


def _validate(scope: str, path: str) -> Operation:
    return Operation(
        "post",
        f"{path}:validate",
        f"validate_{scope}",
        POLICIES,
        f"The verdict that a PUT of {_whose(scope)} would get; nothing is written.",
        {200: Reply("The verdict; `valid` says whether it would go live.", schemas.Validation)},
        problems=(*_BODY, 401, 403, 503),
        body={JSON: schemas.PolicyBody},
        example="-H 'Content-Type: application/json' -d @policy.json",
    )


def _rollback(scope: str, path: str) -> Operation:
    return Operation(
        "post",
        f"{path}:rollback",
        f"rollback_{scope}",
        POLICIES,
        f"Put an earlier version of {_whose(scope)} back by a commit that names it. Needs `If-Match` as PUT does.",
        {
            200: Reply("Restored, or the same as before.", schemas.WriteAnswer, schemas.DryRun, maybe=_WRITTEN),
            201: Reply("Created again.", schemas.WriteAnswer, headers=_VERSION, maybe=_WRITTEN[2:]),
        },
        problems=(*_COMMIT, *_BODY, 404),
        parameters=_CONDITIONS,
        body={JSON: schemas.RollbackBody},
        body_required=False,
        example="""-H 'If-Match: "<etag>"' -H 'Content-Type: application/json' -d '{"version": 3}'""",
    )


# --- history ---------------------------------------------------------------------------------------------------------


def _history() -> list[Operation]:
    found = [
        Operation(
            "get",
            "/versions",
            "list_recent_versions",
            HISTORY,
            "The last versions of all policies that the caller may read, newest first.",
            {200: Reply("A page.", schemas.VersionList)},
            problems=(400, 401, 403, 503),
            parameters=("versions_limit", "after"),
        ),
        Operation(
            "get",
            "/audit",
            "audit",
            HISTORY,
            "Who did what: the audit events of all replicas, newest first. For platform admins; needs MongoDB.",
            {200: Reply("A page.", schemas.AuditPage)},
            problems=(400, 401, 403, 503),
            parameters=("policy", "actor", "action", "result", "request_id", "since", "until", "limit", "after"),
        ),
    ]
    for scope, path in (("platform", "/policies/platform"), ("project", "/policies/{project}")):
        found += [_versions(scope, path), _version(scope, path), _diff(scope, path)]
    return found


def _versions(scope: str, path: str) -> Operation:
    return Operation(
        "get",
        f"{path}/versions",
        f"list_{scope}_versions",
        HISTORY,
        f"All versions of {_whose(scope)}, newest first: who, when, which commit, what became of it.",
        {200: Reply("A page.", schemas.VersionList)},
        problems=_READ,
        parameters=("versions_limit", "after"),
    )


def _version(scope: str, path: str) -> Operation:
    return Operation(
        "get",
        f"{path}/versions/{{version}}",
        f"get_{scope}_version",
        HISTORY,
        f"One version of {_whose(scope)} with its text, from the record or else from Git.",
        {
            200: Reply("The version.", schemas.VersionAnswer, headers=("Policy-Commit",), maybe=("ETag",)),
            304: Reply("`If-None-Match` names its content.", headers=_VERSION),
        },
        problems=_READ,
        parameters=("If-None-Match",),
        example="-i",
    )


def _diff(scope: str, path: str) -> Operation:
    return Operation(
        "get",
        f"{path}/diff",
        f"diff_{scope}",
        HISTORY,
        f"What changed between two versions of {_whose(scope)}: Rego as `git diff` shows it, data by path.",
        {200: Reply("The difference.", schemas.Difference)},
        problems=_READ,
        parameters=("from", "to"),
        example="-G -d from=1 -d to=live",
    )


# --- the others ------------------------------------------------------------------------------------------------------


def _administration() -> list[Operation]:
    return [
        _command(
            "sync", "Make the leader look at the repository now.", schemas.SyncBody, schemas.SyncAnswer, status=202
        ),
        _command("suspend", "Stop applying commits; what is live stays.", schemas.SuspendBody, schemas.SuspendAnswer),
        _command("resume", "Go on applying commits.", None, schemas.SuspendAnswer),
        _command(
            "confirm",
            "The deletions that are blocked for this commit are meant: carry them out.",
            schemas.ConfirmBody,
            schemas.ConfirmAnswer,
            problems=(409,),
        ),
    ]


def _command(
    name: str,
    says: str,
    body: type[BaseModel] | None,
    answer: type[BaseModel],
    *,
    status: int = 200,
    problems: tuple[int, ...] = (),
) -> Operation:
    return Operation(
        "post",
        f"/admin/{name}",
        name,
        ADMINISTRATION,
        says,
        {status: Reply("Done, or so already." if status == 200 else "Asked for.", answer)},  # noqa: PLR2004 OK
        problems=(401, 403, 503, *(_BODY if body else ()), *problems),
        body={JSON: body} if body else {},
        body_required=body is not None and any(known.is_required() for known in body.model_fields.values()),
        example="-X POST" if body is None else "-H 'Content-Type: application/json' -d '{…}'",
    )


def _hooks() -> list[Operation]:
    says = {
        "github": "A webhook of GitHub: `X-Hub-Signature-256`.",
        "gitlab": "A webhook of GitLab: `X-Gitlab-Token`.",
        "gitea": "A webhook of Gitea or Forgejo: `X-Gitea-Signature`, `X-Forgejo-Signature`.",
        "generic": "Any other: `Authorization: Bearer <secret>`, or `X-Regops-Signature: sha256=<HMAC of the body>`. "
        "The body may be empty, or have `ref` and `repository`.",
    }
    return [
        Operation(
            "post",
            f"/hooks/{name}",
            f"hook_{name}",
            HOOKS,
            says[name],
            {
                200: Reply("A test event.", schemas.HookAnswer),
                202: Reply("Taken: the leader looks at the repository, or why it does not.", schemas.HookAnswer),
            },
            problems=(400, 401, 403, 408, 413),
            body={JSON: {"type": "object"}, "application/x-www-form-urlencoded": {"type": "object"}},
            body_required=False,
            open=True,
        )
        for name in PROVIDERS
    ]


def _observation() -> list[Operation]:
    ready = {200: Reply("It can.", schemas.Alive), 503: Reply("Not yet.", schemas.Alive)}
    return [
        Operation(
            "get",
            "/status",
            "status",
            OBSERVATION,
            "Conditions, the applied commit, held policies, and what each OPA enforces.",
            {
                200: Reply("The status; what cannot be read is Unknown.", schemas.Status, headers=_TAG),
                304: Reply(_SAME, headers=_TAG),
            },
            problems=(401, 403, 503),
            parameters=_CONDITIONAL,
        ),
        Operation(
            "get",
            "/status/policies",
            "list_policy_status",
            OBSERVATION,
            "Of each policy that the caller may read: what is live, what is held and why, how many OPAs enforce it.",
            {
                200: Reply("A page, sorted by name.", schemas.PolicyStatusList, headers=_TAG),
                304: Reply(_SAME, headers=_TAG),
            },
            problems=(400, 401, 403, 503),
            parameters=("limit", "after", *_CONDITIONAL),
        ),
        *(
            Operation(
                "get",
                f"/status{path}",
                f"{scope}_status",
                OBSERVATION,
                f"The same of {_whose(scope)}, and each OPA that answers for it.",
                {
                    200: Reply("The status.", schemas.PolicyStatusAnswer, headers=_TAG),
                    304: Reply(_SAME, headers=_TAG),
                },
                problems=_READ,
                parameters=_CONDITIONAL,
            )
            for scope, path in (("platform", "/policies/platform"), ("project", "/policies/{project}"))
        ),
        Operation(
            "get",
            "/fleet",
            "fleet",
            OBSERVATION,
            "What each OPA proves to enforce now, or with `at` proved to enforce then, by the record in MongoDB.",
            {200: Reply("The agents.", schemas.Fleet, headers=_TAG), 304: Reply(_SAME, headers=_TAG)},
            problems=(400, 401, 403, 503),
            parameters=("fleet_at", *_CONDITIONAL),
            example="-G -d at=2026-01-31T12:00:00Z",
        ),
        Operation(
            "get",
            "/history",
            "passes",
            OBSERVATION,
            "What the leader's last passes did: policies, who made them, how long it took, when it was enforced.",
            {200: Reply("A page, newest first.", schemas.PassList, headers=_TAG), 304: Reply(_SAME, headers=_TAG)},
            problems=(400, 401, 403, 503),
            parameters=("passes_limit", "after", *_CONDITIONAL),
        ),
        Operation(
            "get",
            "/trace",
            "trace",
            OBSERVATION,
            "One commit's way: when it was pushed, seen, validated, applied, and enforced by each OPA.",
            {200: Reply("The way so far.", schemas.Trace, headers=_TAG), 304: Reply(_SAME, headers=_TAG)},
            problems=(400, 401, 403, 404, 503),
            parameters=("commit", "traced_policy", *_CONDITIONAL),
            example="-G -d policy=billing",
        ),
        Operation(
            "get",
            "/events",
            "events",
            OBSERVATION,
            "Server-sent events: the whole state at first (`status`, `agents`, `pass`), then what becomes different of "
            "it; `end` when the token has expired or the caller may listen no longer. Nothing is replayed: who "
            "connects again gets the whole state again.",
            {200: Reply("A stream.", media="text/event-stream")},
            problems=(401, 403, 503),
            example="-N",
        ),
        _open("/healthz", "healthz", "Whether the process lives.", {200: Reply("It does.", schemas.Alive)}),
        _open("/readyz", "readyz", "Whether this replica can serve policies.", ready, ("exclude",)),
        _open("/metrics", "metrics", "Prometheus' text format.", {200: Reply("Metrics.", media="text/plain")}),
        _open("/openapi.json", "openapi", "This document.", {200: Reply("OpenAPI 3.1.")}),
        _open("/docs", "docs", "This document for people.", {200: Reply("A page.", media="text/html")}),
    ]


def _open(path: str, name: str, says: str, replies: Mapping[int, Reply], parameters: tuple[str, ...] = ()) -> Operation:
    return Operation("get", path, name, OBSERVATION, says, replies, (), parameters=parameters, open=True)
