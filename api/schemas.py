"""What goes over the wire, as pydantic models: the source of the OpenAPI document.

Bodies of requests and small answers are closed. `Status` is open, since it grows.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Code = Literal[
    "conflict",
    "expectation_failed",
    "forbidden",
    "http_error",
    "idempotency_key_reused",
    "internal_error",
    "method_not_allowed",
    "not_found",
    "outcome_unknown",
    "payload_too_large",
    "precondition_required",
    "remote_declined",
    "request_timeout",
    "too_many_requests",
    "unauthorized",
    "unavailable",
    "unsupported_media_type",
    "validation_error",
]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


def _never_null(schema: dict[str, Any]) -> None:
    """``None`` stands for absence, in Python only."""
    del schema["default"]
    schema.update(next(kind for kind in schema.pop("anyOf") if kind["type"] != "null"))


# --- policies --------------------------------------------------------------------------------------------------------


class PolicyBody(_Schema):
    """A policy, as it is written."""

    rego: str = Field(examples=["package projects.billing\n\nimport rego.v1\n\ndefault allow := false\n"])
    """The policy's text; at most 512 KiB. Its package is `projects.<project>` or below, or `platform` or below."""
    data: dict[str, Any] | None = Field(default=None, json_schema_extra=_never_null)
    """The policy's data, a JSON object; at most 1 MiB. It lies at `data.projects.<project>` or `data.platform`."""


class PolicyAnswer(PolicyBody):
    """A policy, as it is read: written back unchanged, it changes nothing."""

    data_text: str | None = Field(default=None, json_schema_extra=_never_null)
    """In the place of `data`, with `ref=head` only: data in Git that is no JSON object, or none that may go live."""


class Place(_Schema):
    """One thing that is wrong with one file."""

    file: str
    """The path in the repository, below the policies' folder, or `body`."""
    message: str
    """What is wrong, and how to put it right."""
    line: int | None = None
    """From 1."""
    column: int | None = None
    """In characters, from 1."""


class WriteAnswer(_Schema):
    """What was written."""

    policy: str
    """`platform` or `projects/<project>`."""
    etag: str
    """The same as the header `ETag`."""
    commit: str
    """The commit that has it."""
    warnings: list[Place]
    """What will be refused one day, such as Rego v0."""
    version: int | None = Field(default=None, json_schema_extra=_never_null)
    """Of a rollback: the version that is restored."""


class Validation(_Schema):
    """The verdict that a PUT would get."""

    valid: bool
    errors: list[Place]
    warnings: list[Place]


class DryRun(Validation):
    """The verdict, and what the commit would change."""

    diff: str
    """As `git diff` shows it."""
    etag_before: str | None
    """At the branch's head; `null` for a policy that is new."""
    etag_after: str | None
    """`null` for a deletion."""
    version: int | None = Field(default=None, json_schema_extra=_never_null)
    """Of a rollback: the version that would be restored."""


class PolicyItem(_Schema):
    """One line of the list."""

    policy: str
    """`platform` or `projects/<project>`."""
    etag: str
    commit: str
    """The commit that made this version."""
    held: bool
    """Whether a newer version in Git is not valid, so that this one stays live."""


class PolicyList(_Schema):
    """One page."""

    items: list[PolicyItem]
    next: str | None
    """Give it as `?after=` for the next page."""


class RollbackBody(_Schema):
    """What to go back to."""

    version: int | None = Field(default=None, ge=1, json_schema_extra=_never_null)
    """When left out, the last version applied whose content is not that of the live one."""


class VersionItem(_Schema):
    """One version of one policy, without its text."""

    policy: str
    """`platform` or `projects/<project>`."""
    version: int
    """From 1, the same in every replica and datacentre."""
    state: Literal["applied", "held", "superseded"]
    """`applied`: it was live. `held`: it could not go live. `superseded`: a newer one came before it was looked at."""
    live: bool
    """Whether it is the one that is live now."""
    etag: str | None
    """`null` for a deletion, and for what is no policy."""
    commit: str
    ts: str | None
    """When it was committed."""
    actor: str
    """The commit's author."""
    subject: str
    """The first line of the commit's message."""
    pull_request: int | None
    """When the subject tells it."""
    deleted: bool
    """It is the policy's end."""
    reason: str | None
    """Why it was held."""
    message: str | None
    """The first error."""
    inferred: bool
    """Nobody told what became of it: `state` is what follows from Git."""
    applied_at: list[str]
    """When it became live, oldest first; empty where nobody told."""


class VersionList(_Schema):
    """One page, newest first."""

    items: list[VersionItem]
    next: int | str | None
    """Give it as `?after=` for the next page."""
    missing: str | None
    """Why the record was not asked, and what that means for this answer."""


class PoliciesAt(VersionList):
    """Which version of each policy was live at a time."""

    at: str


class VersionAnswer(VersionItem):
    """One version with its text: `rego` and `data` are left out for a deletion."""

    missing: str | None
    """Why the record was not asked."""
    rego: str | None = Field(default=None, json_schema_extra=_never_null)
    data: dict[str, Any] | None = Field(default=None, json_schema_extra=_never_null)
    data_text: str | None = Field(default=None, json_schema_extra=_never_null)
    """In the place of `data`, where that was no JSON object."""


class DataChange(_Schema):
    """One difference of the data."""

    path: str
    """A JSON Pointer (RFC 6901); of what is removed that in the old data."""
    op: Literal["add", "remove", "replace"]
    from_: Any = Field(default=None, alias="from")
    """Left out for what is added."""
    to: Any = None
    """Left out for what is removed."""


class DiffSide(_Open):
    """A version as `/versions` lists it, or `ref`: `live`, `head` or `nothing`, with `etag` and `commit`."""


class Difference(_Schema):
    """What changed between two versions."""

    policy: str
    from_: DiffSide = Field(alias="from")
    to: DiffSide
    rego: str
    """As `git diff` shows it; empty where nothing changed."""
    data: list[DataChange]
    data_text: str | None = Field(default=None, json_schema_extra=_never_null)
    """As `git diff` shows it, where the data is no JSON object or differs in its form only."""


class Problem(_Schema):
    """An error (RFC 9457)."""

    type: Literal["about:blank"]
    title: str
    status: int
    """The HTTP status."""
    code: Code
    """A constant word for programs."""
    detail: str
    """What is wrong, for people."""
    request_id: str
    """Stands in the log too."""
    errors: list[Place]
    """Each place that is wrong; often empty."""


class AuditItem(_Open):
    """One event: a line of the audit log."""

    ts: str
    actor: str
    action: str
    resource: str
    """`platform`, `projects/<project>` or `reconciler`."""
    result: str
    request_id: str
    id: str
    """The same in every line about one attempt."""


class AuditPage(_Schema):
    """One page, newest first."""

    items: list[AuditItem]
    next: str | None
    """Give it as `?after=` for the next page."""


# --- administration --------------------------------------------------------------------------------------------------


class HookAnswer(_Schema):
    """What a webhook came to."""

    result: Literal["looking", "pong", "ignored_event", "ignored_repository", "ignored_branch"]
    reason: str | None = Field(default=None, json_schema_extra=_never_null)
    """Why it is not acted on."""


class SyncBody(_Schema):
    """What the look should do besides."""

    remove_foreign: bool = False
    """Delete keys below the policies' prefix that regops never wrote."""


class SyncAnswer(_Schema):
    """What was asked for."""

    token: str
    """`/status` shows it as `last_handled_reconcile_at` once it was taken."""


class SuspendBody(_Schema):
    """Why."""

    reason: str = Field(default="", max_length=1000)


class SuspendAnswer(_Schema):
    """What is now."""

    suspended: bool
    changed: bool
    """Whether it was otherwise before."""


class ConfirmBody(_Schema):
    """Which commit's deletions are meant."""

    commit: str = Field(min_length=7, max_length=40, pattern="^[0-9a-fA-F]+$")
    """As `/status` names it, or its first digits."""


class ConfirmAnswer(_Schema):
    """What will be deleted."""

    commit: str
    deletions: list[str]


# --- status ----------------------------------------------------------------------------------------------------------


class Alive(_Schema):
    """Health."""

    status: Literal["ok", "not ready"]
    reasons: list[str] | None = Field(default=None, json_schema_extra=_never_null)
    """What the replica waits for."""


class Condition(_Open):
    """As in Flux and Kubernetes."""

    type: str
    """`Ready`, `Healthy`, and only when true `Reconciling`, `Stalled`, `FetchFailed`, `ValidationFailed`, `Drifted`,
    `PruneBlocked`, `HistoryRewritten`."""
    status: Literal["True", "False", "Unknown"]
    reason: str
    """A constant word in PascalCase."""
    message: str
    last_transition_time: str
    observed_generation: int


class Sync(_Open):
    """Whether the live policies are those of the branch's head."""

    status: Literal["Synced", "OutOfSync", "Unknown"]


class Health(_Open):
    """Whether what should be enforced is."""

    status: Literal["Healthy", "Progressing", "Degraded", "Suspended", "Unknown"]


class SourcePlace(_Open):
    """Where the policies come from."""

    remote: str
    branch: str
    path: str


class Counts(_Open):
    """How many policies."""

    live: int
    held: int


class HeldPolicy(_Open):
    """A version in Git that does not go live."""

    policy: str
    """`platform`, `projects/<project>`, or the raw path of an impossible name."""
    commit: str
    reason: str
    errors: list[Place]


class Agent(_Open):
    """What one OPA proves to enforce."""

    id: str
    datacentre: str
    scope: str
    """What this OPA answers for besides the platform: `all`, `projects:a,b` or `shard:2/8`."""
    enforced_revision: str | None
    """`null`: nothing is proven now."""
    since: str
    opa_version: str | None
    error: str | None
    """OPA's own words when it refused its bundle."""
    stale: bool


class FleetCounts(_Open):
    """How many OPAs, and what they prove. Every OPA is `current`, `behind` or `unknown`."""

    agents: int
    current: int
    """They enforce the applied commit."""
    behind: int
    """They enforce another one."""
    unknown: int
    """They prove nothing now, or are silent."""
    stale: int
    """Their agents cannot reach etcd, or are silent."""
    errors: int
    """They report an error."""


class FleetTotals(FleetCounts):
    """The same for all, and by datacentre."""

    datacentres: dict[str, FleetCounts]


class Status(_Open):
    """What is applied and enforced; a caller sees what it may read. Revisions are `<branch>@sha1:<commit>`."""

    conditions: list[Condition]
    sync: Sync
    health: Health
    source: SourcePlace
    last_attempted_revision: str | None
    last_applied_revision: str | None
    last_applied_at: str | None
    last_handled_reconcile_at: str | None
    """The token of the last `/admin/sync` that was taken."""
    suspended: bool
    policies: Counts
    held: list[HeldPolicy]
    blocked_deletions: list[str]
    """Policies whose deletion waits for `/admin/confirm`."""
    ignored_files: list[str]
    """Paths in the repository that are not published."""
    fleet: FleetTotals
    agents: list[Agent]


class PolicyAgents(_Open):
    """The OPAs that answer for a policy."""

    total: int
    current: int
    behind: int
    unknown: int
    errors: int


class PolicyStatus(_Open):
    """One policy: what is live, what is held, who enforces it."""

    policy: str
    etag: str | None
    """`null`: it never went live."""
    commit: str | None
    """The commit that made the live version."""
    actor: str | None
    """Its author."""
    since: str | None
    """Since when that version is live."""
    rego_version: int | None
    held: Hold | None
    """Why the version in Git is not live."""
    sync: Sync
    health: Health
    agents: PolicyAgents


class Hold(_Open):
    """A version in Git that does not go live."""

    commit: str
    reason: str
    errors: list[Place]


class PolicyStatusList(_Schema):
    """One page, sorted by name."""

    items: list[PolicyStatus]
    next: str | None
    """Give it as `?after=` for the next page."""


class PolicyStatusAnswer(PolicyStatus):
    """The same, and each OPA that answers for it."""

    enforced_by: list[Agent]


class StageSeconds(_Open):
    """How long each stage took; `null` where it did not come to it."""

    fetch: float | None
    """From the trigger to the fetched commit."""
    validate_: float | None = Field(alias="validate")
    apply: float | None
    total: float | None
    """From the trigger to etcd."""
    enforced: float | None
    """From etcd to the last OPA's proof; `null` until all have given one."""


class PassChange(_Open):
    """What a pass did to one policy."""

    policy: str
    operation: Literal["create", "update", "delete", "heal"]
    """`heal`: a hand edit in etcd was undone."""
    commit: str
    actor: str


class PassCommit(_Open):
    """A commit that a pass brought."""

    commit: str
    author: str
    committed_at: str
    subject: str


class PassEnforced(_Open):
    """How far the OPAs have followed."""

    agents: int
    enforced: int
    first_at: str | None
    last_at: str | None


class Pass(_Open):
    """One pass that wrote to etcd, or passes in a row that failed for one reason. Times are the leader's."""

    id: str
    outcome: Literal["applied", "failed"]
    trigger: str
    """`start`, `poll`, `push`, `hook`, `drift`, `request` or `api`."""
    seen_at: str
    """When the trigger was noticed."""
    at: str
    leader: str
    commit: str | None
    before: str | None
    """The commit that was applied before."""
    fetched_at: str | None
    validated_at: str | None
    applied_at: str | None
    created: int
    updated: int
    deleted: int
    healed: int
    held: int
    changes: list[PassChange]
    changes_more: int
    """How many more there were."""
    commits: list[PassCommit]
    """What the pass brought, newest first."""
    commits_more: int
    reason: str
    message: str
    count: int
    """How often in a row it failed so."""
    enforced: PassEnforced | None
    seconds: StageSeconds
    digest: str | None
    """Of all that was live then: one commit may be applied again, with more of it."""
    holds: list[str]
    """The first 50 of the policies that were held then."""
    confirmed_by: str | None
    """Who confirmed the deletions that it carried out; for who may read the platform."""


class PassList(_Schema):
    """One page, newest first."""

    items: list[Pass]
    next: str | None
    """Give it as `?after=` for the next page."""


class TracedPolicy(_Open):
    """What became of one policy that the commit changed."""

    policy: str
    state: Literal["pending", "held", "live", "deleted", "superseded", "unknown"]
    etag: str | None
    reason: str | None
    errors: list[str]


class Stage(_Open):
    """A moment on the commit's way; `null`: not reached, or not known."""

    stage: Literal["pushed", "seen", "fetched", "validated", "applied", "enforced_first", "enforced_everywhere"]
    """`pushed` is the committer's time, to the second: Git keeps no other; merges on a Git host and writes by this API
    set it as they happen."""
    at: str | None


class TracedAgent(_Open):
    """How one OPA followed."""

    id: str
    datacentre: str
    scope: str
    state: Literal["enforced", "behind", "unknown"]
    at: str | None
    """When it first proved this commit or a later one; `null` where that is not known."""
    seconds: float | None
    """From etcd to that proof."""
    enforced_revision: str | None
    error: str | None


class Trace(_Schema):
    """One commit's way to every OPA."""

    commit: str
    revision: str
    author: str
    subject: str
    state: Literal["pending", "held", "live", "deleted", "superseded", "applied", "not_in_branch", "unknown"]
    """`applied`: it changes no policy, and is part of what is applied."""
    policies: list[TracedPolicy]
    policies_more: int
    """How many more it changes that the caller may not read."""
    stages: list[Stage]
    pass_: Pass | None = Field(alias="pass")
    """The pass that applied it, or the last part of it; `null` while none has, and where that is not known."""
    passes: list[Pass]
    """The pass that came by the commit first, and those that applied it, oldest first: what was held of it then, as
    deletions until somebody confirms them, is applied by a later one."""
    agents: list[TracedAgent]
    missing: list[str]
    """What is not known, and why."""


class FleetAgent(_Open):
    """What one OPA proved to enforce."""

    id: str
    datacentre: str
    scope: str
    """What this OPA answers for besides the platform: `all`, `projects:a,b` or `shard:2/8`."""
    state: Literal["known", "unknown"]
    reason: str | None
    """Why it is unknown: `withdrawn` (the proof was lost, as while a bundle is activated), `silent` (the agent gave no
    sign of life), `unobserved` (nobody recorded, or etcd cannot be read now)."""
    commit: str | None
    """`null`: unknown; `none`: the empty bundle."""
    enforced_revision: str | None
    """The same as `/status` names it."""
    since: str
    """Since when it is so."""
    to: str | None
    """Until when it was so; `null` while it lasts, and where it is unknown."""
    last_commit: str | None
    """What was proven last."""
    opa_version: str | None
    error: str | None
    status: Literal["current", "behind", "unknown"] | None = Field(default=None, json_schema_extra=_never_null)
    """Beside the applied commit; now only."""
    behind_since: str | None = None
    """Since when there is something that it does not enforce; now only."""
    behind_by: int | None = None
    """How many passes that changed what is live it lacks; `null` where the log does not tell."""


class Fleet(_Schema):
    """What each OPA enforced at a time."""

    at: str
    agents: list[FleetAgent]
    totals: FleetTotals | None
    """Now; `null` for another time."""
    missing: str | None
    """What the record does not have of that time; `null`: nothing is missing."""
