"""Settings: frozen groups, read once at start, passed in. A YAML file and ``REGOPS_…`` variables; the variable wins.

``git.remote`` in the file is ``REGOPS_GIT_REMOTE`` in the environment; lists are separated by commas there. Every
attribute's docstring is its documentation: ``docs/settings.md`` is generated from here and a test compares them.
Durations are seconds. An unknown name is an error that suggests the right one.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from reconciler.core.errors import StalledError
from reconciler.core.shards import Shard
from reconciler.settings_file import SettingsFile

ENVIRONMENT_PREFIX = "REGOPS_"
NO_SETTINGS = frozenset(
    {"REGOPS_CONFIG", "REGOPS_STATE", "REGOPS_SERVER", "REGOPS_ETCD", "REGOPS_OPA", "REGOPS_TOKEN", "REGOPS_LOG_LEVEL"}
)
"""Variables that belong to commands and tools, not to a settings group."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Seconds = Annotated[float, Field(gt=0)]


_CREDENTIALS = re.compile(r"^(https?://|[a-z+]+://(?=[^/@]*:[^/@]*@))[^/@]*@")
_PROTOCOLS = frozenset({"https", "ssh", "file", "http", "git"})


def _protocol(remote: str) -> str:
    """By git's own rule (git-fetch(1), "GIT URLS"): a scheme, else ssh for a colon before the first slash."""
    scheme, separator, _ = remote.partition("://")
    return scheme if separator else "ssh" if ":" in remote.partition("/")[0] else "file"


class _Group(BaseModel):
    # Built once, within `Settings`, and with no look at this file for the docstrings: every command waits for it.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """A path may begin with ``~``."""
        return value.expanduser() if isinstance(value, Path) and value.parts[:1] and value.parts[0][0] == "~" else value


class GitSettings(_Group):
    """The policy repository."""

    remote: str = ""
    """URL or path of the repository: `https://`, `ssh://`, `git@host:path`, `file://` or a folder. Required. Never with
    a password or token in it: see `git.token_file`."""
    branch: str = "main"
    """The branch whose head is the truth."""
    path: str = "policies"
    """The folder of the policies inside the repository."""
    mirror: Path = Path("mirror.git")
    """Where the server keeps its bare mirror; a relative path lies in `server.state`."""
    poll_interval: Seconds = 30.0
    """Seconds between two looks at the remote when nothing else triggers one."""
    hooked_poll_interval: Seconds = 600.0
    """The same while webhooks arrive (`hooks.secrets_file`): until none came for an hour, or a look found a commit that
    none had told of. Never less than `git.poll_interval`."""
    fetch_timeout: Seconds = 60.0
    """Seconds after which a fetch is ended and counts as failed; in a first clone, so many without any progress."""
    clone_timeout: Seconds = 600.0
    """Seconds that the first clone, which brings the whole history, may take in all."""
    push_timeout: Seconds = 20.0
    """Seconds after which a push without an answer is ended; whether it arrived is then found out, or not known."""
    protocols: Annotated[tuple[Literal["https", "ssh", "file", "http", "git"], ...], Field(min_length=1)] = (
        "https",
        "ssh",
        "file",
        "http",
    )
    """Protocols that git may use, also after a redirect: `https`, `ssh`, `file` (a folder too), `http`, `git`."""
    ssh_key: Path | None = None
    """Private key for ssh, without a passphrase; by default the keys and the agent of the account."""
    known_hosts: Path | None = None
    """Host keys for ssh (the form of `~/.ssh/known_hosts`); by default the account's. An unknown host is refused."""
    ca_file: Path | None = None
    """CA certificates (PEM) to trust for https instead of the system's."""
    token_file: Path | None = None
    """File with a token or password for http(s), read at each command; given to the host of `git.remote` only."""
    username: Annotated[str, StringConstraints(pattern=r"^[!-~]+$")] = "x-access-token"
    """User name that goes with `git.token_file`; GitHub and GitLab take any, Bitbucket wants `x-token-auth`."""
    credential_helper: str = ""
    """A credential helper of git instead of `git.token_file`, as `credential.helper` names it."""
    committer_name: str = "regops"
    """Committer of the commits that the API makes; their author is the caller."""
    committer_email: str = "regops@localhost"
    """Address of that committer. Keys are only looked for in commits of this committer: never change it lightly."""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = path.strip("/").split("/")
        if any(part in {"", ".", ".."} for part in parts):
            raise ValueError("must be a folder inside the repository, such as 'policies'")
        return "/".join(parts)

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        protocol = _protocol(self.remote)
        if self.remote and protocol in _PROTOCOLS and protocol not in self.protocols:
            raise ValueError(f"git.remote uses {protocol}, which git.protocols does not allow: {self.shown}")
        if self.shown != self.remote:
            # git gives the URL on to its helpers, and everybody on the machine can read their command lines.
            message = f"git.remote has a user or password in it, {self.shown}: leave that out"
            raise ValueError(f"{message}, and set git.token_file and, where the host asks for one, git.username")
        return self

    @property
    def shown(self) -> str:
        """The remote as it may leave the process: without the password or token of an http(s) URL."""
        return _CREDENTIALS.sub(r"\1***@", self.remote)


class EtcdSettings(_Group):
    """The live copy."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    """Client URLs of the etcd members."""
    policies_prefix: str = "/policies/"
    """Prefix of the policies' keys; ends with a slash."""
    own_prefix: str = "/regops/"
    """Prefix of regops' own keys; ends with a slash."""
    ca_file: Path | None = None
    """CA certificates that sign the members' certificates."""
    cert_file: Path | None = None
    """Client certificate, for mutual TLS."""
    key_file: Path | None = None
    """Key of the client certificate."""
    user: str = ""
    """User name, where etcd asks for one."""
    password_file: Path | None = None
    """File with the user's password."""
    read_timeout: Seconds = 2.0
    """Deadline of one read."""
    commit_timeout: Seconds = 5.0
    """Deadline of one write; a write is never repeated."""

    @field_validator("policies_prefix", "own_prefix")
    @classmethod
    def _slashes(cls, prefix: str) -> str:
        if not re.fullmatch(r"/(?:[A-Za-z0-9._-]+/)+", prefix):
            raise ValueError("must begin and end with '/', such as '/policies/'")
        return prefix


class PolicySettings(_Group):
    """What may go live."""

    namespace: Literal["enforce", "warn"] = "enforce"
    """`enforce` refuses references out of a policy's own tree; `warn` only reports them, and compiles all together."""
    rego_v0: Literal["warn", "refuse"] = "warn"
    """What becomes of policies in Rego v0 syntax."""
    on_platform_break: Literal["hold-platform", "withdraw-projects"] = "hold-platform"
    """A platform that would break projects is held, or goes live and the broken projects are withdrawn."""
    refused_builtins: tuple[str, ...] = ("http.send", "opa.runtime", "net.lookup_ip_addr")
    """Builtin functions that no policy may use."""
    max_rego_bytes: Annotated[int, Field(gt=0, le=524288)] = 524288
    """Largest `rego.rego`, in bytes (512 KiB)."""
    max_data_bytes: Annotated[int, Field(gt=0, le=1048576)] = 1048576
    """Largest `data.json`, in bytes (1 MiB)."""
    compile_timeout: Seconds = 10.0
    """Seconds that OPA may take to compile one policy."""
    platform_at_once: Annotated[int, Field(ge=0)] = 500
    """A changed platform is compiled with every project that refers to it before it goes live. Other changes wait for
    up to so many; with more of them they go on, and the platform follows when it is known to break none."""


class GuardSettings(_Group):
    """How much one pass may delete without a person's word: min(cap, max(floor, ratio x live policies))."""

    ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Part of the live policies that one pass may delete."""
    floor: Annotated[int, Field(ge=0)] = 2
    """Deletions that are always allowed."""
    cap: Annotated[int, Field(ge=0)] = 20
    """Deletions above this number always wait for a person."""


class LoopSettings(_Group):
    """When passes run."""

    backoff_min: Seconds = 0.5
    """First wait after a failed pass; doubled each time, with jitter, cut short by a new trigger."""
    backoff_max: Seconds = 30.0
    """Longest wait after failed passes."""
    full_compare_interval: Seconds = 300.0
    """Seconds after which etcd is compared whole although nothing said that it changed."""
    conflict_retries: Annotated[int, Field(ge=0)] = 5
    """How often a pass is planned again at once because somebody else wrote first."""


class ServerSettings(_Group):
    """This replica."""

    host: str = "127.0.0.1"
    """Address that the API listens on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of the API; 0 takes a free one."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of a listener of its own for `/metrics`; by default it is served beside the API, without a token."""
    datacentre: Name = "local"
    """Name of the datacentre, shown in status."""
    id: Name = Field(default_factory=lambda: re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63] or "server")
    """Name of this replica; the host's name by default."""
    state: Path = Path(".regops/server")
    """Folder for the mirror and other things that may be lost."""
    lease_ttl: Annotated[int, Field(ge=2, le=60)] = 5
    """Seconds after which a silent leader is replaced."""
    forget_agents_after: Seconds = 604800.0
    """Seconds (a week) after which a silent agent counts no more: until then health is Unknown, or a person forgets it
    (`regops fleet forget`). Set it alike in every replica."""


class ApiSettings(_Group):
    """Bounds of the API."""

    concurrent_writes: Annotated[int, Field(ge=1)] = 256
    """Writes that may be under way at once in this replica; more are answered 503."""
    writes_per_second: Seconds = 50.0
    """Writes that one caller may make per second on average; more are answered 429."""
    burst: Annotated[int, Field(ge=1)] = 100
    """Writes that one caller may make at once."""
    event_listeners: Annotated[int, Field(ge=1)] = 1000
    """Streams of `/events` that this replica serves at once; more are answered 503."""
    patience: Seconds = 10.0
    """Seconds that a write waits for the remote: for one fetch, and for finding out what became of a push."""


class PageSettings(_Group):
    """The status page."""

    tickets_file: Path | None = None
    """JSON file with tickets that log in by a link, {ticket: token}, as `regops dev` writes it; it is a secret."""


class HooksSettings(_Group):
    """Webhooks of the Git host."""

    secrets_file: Path | None = None
    """File with the secrets that hooks are signed with, one in a line, several while one replaces another; read again
    when it changes, and kept as it was when nothing usable is left in it. Without it hooks are refused."""
    repositories: tuple[str, ...] = ()
    """More URLs of the repository, where the host names it otherwise than `git.remote` does."""


class AuditSettings(_Group):
    """The audit trail."""

    file: Path | None = None
    """File that audit events are appended to, one JSON object a line; standard output by default."""


class MongoSettings(_Group):
    """The record of versions and audit events. Without it history is answered from Git alone."""

    uri: str = ""
    """Connection string (`mongodb://`, `mongodb+srv://`) of MongoDB 6 or newer, or Atlas. Empty: no record."""
    uri_file: Path | None = None
    """File with the connection string instead, for one that has a password in it."""
    database: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,38}$")] = "regops"
    """Name of the database; its user needs the role `readWrite` on it."""
    ca_file: Path | None = None
    """CA certificates that sign the servers' certificates; the system's by default."""
    timeout: Seconds = 5.0
    """Deadline of one call."""
    keep_applied: Annotated[int, Field(ge=1)] = 5
    """Versions of each policy that were live and are kept, the newest ones."""
    keep_others: Annotated[int, Field(ge=1)] = 5
    """Versions of each policy that never went live and are kept, the newest ones."""
    audit_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """Days for which audit events are kept."""
    audit_queue: Annotated[int, Field(ge=1)] = 10000
    """Audit events that wait in memory while MongoDB is away; the log has them all."""
    receipt_days: Annotated[int, Field(ge=1, le=3650)] = 90
    """Days for which it is kept what an OPA enforced, counted from when it no longer did."""
    receipt_queue: Annotated[int, Field(ge=1)] = 10000
    """Receipts that wait in memory while MongoDB is away."""


class TracingSettings(_Group):
    """Traces by OpenTelemetry; needs the extra `regops[tracing]`. The variables `OTEL_EXPORTER_OTLP_HEADERS`,
    `OTEL_EXPORTER_OTLP_CERTIFICATE` and `OTEL_RESOURCE_ATTRIBUTES` count too."""

    endpoint: str = ""
    """Base address of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`. Empty: nobody traces."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the traces that begin here and are kept; of those that come from elsewhere the caller decides."""
    timeout: Seconds = 5.0
    """Deadline of one delivery to the collector."""


class AgentSettings(_Group):
    """The agent beside an OPA."""

    host: str = "127.0.0.1"
    """Address that the OPA reaches the agent on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8282
    """Port that the OPA reaches the agent on; 0 takes a free one."""
    datacentre: Name = "local"
    """Name of the datacentre, shown in receipts."""
    id: Name = Field(default_factory=lambda: re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63] or "agent")
    """Name of this agent, unique in its datacentre; the host's name by default."""
    projects: tuple[str, ...] = ()
    """Projects that this OPA answers for; empty means all."""
    shard: str = ""
    """The shard that this OPA answers for, `i/n` with i from 1 to n: the platform and about one in n of the projects,
    by a hash of their names. Instead of `agent.projects`; empty means no sharding."""
    state: Path = Path(".regops/agent")
    """Folder of the last bundle."""
    opa: str = ""
    """URL of the OPA, shown in receipts."""
    min_opa_version: str = ""
    """An OPA older than this is reported as `OpaTooOld`; use the version of the servers' compiler."""

    @field_validator("shard")
    @classmethod
    def _is_shard(cls, text: str) -> str:
        if text:
            Shard.parse(text)
        return text

    @model_validator(mode="after")
    def _one_scope(self) -> Self:
        if self.shard and self.projects:
            raise ValueError("agent.shard and agent.projects exclude each other: leave one of them out")
        return self


class OpaSettings(_Group):
    """The private OPA that validates."""

    binary: Path | None = None
    """Path of the `opa` executable; by default `REGOPS_OPA`, then the one on PATH or built by `make setup`."""


class AuthSettings(_Group):
    """Who may call the API: whose tokens count, what their claims are called, which OPA is asked."""

    issuer: str = ""
    """The `iss` that every token must carry."""
    audience: str = "regops"
    """The `aud` that every token must name, alone or in a list."""
    jwks: str = ""
    """Where the issuer's public keys (JWKS, RFC 7517) are: an `https://` URL, or a file."""
    algorithms: Annotated[tuple[Literal["RS256", "ES256", "EdDSA"], ...], Field(min_length=1)] = ("RS256",)
    """Signatures that count: `RS256`, `ES256`, `EdDSA`."""
    tenant: tuple[str, ...] = ()
    """Tenants served; a token of another or of none is refused. Empty: every tenant, with a warning at start."""
    claim_tenant: str = "tenant"
    """Name of the claim with the caller's tenant."""
    claim_roles: str = "roles"
    """Name of the claim with the roles: a list, or one string with spaces between."""
    claim_project: str = "project"
    """Name of the claim with the project, or the list of them, whose policies the caller reads."""
    jwks_refresh: Seconds = 300.0
    """Seconds after which the keys are fetched again; a file is read again as soon as it changes."""
    jwks_cooldown: Seconds = 5.0
    """Tokens that name an unknown key fetch the keys at most once in so many seconds."""
    jwks_max_age: Seconds = 86400.0
    """Seconds that the keys at hand stay in use while they cannot be fetched."""
    jwks_timeout: Seconds = 5.0
    """Deadline of one fetch of the keys."""
    jwks_ca_file: Path | None = None
    """CA certificates that sign the certificate of `auth.jwks`; the system's by default."""
    jwks_allow_http: bool = False
    """Fetch keys by plain `http://` from another host too: whoever is on the way can then forge tokens."""
    opa: str = "http://127.0.0.1:8181"
    """The OPA beside this replica, asked for `data.platform.authz.allow`; it is served by a regops agent."""
    opa_timeout: Seconds = 1.0
    """Seconds within which that OPA must answer; no answer refuses the request (503)."""
    opa_max_age: Annotated[float, Field(ge=0, le=0.25)] = 0.25
    """Seconds for which what that OPA said of a read is used for equal reads (same token, method and path), while the
    platform's policy stays the same in this replica: a read that OPA has come to refuse, or can no longer judge, is let
    through for no longer. Writes always ask. 0 asks for every read."""


class Settings(_Group):
    """All groups."""

    git: GitSettings = Field(default_factory=GitSettings)
    etcd: EtcdSettings = Field(default_factory=EtcdSettings)
    policy: PolicySettings = Field(default_factory=PolicySettings)
    guard: GuardSettings = Field(default_factory=GuardSettings)
    loop: LoopSettings = Field(default_factory=LoopSettings)
    server: ServerSettings = Field(default_factory=ServerSettings)
    api: ApiSettings = Field(default_factory=ApiSettings)
    hooks: HooksSettings = Field(default_factory=HooksSettings)
    page: PageSettings = Field(default_factory=PageSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    mongo: MongoSettings = Field(default_factory=MongoSettings)
    tracing: TracingSettings = Field(default_factory=TracingSettings)
    agent: AgentSettings = Field(default_factory=AgentSettings)
    opa: OpaSettings = Field(default_factory=OpaSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)


def setting_names() -> dict[str, str]:
    """Every setting as ``group.name`` → the environment variable that sets it."""
    return {
        f"{group}.{name}": f"{ENVIRONMENT_PREFIX}{group}_{name}".upper()
        for group, model in _groups().items()
        for name in model.model_fields
    }


def load(file: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the file (when given) and the environment. Raises `StalledError` naming file, line, setting and remedy."""
    document = _read(file) if file else SettingsFile()
    _refuse_unknown(document)
    # Every group is there, so that none is made from its defaults: each would be built as a model of its own.
    merged: dict[str, dict[str, Any]] = {group: {} for group in _groups()}
    for group, values in document.groups.items():
        merged[group] = {key: _listed(group, key, value) for key, value in values.items()}
    origins: dict[str, str] = {}
    by_variable = {variable: name for name, variable in setting_names().items()}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in NO_SETTINGS or "_TEST_" in variable:
            continue
        name = by_variable.get(variable)
        if name is None:
            raise _invalid(f"{variable} is no setting", _suggest(variable, by_variable))
        group, _, key = name.partition(".")
        merged.setdefault(group, {})[key] = _listed(group, key, value)
        origins[name] = variable
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        loc = [str(part) for part in first["loc"][:2]]
        where = origins.get(".".join(loc)) or ": ".join(filter(None, [document.place(*loc), ".".join(loc)]))
        what = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
        raise _invalid(f"{where}: {what}", "See docs/settings.md.") from error


@cache
def _groups() -> dict[str, type[_Group]]:
    groups = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: group for name, group in groups.items() if isinstance(group, type) and issubclass(group, _Group)}


def _read(file: Path) -> SettingsFile:
    from reconciler.settings_yaml import read  # noqa: PLC0415 many an agent has no file

    return read(file)


def _refuse_unknown(document: SettingsFile) -> None:
    groups = _groups()
    for group, values in document.groups.items():
        if group not in groups:
            raise _invalid(f"{document.place(group)}: {group!r} is no group of settings", _suggest(group, groups))
        for name in values:
            if name not in groups[group].model_fields:
                known = [f"{group}.{field}" for field in groups[group].model_fields]
                full = f"{group}.{name}"
                suggestion = _closest(full, known) or _suggest(full, setting_names())
                raise _invalid(f"{document.place(group, name)}: {full} is no setting", suggestion)


def _listed(group: str, name: str, value: Any) -> Any:
    """A text for a setting that is a list: its parts, separated by commas."""
    annotation = str(_groups()[group].model_fields[name].annotation)
    if isinstance(value, str) and annotation.startswith("tuple["):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _suggest(name: str, known: Iterable[str]) -> str:
    return _closest(name, known) or "See docs/settings.md for all names."


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else ""


def _invalid(message: str, remedy: str) -> StalledError:
    return StalledError(message, reason="InvalidSettings", remedy=remedy)
