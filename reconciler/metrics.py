"""Every Prometheus object and label value of regops, in one file: names and values are API and never renamed.

A counter whose label values are few is there with all of them from the start: Prometheus' `increase` does not see the
first event of a series that begins with it. Reasons, routes and the statuses of answers are too many for that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics import MetricWrapperBase

from reconciler.core.ports import StoreHealth

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 1, 2.5, 5, 10, 30, 60)
"""Buckets around the half second that a change may take."""
OUTCOMES = ("applied", "unchanged", "suspended", "transient", "conflict", "stalled", "error")
KINDS = ("start", "poll", "push", "hook", "drift", "request", "api")
STAGES = ("fetch", "validate", "apply", "total")
PROVIDERS = ("github", "gitlab", "gitea", "generic")
HOOK_RESULTS = (
    *("looking", "pong", "ignored_event", "ignored_repository", "ignored_branch"),
    *("refused", "malformed"),
)
PUSH_RESULTS = ("accepted", "moved", "declined", "unknown", "failed")


def _begin(metric: MetricWrapperBase, *values: Sequence[str]) -> None:
    """A child, at 0, for each combination of label values."""
    for labels in itertools.product(*values):
        metric.labels(*labels)


class LoopMetrics:
    """What the leader's loop counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self.triggers = counter("regops_triggers_total", "Looks, by what triggered them.", "kind")
        self.passes = counter(
            "regops_passes_total",
            "Passes by outcome: applied, unchanged, suspended, transient, conflict, stalled, error.",
            "outcome",
        )
        _begin(self.passes, OUTCOMES)
        _begin(self.triggers, KINDS)
        self.failures = counter("regops_pass_failures_total", "Passes that broke off, by reason.", "reason")
        self.pass_seconds = Histogram(
            "regops_pass_seconds", "Duration of whole passes.", ("outcome",), registry=registry, buckets=SECONDS
        )
        self.stage_seconds = Histogram(
            "regops_stage_seconds",
            "Duration of the stages of passes that wrote: fetch, validate, apply, total (from the trigger).",
            ("stage",),
            registry=registry,
            buckets=SECONDS,
        )
        _begin(self.stage_seconds, STAGES)
        self.policies = gauge("regops_policies", "Policies by state: live, held.", "state")
        self.conditions = gauge(
            "regops_condition",
            "1 while the condition is true: Ready, Reconciling, Stalled, FetchFailed, ValidationFailed, Drifted, "
            "PruneBlocked, HistoryRewritten, RecordDelayed.",
            "type",
        )
        self.last_pass = gauge(
            "regops_last_pass_timestamp_seconds",
            "When a pass last ended well, or since when this replica leads, if none has (Unix time).",
        )
        self.poll_interval = gauge("regops_poll_interval_seconds", "Within what time the leader looks by itself.")
        self.ready = gauge("regops_ready", "1 while the last pass left nothing held, blocked or failed.")
        self.blocked_deletions = gauge("regops_blocked_deletions", "Deletions that wait for a person.")
        self.platform_pending = gauge(
            "regops_platform_pending_projects", "Projects that a changed platform must still be compiled with."
        )
        self.foreign_keys = gauge("regops_foreign_keys", "Keys below the policies' prefix that regops never wrote.")
        self.drift_healed = counter("regops_drift_healed_total", "Policies healed after an edit by hand.")
        self.last_applied = gauge("regops_last_applied_timestamp_seconds", "When a pass last wrote to etcd.")
        self.leader = gauge("regops_leader", "1 while this replica leads.")
        self.watch_restarts = counter("regops_watch_restarts_total", "Drift watches that had to start over.")

    def stages(self, seen_at: datetime, stages: Mapping[str, str]) -> None:
        """Observe the time between the stages' RFC 3339 marks, beginning with the trigger."""
        before = seen_at
        for stage, mark in (("fetch", "fetched_at"), ("validate", "validated_at"), ("apply", "applied_at")):
            if mark in stages:
                at = datetime.fromisoformat(stages[mark])
                self.stage_seconds.labels(stage).observe(max(0.0, (at - before).total_seconds()))
                before = at
        self.stage_seconds.labels("total").observe(max(0.0, (before - seen_at).total_seconds()))


class FleetMetrics:
    """What the leader sees of all OPAs, from their receipts. Cleared when the lead is lost."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.propagation = Histogram(
            "regops_propagation_seconds",
            "From the trigger that saw a commit, to: applied (etcd has it), enforced (an OPA has proven it: one "
            "observation for each OPA that proved something when it was applied), everywhere (the last of these has).",
            ("to",),
            registry=registry,
            buckets=SECONDS,
        )
        self.agents = _Asked(
            "regops_fleet_agents",
            "OPAs by what they prove, by state: current, behind, unknown, stale, errors.",
            ("datacentre", "state"),
            registry=registry,
        )
        self.receipts = _Asked(
            "regops_fleet_receipts",
            "OPAs by the commit that they prove, its first 12 digits: the five most frequent ones, and other.",
            ("commit",),
            registry=registry,
        )
        self.lag = Gauge(
            "regops_fleet_lag_seconds",
            "Since when something is applied that an OPA which reports does not enforce yet; 0 when all do.",
            registry=registry,
        )
        _begin(self.propagation, ("applied", "enforced", "everywhere"))

    def took(self, to: str, seconds: float) -> None:
        """See `regops_propagation_seconds`."""
        self.propagation.labels(to).observe(seconds)

    def follow(
        self,
        counts: Callable[[], Mapping[str, Mapping[str, int]]],
        commits: Callable[[], Mapping[str, int]],
        lag: Callable[[], float],
    ) -> None:
        """What to ask, from here on, when the metrics are read: no sooner, as one event of one OPA should not have the
        whole fleet counted."""
        states = ("current", "behind", "unknown", "stale", "errors")
        self.agents.ask = lambda: {
            (datacentre, state): marks.get(state, 0) for datacentre, marks in counts().items() for state in states
        }
        self.receipts.ask = lambda: {(commit,): number for commit, number in commits().items()}
        self.lag.set_function(lag)

    def clear(self) -> None:
        """Another replica tells from here on."""
        for each in (self.agents, self.receipts):
            each.ask = None
            each.clear()
        self.lag.set_function(lambda: 0.0)


class _Asked(Gauge):
    """A gauge that asks for its values when it is read; children of what is no more go."""

    ask: Callable[[], Mapping[tuple[str, ...], float]] | None = None

    def collect(self) -> Iterable[Metric]:
        """See `Collector.collect`."""
        if self.ask is not None:
            self.clear()
            for labels, value in self.ask().items():
                self.labels(*labels).set(value)
        return super().collect()


class StoreMetrics:
    """What a server start (and every few minutes after) reads of etcd."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.db_size = Gauge("regops_etcd_db_size_bytes", "Size of etcd's database.", registry=registry)
        self.quota = Gauge(
            "regops_etcd_quota_bytes",
            "etcd's size quota; its default, 2 GiB, where it does not tell.",
            registry=registry,
        )
        self.alarms = Gauge("regops_etcd_alarms", "Alarms that are raised in etcd.", registry=registry)
        self.info = Gauge(
            "regops_etcd_info", "1, for the oldest version among the members.", ("version",), registry=registry
        )
        self.warnings = Gauge(
            "regops_etcd_warnings",
            "What a person should see to, by kind: member, request_limit, size, history.",
            ("kind",),
            registry=registry,
        )

    def observe(self, health: StoreHealth) -> None:
        """Show what was found."""
        self.db_size.set(health.db_size)
        self.quota.set(health.quota)
        self.alarms.set(len(health.alarms))
        self.info.clear()
        self.info.labels(health.version).set(1)
        kinds = [warning.kind for warning in health.warnings]
        for kind in ("member", "request_limit", "size", "history"):
            self.warnings.labels(kind).set(kinds.count(kind))


class AgentMetrics:
    """What an agent counts: its mirror, its bundles, and what the OPA beside it does with them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=SECONDS)

        self.advances = counter(
            "regops_agent_mirror_advances_total", "New states, by how they were read: delta, snapshot, empty.", "how"
        )
        self.kept = counter(
            "regops_agent_mirror_kept_total",
            "Times the former state stayed: applying, older, unreadable, nothing_applied.",
            "reason",
        )
        self.store_errors = counter(
            "regops_agent_store_errors_total", "Failures of etcd, by what was asked: mirror, receipt, alive.", "of"
        )
        _begin(self.advances, ("delta", "snapshot", "empty"))
        _begin(self.kept, ("applying", "older", "unreadable", "nothing_applied"))
        _begin(self.store_errors, ("mirror", "receipt", "alive"))
        self.disk_errors = counter("regops_agent_disk_errors_total", "Bundles that could not be written to disk.")
        self.sent = counter("regops_agent_bundles_sent_total", "Bundles sent to OPA.")
        self.refusals = counter("regops_agent_refusals_total", "Bundles that OPA downloaded and did not activate.")
        self.read_seconds = seconds("regops_agent_read_seconds", "Reading a new state from etcd.", "how")
        self.build_seconds = seconds("regops_agent_build_seconds", "Building a bundle and writing it to disk.")
        self.activation_seconds = seconds("regops_agent_activation_seconds", "From sending a bundle to OPA's proof.")
        self.stale = gauge("regops_agent_stale", "1 while etcd is out of reach.")
        self.enforced = gauge("regops_agent_enforced", "1 while OPA provably enforces the newest commit served.")
        self.policies = gauge("regops_agent_policies", "Policies in the bundle.")
        self.bundle_bytes = gauge("regops_agent_bundle_bytes", "Size of the bundle as OPA downloads it.")
        self.last_served = gauge("regops_agent_last_offered_timestamp_seconds", "When a commit was last offered.")


class ApiMetrics:
    """What the HTTP face counts; routes by their template, so that the labels stay few."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.requests = counter("regops_api_requests_total", "Requests answered.", "route", "method", "status")
        self.seconds = Histogram(
            "regops_api_request_seconds", "Time to answer.", ("route",), registry=registry, buckets=SECONDS
        )
        self.listeners = Gauge("regops_event_listeners", "Streams of /events that are served now.", registry=registry)
        self.mirror_restarts = counter(
            "regops_mirror_restarts_total", "Times that the mirror by which the API answers lost sight of etcd."
        )
        self._answers: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request. ``route`` and ``method`` come from short lists, so the labelled children are kept at hand."""
        key = (route, method, status)
        if key not in self._answers:
            self._answers[key] = (self.requests.labels(route, method, str(status)), self.seconds.labels(route))
        count, duration = self._answers[key]
        count.inc()
        duration.observe(seconds)


class HookMetrics:
    """What webhooks came to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hooks = Counter(
            "regops_hooks_total",
            "Webhooks, by provider and result: looking, pong, ignored_event, ignored_repository, ignored_branch, "
            "refused, malformed.",
            ("provider", "result"),
            registry=registry,
        )
        _begin(self.hooks, PROVIDERS, HOOK_RESULTS)
        self.secrets_unusable = Counter(
            "regops_hook_secrets_unusable_total",
            "Changes of hooks.secrets_file after which no usable secret was in it: those of before count.",
            registry=registry,
        )


class WriterMetrics:
    """What the write path counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pushes = Counter(
            "regops_pushes_total",
            "Pushes to the remote, by result: accepted, moved, declined, unknown, failed.",
            ("result",),
            registry=registry,
        )
        _begin(self.pushes, PUSH_RESULTS)
        self.commits = Counter("regops_commits_total", "Commits by writes that the remote took.", registry=registry)
        self.push_seconds = Histogram("regops_push_seconds", "Duration of a push.", registry=registry, buckets=SECONDS)
        self.push_writes = Histogram(
            "regops_push_writes", "Writes that shared one push.", registry=registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )


class RecorderMetrics:
    """What the record of versions counts; all 0 in a replica that does not lead."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pending = Gauge("regops_record_pending_passes", "Passes that are not recorded yet.", registry=registry)
        self.lag = Gauge("regops_record_lag_seconds", "Age of the oldest pass not recorded yet.", registry=registry)
        self.seconds = Histogram(
            "regops_record_seconds", "From the end of a pass to its record.", registry=registry, buckets=SECONDS
        )
        self.commits = Counter("regops_record_commits_total", "Commits recorded.", registry=registry)
        self.versions = Counter("regops_record_versions_total", "Versions written.", registry=registry)
        self.pruned = Counter("regops_record_pruned_total", "Versions deleted, as too old to keep.", registry=registry)
        self.lost = Counter(
            "regops_record_lost_passes_total", "Passes forgotten, as too many waited for MongoDB.", registry=registry
        )
        self.failures = Counter(
            "regops_record_failures_total",
            "Attempts to record that broke off, by reason.",
            ("reason",),
            registry=registry,
        )


class AuditMetrics:
    """What is counted of the audit log."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "regops_audit_events_total", "Audit events written.", ("action", "result"), registry=registry
        )
        self.failures = Counter(
            "regops_audit_failures_total", "Audit events that could not be written to the log.", registry=registry
        )


class ReceiptMetrics:
    """What the record of receipts counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pending = Gauge("regops_receipts_pending", "Receipts that wait for MongoDB.", registry=registry)
        self.recorded = Counter("regops_receipts_recorded_total", "Receipts written to MongoDB.", registry=registry)
        self.dropped = Counter(
            "regops_receipts_dropped_total", "Receipts forgotten, as too many waited for MongoDB.", registry=registry
        )
        self.failures = Counter(
            "regops_receipts_failures_total",
            "Attempts to record receipts that broke off, by reason.",
            ("reason",),
            registry=registry,
        )


class ProjectionMetrics:
    """What the projection of the audit log counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pending = Gauge("regops_audit_pending", "Audit events that wait for MongoDB.", registry=registry)
        self.projected = Counter("regops_audit_projected_total", "Audit events written to MongoDB.", registry=registry)
        self.dropped = Counter(
            "regops_audit_dropped_total",
            "Audit events that the full queue did not take: those of commits are written again from Git.",
            ("of",),
            registry=registry,
        )
        _begin(self.dropped, ("commits", "others"))
        self.recovered = Counter(
            "regops_audit_recovered_total",
            "Audit events that were written again from their commits.",
            registry=registry,
        )
        self.failures = Counter(
            "regops_audit_projection_failures_total",
            "Attempts to write audit events to MongoDB that broke off, by reason.",
            ("reason",),
            registry=registry,
        )
