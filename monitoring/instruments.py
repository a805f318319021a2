"""The gateway's Prometheus metrics; the only home of prometheus_client.

Names and labels are promises (docs: "Metrics"), bucket bounds are OpenTelemetry's for generative AI. Each gateway
has its own registry for what happens seldom. What happens with every request is counted by `monitoring.aggregates`, and
`monitoring.exposition` writes it: of 20 models with 3 versions in some milliseconds, during which no token moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from monitoring.aggregates import RequestAggregates
from monitoring.exposition import write_finished
from monitoring.measurements import (
    DriftMeasurement,
    RequestMeasurement,
    RevisionInfo,
    RolloutMeasurement,
    SignalMeasurement,
)
from monitoring.protobuf import CONTENT_TYPE, Family, FamilyType, Series, asked_for, finished_families, write

PROVIDER = "tidegate"
LATE_SERIES_S = 60.0
"""How long series stay that come late: as long as Prometheus may take between two looks."""

GUARD_SERVICE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""From one short text to the five seconds after which a gateway gives up."""


class GatewayInstruments:
    """All metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._finished = RequestAggregates()
        self.retries = Counter(
            "tidegate_retries", "Requests sent once more, by why.", ("model", "version", "cause"),
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "tidegate_streams_in_flight", "Answers under way.", ("model", "version"), registry=self.registry
        )
        self.rejections = Counter(
            "tidegate_rejections", "Requests rejected before any engine saw them; model is empty when unknown.",
            ("model", "reason"), registry=self.registry,
        )  # fmt: skip
        self.queue_depth = Gauge(
            "tidegate_queue_depth", "Requests waiting for their turn.", ("model", "priority"), registry=self.registry
        )
        self.quota_limit = Gauge(
            "tidegate_quota_limit", "This gateway's part of what the keys of a namespace may use together.",
            ("key_namespace", "limit"), registry=self.registry,
        )  # fmt: skip
        self.quota_used = Gauge(
            "tidegate_quota_used", "What is used of that now; above it after answers that cost more than expected.",
            ("key_namespace", "limit"), registry=self.registry,
        )  # fmt: skip
        self.revision_info = Gauge(
            "tidegate_revision_info", "1 for each revision and the role it has now.",
            ("model", "version", "revision", "role"), registry=self.registry,
        )  # fmt: skip
        self.events_dropped = Counter(
            "tidegate_gateway_events_dropped", "Evidence events lost because the controller was away too long.",
            registry=self.registry,
        )  # fmt: skip
        self.mirrored = Counter(
            "tidegate_mirrored_requests", "Requests drawn to be copied to a version, by what became of the copy.",
            ("model", "version", "result"), registry=self.registry,
        )  # fmt: skip
        self.verdicts = Counter(
            "tidegate_guardrail_verdicts", "Prompts and answers that a check looked at, by its worst verdict.",
            ("model", "version", "check", "direction", "verdict"), registry=self.registry,
        )  # fmt: skip
        self.endpoints_ready = Gauge(
            "tidegate_endpoints_ready",
            "Endpoints that take requests now.",
            ("model", "version"),
            registry=self.registry,
        )
        self.answers_read = Counter(
            "tidegate_answers_read", "Good answers whose text was looked at.", ("model", "version"),
            registry=self.registry,
        )  # fmt: skip
        self.answer_signals = Counter(
            "tidegate_answer_signals", "Of those, answers that showed a signal of quality.",
            ("model", "version", "signal"), registry=self.registry,
        )  # fmt: skip
        self.drift_untold = Counter(
            "tidegate_drift_untold", "Sampled requests that the drift watch was not told of: it was away, or slow.",
            registry=self.registry,
        )  # fmt: skip
        self.lease_valid = Gauge(
            "tidegate_gateway_lease_valid", "1 while a leading controller was heard within the lease.",
            registry=self.registry,
        )  # fmt: skip
        self.feedback = Counter(
            "tidegate_feedback", "Votes on answers, by the version that gave them.", ("model", "version", "rating"),
            registry=self.registry,
        )  # fmt: skip
        self.telemetry_dropped = Counter(
            "tidegate_telemetry_dropped", "Finished requests that a trace or the request log lost.", ("kind",),
            registry=self.registry,
        )  # fmt: skip
        self.rejections_unkept = Counter(
            "tidegate_rejections_unkept", "Rejections that neither a trace nor the request log holds: too many.",
            registry=self.registry,
        )  # fmt: skip
        self._read: dict[tuple[str, str], int] = {}
        """Of each version, what `answers_read` was not told yet: it is when it is shown, since that takes longest."""
        self._dropped = 0
        self._untold = 0
        self._unkept = 0
        self._telemetry_dropped: dict[str, int] = {}
        self._retired: dict[tuple[str, str], float | None] = {}
        """With series that are to go: since when `sweep` knows."""
        self._revisions: set[tuple[str, str]] = set()

    def record(self, m: RequestMeasurement) -> None:
        """Count one finished request."""
        self._finished.record(m)
        self._seen(m.model, m.version)

    def _seen(self, model: str, version: str) -> None:
        if (model, version) not in self._revisions:
            # It ended after its revision was retired, or somebody looked at its answer then: see `sweep`.
            self._retired.setdefault((model, version), None)

    def retry(self, model: str, version: str, cause: str) -> None:
        """Count a request that was sent once more because `version` failed."""
        self.retries.labels(model, version, cause).inc()
        self._seen(model, version)

    def mirrored_request(self, model: str, version: str, result: str) -> None:
        """Count a copy that was to go to `version`; it is in no other metric of requests."""
        self.mirrored.labels(model, version, result).inc()
        self._seen(model, version)

    def answer_read(self, model: str, version: str, signals: Iterable[str]) -> None:
        """Count a good answer of `version` that was looked at, and what it showed."""
        key = (model, version)
        self._read[key] = self._read.get(key, 0) + 1
        for signal in signals:
            self.answer_signals.labels(model, version, signal).inc()
        self._seen(model, version)

    def guardrail_verdicts(
        self, model: str, version: str, check: str, direction: str, verdict: str, count: int = 1
    ) -> None:
        """Count what a check of the policy of `version` said."""
        self.verdicts.labels(model, version, check, direction, verdict).inc(count)
        self._seen(model, version)

    def rejected(self, model: str, reason: str) -> None:
        """Count a rejection; `model` must be "" unless the traffic table names it."""
        self.rejections.labels(model, reason).inc()

    def set_events_dropped(self, total: int) -> None:
        """Bring the counter of lost evidence to `total`, which only grows."""
        self.events_dropped.inc(total - self._dropped)
        self._dropped = total

    def set_drift_untold(self, total: int) -> None:
        """Bring the counter of what the drift watch was not told of to `total`, which only grows."""
        self.drift_untold.inc(total - self._untold)
        self._untold = total

    def set_rejections_unkept(self, total: int) -> None:
        """Bring the counter of rejections that nothing holds to `total`, which only grows."""
        self.rejections_unkept.inc(total - self._unkept)
        self._unkept = total

    def rated(self, model: str, version: str, rating: str) -> None:
        """Count a vote on an answer of `version`."""
        self.feedback.labels(model, version, rating).inc()
        self._seen(model, version)

    def set_telemetry_dropped(self, totals: Mapping[str, int]) -> None:
        """Bring the counters of lost traces and log lines to these totals, which only grow."""
        for kind, total in totals.items():
            self.telemetry_dropped.labels(kind).inc(total - self._telemetry_dropped.get(kind, 0))
            self._telemetry_dropped[kind] = total

    def set_queue_depths(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set the waiting requests by (model, priority); series of other models are removed."""
        self.queue_depth.clear()
        for (model, priority), count in counts.items():
            self.queue_depth.labels(model, priority).set(count)

    def set_quotas(self, use: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """Set what is allowed and used by (namespace, limit); series of other namespaces are removed."""
        self.quota_limit.clear()
        self.quota_used.clear()
        for (namespace, limit), (allowed, used) in use.items():
            self.quota_limit.labels(namespace, limit).set(allowed)
            self.quota_used.labels(namespace, limit).set(used)

    def set_in_flight(self, counts: Iterable[tuple[str, str, int]]) -> None:
        """Set the answers under way by (model, version)."""
        for model, version, count in counts:
            self.in_flight.labels(model, version).set(count)

    def set_serving(self, endpoints: Mapping[tuple[str, str], int], *, lease_valid: bool) -> None:
        """Set the ready endpoints by (model, version), and whether a controller is heard; other series are removed."""
        self.endpoints_ready.clear()
        for (model, version), count in endpoints.items():
            self.endpoints_ready.labels(model, version).set(count)
        self.lease_valid.set(lease_valid)

    def set_revisions(self, revisions: Iterable[RevisionInfo]) -> None:
        """Say which revisions exist now; series of all others are removed."""
        revisions = list(revisions)
        self.revision_info.clear()
        for r in revisions:
            self.revision_info.labels(r.model, r.version, r.revision, r.role).set(1)
        gone = self._retired.keys() | self._revisions
        self._revisions = {(r.model, r.version) for r in revisions}
        self._remove(gone)

    def sweep(self, now: float) -> None:
        """Remove series of retired revisions that came back with a late answer, verdict or vote; call it now and then.

        A minute later, so that Prometheus has seen them: the next table, which removes them too, may be days away.
        """
        for key, since in self._retired.items():
            if since is None:
                self._retired[key] = now
        self._remove({k for k, since in self._retired.items() if since is not None and now - since >= LATE_SERIES_S})

    def _remove(self, gone: set[tuple[str, str]]) -> None:
        for model, version in gone - self._revisions:
            of_answers = (self.verdicts, self.feedback, self.answers_read, self.answer_signals)
            for metric in (self.retries, self.in_flight, self.mirrored, *of_answers):
                metric.remove_by_labels({"model": model, "version": version})
            self._finished.forget(model, version)
            self._read.pop((model, version), None)
        for model in {m for m, _ in gone} - {m for m, _ in self._revisions}:
            self.rejections.remove_by_labels({"model": model})
        for key in gone:
            self._retired.pop(key, None)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition in the format that an `Accept` header asks for: (body, content type)."""
        for (model, version), count in self._read.items():
            self.answers_read.labels(model, version).inc(count)
        self._read.clear()
        if asked_for(accept):
            families = [*_families(self.registry), *finished_families(self._finished.items(), PROVIDER)]
            return write(families), CONTENT_TYPE
        encode, content_type = choose_encoder(accept)
        end = b"# EOF\n" if content_type.startswith("application/openmetrics-text") else b""
        text = write_finished(self._finished.items(), PROVIDER, openmetrics=bool(end))
        return encode(self.registry).removesuffix(end) + text.encode() + end, content_type


def _families(registry: CollectorRegistry) -> list[Family]:
    """What the library's registry holds, for the protobuf format, which it can't write."""
    return [
        Family(
            f"{metric.name}_total" if metric.type == "counter" else metric.name,
            metric.documentation,
            FamilyType.COUNTER if metric.type == "counter" else FamilyType.GAUGE,
            [Series(s.labels, s.value) for s in metric.samples if not s.name.endswith("_created")],
        )
        for metric in registry.collect()
    ]


class RolloutInstruments:
    """The control plane's metrics. Read off the statuses at each scrape, so they can't disagree with them."""

    def render(
        self, rollouts: Iterable[RolloutMeasurement], rollbacks: Mapping[tuple[str, str], int], accept: str
    ) -> tuple[bytes, str]:
        """The exposition for these rollouts: (body, content type).

        Args:
            rollouts: one measurement per model.
            rollbacks: by (model, trigger), all since the event log began.
            accept: the `Accept` header.
        """
        shown = _RolloutGauges()
        for r in rollouts:
            shown.stands(r)
            shown.goes_on(r)
            for signal in r.signals:
                shown.says(r.model, r.version, signal)
        taken_back = Counter(
            "tidegate_rollbacks", "Rollbacks by why.", ("model", "trigger"), registry=shown.registry
        )  # fmt: skip
        for (model, trigger), count in rollbacks.items():
            taken_back.labels(model, trigger).inc(count)
        encode, content_type = choose_encoder(accept)
        return encode(shown.registry), content_type


class _RolloutGauges:
    """The gauges of one scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of_signal = ("model", "version", "signal")
        make = self._gauge
        self.info = make(
            "info", "1: the present rollout, or the last one.",
            "model", "model_namespace", "stable", "version", "strategy", "stage",
        )  # fmt: skip
        self.cause = make("cause_info", "1: what it waits for, or why it was taken back.", "model", "version", "cause")
        self.weight = make("weight_ratio", "The canary's part of new requests.", "model", "state")
        self.phase = make("phase", "1 for the phase in force.", "model", "phase")
        self.step = make("step", "The step of the strategy that it is at, from 1.", "model", "version")
        self.steps = make("steps", "How many steps there are.", "model", "version")
        self.exposed = make("exposed_requests", "Requests that have met the new version.", "model", "version")
        self.bound = make(
            "exposure_lower_bound", "The fewest requests with which its worst signal could be noticed.",
            "model", "version",
        )  # fmt: skip
        self.started = make("started_timestamp_seconds", "When it began.", "model", "version")
        self.finished = make("finished_timestamp_seconds", "When it ended.", "model", "version", "stage")
        self.verdict = make("signal_info", "1: what a signal says now.", *of_signal, "verdict")
        self.evidence = make("log_evidence", "ln W against the canary.", *of_signal)
        self.threshold = make("evidence_threshold", "ln W that rolls back.", *of_signal)
        self.forward = make("forward_log_evidence", "ln W for the canary.", *of_signal)
        self.forward_threshold = make("forward_evidence_threshold", "ln W that lets it go on.", *of_signal)
        self.wanted = make("requests_to_decision", "About how many more requests until a verdict.", *of_signal)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"tidegate_rollout_{name}", text, labels, registry=self.registry)

    def stands(self, r: RolloutMeasurement) -> None:
        """Which versions, and where."""
        self.info.labels(r.model, r.namespace, r.stable, r.version, r.strategy, r.stage).set(1)
        if r.cause:
            self.cause.labels(r.model, r.version, r.cause).set(1)
        for name in r.phases:
            self.phase.labels(r.model, name).set(name == r.phase)
        self.weight.labels(r.model, "desired").set(r.desired_weight_ratio)
        if r.observed_weight_ratio is not None:
            self.weight.labels(r.model, "observed").set(r.observed_weight_ratio)

    def goes_on(self, r: RolloutMeasurement) -> None:
        """How far it is, since when, and what it has cost."""
        if r.steps:
            self.step.labels(r.model, r.version).set(r.step)
            self.steps.labels(r.model, r.version).set(r.steps)
        if r.exposed is not None:
            self.exposed.labels(r.model, r.version).set(r.exposed)
        if r.lower_bound is not None:
            self.bound.labels(r.model, r.version).set(r.lower_bound)
        if r.started_at is not None:
            self.started.labels(r.model, r.version).set(r.started_at)
        if r.finished_at is not None:
            self.finished.labels(r.model, r.version, r.stage).set(r.finished_at)

    def says(self, model: str, version: str, signal: SignalMeasurement) -> None:
        """What one signal says."""
        named = (model, version, signal.name)
        self.verdict.labels(*named, signal.verdict).set(1)
        if signal.threshold > 0:
            self.evidence.labels(*named).set(signal.log_e)
            self.threshold.labels(*named).set(signal.threshold)
        if signal.forward_threshold > 0:
            self.forward.labels(*named).set(signal.forward_log_e)
            self.forward_threshold.labels(*named).set(signal.forward_threshold)
        if signal.requests_to_decision is not None:
            self.wanted.labels(*named).set(signal.requests_to_decision)


class GuardServiceInstruments:
    """The metrics of one replica of the guardrails' models."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tidegate_guard_service_requests", "Requests of gateways, by what became of them.", ("check", "result"),
            registry=self._registry,
        )  # fmt: skip
        self.texts = Counter(
            "tidegate_guard_service_texts", "Texts that a model examined.", ("check",), registry=self._registry
        )
        self.waiting = Gauge(
            "tidegate_guard_service_waiting_texts", "Texts that wait for their model.", ("check",),
            registry=self._registry,
        )  # fmt: skip
        self.duration = Histogram(
            "tidegate_guard_service_duration_seconds", "From a gateway's request to its answer.", ("check",),
            buckets=GUARD_SERVICE_BUCKETS_S, registry=self._registry,
        )  # fmt: skip

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition: (body, content type), for an `Accept` header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class DriftInstruments:
    """The drift watch's metrics. Read off its status at each scrape."""

    def render(
        self, detectors: Iterable[DriftMeasurement], requests: Mapping[tuple[str, str], int], dropped: int, accept: str
    ) -> tuple[bytes, str]:
        """The exposition: (body, content type).

        Args:
            detectors: every detector of every stream.
            requests: by (model, result), since the watch's start.
            dropped: sampled requests that it could not take.
            accept: the `Accept` header.
        """
        registry = CollectorRegistry()
        labels = ("model", "stream", "detector")
        statistic = Gauge("tidegate_drift_statistic", "Evidence of drift, or distance.", labels, registry=registry)
        threshold = Gauge("tidegate_drift_threshold", "At which the alarm is raised.", labels, registry=registry)
        active = Gauge("tidegate_drift_alarm_active", "1 while an alarm is in force.", labels, registry=registry)
        alarms = Counter("tidegate_drift_alarms", "Alarms that were raised.", labels, registry=registry)
        seen = Counter("tidegate_drift_requests", "Requests that the watch was told of.", ("model", "result"),
                       registry=registry)  # fmt: skip
        lost = Counter("tidegate_drift_dropped", "Requests that it was told of and could not take.", registry=registry)
        for d in detectors:
            named = (d.model, d.stream, d.detector)
            statistic.labels(*named).set(d.statistic)
            threshold.labels(*named).set(d.threshold)
            active.labels(*named).set(d.active)
            alarms.labels(*named).inc(d.alarms)
        for (model, result), count in requests.items():
            seen.labels(model, result).inc(count)
        lost.inc(dropped)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
