"""What goes over the wire, as pydantic models: the source of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class PolicyBody(_Schema):
    """A policy."""

    rego: str
    """The policy's text; at most 512 KiB. Its package is `projects.<project>` or below, or `platform` or below."""
    data: dict[str, Any] | None = Field(default=None, json_schema_extra={"type": "object"})
    """The policy's data, a JSON object; at most 1 MiB. It lies at `data.projects.<project>` or `data.platform`."""


class Place(_Schema):
    """One thing that is wrong with one file."""

    file: str
    """The path in the repository, below the policies' folder, or `body`."""
    message: str
    line: int | None = None
    """From 1."""
    column: int | None = None
    """From 1."""


class WriteAnswer(_Schema):
    """What was written."""

    policy: str
    etag: str
    commit: str
    """The commit that has it."""
    warnings: list[Place]


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
    etag_after: str | None


class PolicyItem(_Schema):
    """One line of the list."""

    policy: str
    etag: str
    commit: str
    held: bool
    """Whether a newer version in Git is not valid, so that this one stays live."""


class PolicyList(_Schema):
    """One page."""

    items: list[PolicyItem]
    next: str | None
    """Give it as `?after=` for the next page."""


class Problem(_Schema):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str
    """A constant word for programs."""
    detail: str
    request_id: str
    errors: list[Place]


class SyncBody(_Schema):
    """What the look should do besides."""

    remove_foreign: bool = False
    """Delete keys below the policies' prefix that regops never wrote."""


class SyncAnswer(_Schema):
    """The token that `/status` shows as `last_handled_reconcile_at` once it was taken."""

    token: str


class SuspendBody(_Schema):
    """Why."""

    reason: str = Field(default="", max_length=1000)


class SuspendAnswer(_Schema):
    """What is now."""

    suspended: bool
    changed: bool


class ConfirmBody(_Schema):
    """Which commit's deletions are meant."""

    commit: str = Field(min_length=7, max_length=40, pattern="^[0-9a-fA-F]+$")


class ConfirmAnswer(_Schema):
    """What will be deleted."""

    commit: str
    deletions: list[str]


class Alive(_Schema):
    """Health."""

    status: Literal["ok", "not ready"]
    reasons: list[str] | None = None
