"""Composition: settings → adapters → engine → processes. Nothing here decides anything.

Each function imports what it opens: an agent carries no Git and no MongoDB client, and a command starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from reconciler.core.errors import StalledError, TransientError
from reconciler.core.keyspace import Keyspace
from reconciler.core.ports import Identity, KeyValueStore, Source
from reconciler.core.tracing import NO_TRACER, Tracer
from reconciler.settings import EtcdSettings, MongoSettings, Settings, TracingSettings
from regops import __version__

if TYPE_CHECKING:
    from reconciler.adapters.etcd import EtcdStore
    from reconciler.adapters.git import GitSource
    from reconciler.adapters.git.export import Exported
    from reconciler.core.receipt_ports import ReceiptStore
    from reconciler.core.record_ports import AuditStore, VersionStore
    from reconciler.progress import Progress
    from reconciler.reconcile import Reconciler
    from reconciler.validation import Judge

log = logging.getLogger(__name__)


def keyspace(settings: EtcdSettings) -> Keyspace:
    """The configured prefixes."""
    return Keyspace(settings.policies_prefix, settings.own_prefix)


@contextlib.asynccontextmanager
async def open_store(settings: EtcdSettings) -> AsyncIterator[EtcdStore]:
    """The connection to etcd; connects when it is first used."""
    from reconciler.adapters.etcd import EtcdStore

    password = settings.password_file.read_text(encoding="utf-8").strip() if settings.password_file else ""
    store = EtcdStore(
        settings.endpoints,
        ca_file=settings.ca_file,
        cert_file=settings.cert_file,
        key_file=settings.key_file,
        user=settings.user,
        password=password,
        read_timeout=settings.read_timeout,
        commit_timeout=settings.commit_timeout,
    )
    try:
        yield store
    finally:
        await store.aclose()


def check_source(settings: Settings) -> None:
    """Raise `StalledError` when no repository is configured: nothing needs to be started to say so."""
    if not settings.git.remote:
        raise StalledError(
            "no policy repository is configured",
            reason="InvalidSettings",
            remedy="Set git.remote (REGOPS_GIT_REMOTE) to its URL, or try `regops dev`.",
        )


def export_mirror(
    mirror: Path, into: Path, *, branch: str, path: str, commit: str | None, say: Callable[[str], None]
) -> Exported:
    """See `reconciler.adapters.git.export`."""
    from reconciler.adapters.git.export import export

    return export(mirror, into, branch=branch, path=path, commit=commit, say=say)


@contextlib.asynccontextmanager
async def open_source(settings: Settings) -> AsyncIterator[GitSource]:
    """The configured branch, mirrored below `server.state`. The remote need not answer yet."""
    from reconciler.adapters.git import GitSource
    from reconciler.adapters.git.access import Access

    check_source(settings)
    git = settings.git
    try:
        settings.server.state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TransientError(
            f"the folder {settings.server.state} cannot be made: {error.strerror}",
            reason="StateUnavailable",
            remedy="Make it writable, or set server.state (REGOPS_SERVER_STATE) to another folder.",
        ) from error
    source = GitSource(
        remote=git.remote,
        mirror=settings.server.state / git.mirror,
        branch=git.branch,
        path=git.path,
        fetch_timeout=git.fetch_timeout,
        clone_timeout=git.clone_timeout,
        push_timeout=git.push_timeout,
        access=Access(
            protocols=git.protocols,
            ssh_key=git.ssh_key,
            known_hosts=git.known_hosts,
            ca_file=git.ca_file,
            token_file=git.token_file,
            username=git.username,
            credential_helper=git.credential_helper,
        ),
        committer=Identity(git.committer_name, git.committer_email),
    )
    try:
        yield source
    finally:
        await source.aclose()


@dataclass(frozen=True, slots=True)
class Record:
    """What stands in MongoDB."""

    versions: VersionStore
    audit: AuditStore
    receipts: ReceiptStore


@contextlib.asynccontextmanager
async def open_record(settings: MongoSettings) -> AsyncIterator[Record | None]:
    """The record, connected when it is first used; ``None`` where no MongoDB is configured."""
    uri = settings.uri
    if settings.uri_file is not None:
        try:
            uri = (await asyncio.to_thread(settings.uri_file.read_text, encoding="utf-8")).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StalledError(
                f"mongo.uri_file {settings.uri_file} cannot be read",
                reason="InvalidSettings",
                remedy="Name a file with the connection string that this user may read.",
            ) from error
    if not uri:
        yield None
        return
    from reconciler.adapters.mongo import MongoAudit, MongoDatabase, MongoReceipts, MongoVersions

    database = MongoDatabase(uri, settings.database, timeout=settings.timeout, ca_file=settings.ca_file)
    try:
        yield Record(
            MongoVersions(database),
            MongoAudit(database, days=settings.audit_days),
            MongoReceipts(database, days=settings.receipt_days),
        )
    finally:
        await database.aclose()


@contextlib.asynccontextmanager
async def open_plan_source(
    settings: Settings, folder: Path | None, revision: str | None
) -> AsyncIterator[tuple[Source, str]]:
    """What `regops plan` compares with etcd: a folder, a commit, or the head of the configured branch."""
    if folder is not None:
        from regops.revisions import open_snapshot

        async with open_snapshot(settings, folder, path=settings.git.path, revision=revision) as snapshot:
            yield snapshot
        return
    with tempfile.TemporaryDirectory(prefix="regops-plan-") as scratch:
        server = settings.server.model_copy(update={"state": Path(scratch)})
        async with open_source(settings.model_copy(update={"server": server})) as source:
            yield source, await source.fetch()


@contextlib.asynccontextmanager
async def open_tracer(settings: TracingSettings, *, service: str, instance: str) -> AsyncIterator[Tracer]:
    """Where spans go, as long as the block runs: nowhere, unless a collector is named. OpenTelemetry is imported only
    then. Raises `StalledError` when it is not installed."""
    if not settings.endpoint:
        yield NO_TRACER
        return
    try:
        from reconciler.adapters.otel import OtelTracer
    except ImportError as error:
        raise StalledError(
            "tracing.endpoint is set, and OpenTelemetry is not installed",
            reason="InvalidSettings",
            remedy="Install it: pip install 'regops[tracing]'; or leave the setting out.",
        ) from error
    if urlsplit(settings.endpoint).scheme not in {"http", "https"}:
        raise StalledError(
            f"tracing.endpoint {settings.endpoint!r} is no http address",
            reason="InvalidSettings",
            remedy="Write the base address of an OTLP/HTTP collector: http://127.0.0.1:4318.",
        )
    tracer = OtelTracer(
        endpoint=settings.endpoint,
        service=service,
        instance=instance,
        version=__version__,
        ratio=settings.ratio,
        timeout=settings.timeout,
    )
    try:
        yield tracer
    finally:
        await tracer.close()


def opa_binary(settings: Settings) -> Path:
    """The `opa` to validate with. Raises `StalledError` when there is none."""
    from regops import toolchain

    if settings.opa.binary is not None:
        return settings.opa.binary
    try:
        found = toolchain.find("opa")
    except toolchain.ToolError as error:
        raise StalledError(str(error), reason="OpaNotFound") from error
    if found is None:
        raise StalledError(
            "no `opa` command found",
            reason="OpaNotFound",
            remedy="Install OPA 1.4 or newer, set REGOPS_OPA to it, or run `make setup`.",
        )
    return found


@contextlib.asynccontextmanager
async def open_judge(
    settings: Settings, source: Source, *, progress: Progress | None = None, server: bool = False
) -> AsyncIterator[Judge]:
    """A judge and its private OPA, which is started when it is first asked: until then nobody needs it.

    For a ``server`` verdicts outlive a restart, and a platform that concerns many waits while other changes go on.
    """
    from reconciler.adapters.opa import OpaCompiler
    from reconciler.adapters.verdict_file import VerdictFile
    from reconciler.core.limits import RULES, Limits
    from reconciler.validation import Judge
    from reconciler.verdicts import Verdicts

    policy = settings.policy
    limits = Limits(
        rego_bytes=policy.max_rego_bytes,
        data_bytes=policy.max_data_bytes,
        namespace=policy.namespace,
        rego_v0=policy.rego_v0,
        refused_builtins=frozenset(policy.refused_builtins),
    )
    compiler = OpaCompiler(opa_binary(settings), limits=limits, check_timeout=policy.compile_timeout)

    async def fingerprint() -> str:
        return f"{__version__} {RULES} {await compiler.version()} {limits.text()}"

    file = VerdictFile(settings.server.state / "verdicts.sqlite", fingerprint) if server else None
    try:
        yield Judge(
            source,
            compiler,
            on_platform_break=policy.on_platform_break,
            max_rego_bytes=policy.max_rego_bytes,
            max_data_bytes=policy.max_data_bytes,
            together=policy.namespace == "warn",
            at_once=policy.platform_at_once if server else None,
            verdicts=Verdicts(file),
            progress=progress,
        )
    finally:
        await compiler.aclose()
        if file is not None:
            await file.aclose()


def make_reconciler(
    settings: Settings, source: Source, store: KeyValueStore, judge: Judge, tracer: Tracer = NO_TRACER
) -> Reconciler:
    """The pass, with the configured guards."""
    from reconciler.core.guards import Limits
    from reconciler.reconcile import Reconciler

    guard = settings.guard
    return Reconciler(
        source,
        store,
        judge,
        keyspace=keyspace(settings.etcd),
        limits=Limits(ratio=guard.ratio, floor=guard.floor, cap=guard.cap),
        tracer=tracer,
    )
