"""The gateway's Prometheus metrics; the only home of prometheus_client.

Names and labels are promises (docs: "Metrics"), bucket bounds are OpenTelemetry's for generative AI. Each gateway
has its own registry. Children are looked up once per label set and kept, since `labels()` costs more than counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase

from monitoring.measurements import RequestMeasurement, RequestOutcome, RevisionInfo, RolloutMeasurement

PROVIDER = "tidegate"

FIRST_TOKEN_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
DURATION_BUCKETS_S = tuple(0.01 * 2**i for i in range(14))
USAGE_BUCKETS_TOKENS = tuple(4**i for i in range(14))

_GEN_AI = ("model", "version", "gen_ai_operation_name", "gen_ai_provider_name")


class _Children:
    """The children of one (model, version, operation): looked up once."""

    __slots__ = ("duration", "first_token", "input_tokens", "outcomes", "output_tokens", "per_token", "usage_in",
                 "usage_out")  # fmt: skip

    def __init__(self, owner: GatewayInstruments, model: str, version: str, operation: str) -> None:
        labels = (model, version, operation, PROVIDER)
        self.first_token = owner.first_token.labels(*labels)
        self.per_token = owner.per_token.labels(*labels)
        self.usage_in = owner.usage.labels(*labels, "input")
        self.usage_out = owner.usage.labels(*labels, "output")
        self.input_tokens = owner.tokens.labels(model, version, "input")
        self.output_tokens = owner.tokens.labels(model, version, "output")
        self.outcomes: dict[RequestOutcome, Counter] = {}
        self.duration: dict[RequestOutcome, Histogram] = {}


class GatewayInstruments:
    """All metrics of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # What belongs to a version is made through _series, so that it goes when the revision retires.
        self._of_version: list[MetricWrapperBase] = []
        self.requests = self._counter("tidegate_requests", "Requests by how they ended.", "outcome")
        self.first_token = self._histogram(
            "gen_ai_server_time_to_first_token_seconds", "From a request's arrival to its first output.",
            _GEN_AI, FIRST_TOKEN_BUCKETS_S,
        )  # fmt: skip
        self.per_token = self._histogram(
            "gen_ai_server_time_per_output_token_seconds", "Time per output token after the first.",
            _GEN_AI, PER_TOKEN_BUCKETS_S,
        )  # fmt: skip
        self.duration = self._histogram(
            "gen_ai_server_request_duration_seconds", "From a request's arrival to the end of its answer.",
            (*_GEN_AI, "error_type"), DURATION_BUCKETS_S,
        )  # fmt: skip
        self.usage = self._histogram(
            "gen_ai_client_token_usage", "Tokens of a request, as the engine reported them.",
            (*_GEN_AI, "gen_ai_token_type"), USAGE_BUCKETS_TOKENS,
        )  # fmt: skip
        self.tokens = self._counter("tidegate_tokens", "Tokens in and out, as the engine reported them.", "direction")
        self.retries = self._counter("tidegate_retries", "Requests sent once more, by why.", "cause")
        self.in_flight = Gauge(
            "tidegate_streams_in_flight", "Answers under way.", ("model", "version"), registry=self.registry
        )
        self._of_version.append(self.in_flight)
        self.rejections = Counter(
            "tidegate_rejections", "Requests rejected before any engine saw them; model is empty when unknown.",
            ("model", "reason"), registry=self.registry,
        )  # fmt: skip
        self.revision_info = Gauge(
            "tidegate_revision_info", "1 for each revision and the role it has now.",
            ("model", "version", "revision", "role"), registry=self.registry,
        )  # fmt: skip
        self.events_dropped = Counter(
            "tidegate_gateway_events_dropped", "Evidence events lost because the controller was away too long.",
            registry=self.registry,
        )  # fmt: skip
        self._children: dict[tuple[str, str, str], _Children] = {}
        self._dropped = 0
        self._retired: set[tuple[str, str]] = set()
        self._revisions: set[tuple[str, str]] = set()

    def _counter(self, name: str, text: str, label: str) -> Counter:
        metric = Counter(name, text, ("model", "version", label), registry=self.registry)
        self._of_version.append(metric)
        return metric

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        metric = Histogram(name, text, labels, buckets=buckets, registry=self.registry)
        self._of_version.append(metric)
        return metric

    def record(self, m: RequestMeasurement) -> None:
        """Count one finished request."""
        children = self._children.get((m.model, m.version, m.operation))
        if children is None:
            children = _Children(self, m.model, m.version, m.operation)
            self._children[(m.model, m.version, m.operation)] = children
        count = children.outcomes.get(m.outcome)
        if count is None:
            count = children.outcomes[m.outcome] = self.requests.labels(m.model, m.version, m.outcome.value)
            error = "" if m.outcome in (RequestOutcome.OK, RequestOutcome.RETRIED) else m.outcome.value
            children.duration[m.outcome] = self.duration.labels(m.model, m.version, m.operation, PROVIDER, error)
        count.inc()
        children.duration[m.outcome].observe(m.duration_s)
        if m.first_token_s is not None:
            children.first_token.observe(m.first_token_s)
        if m.per_token_s is not None:
            children.per_token.observe(m.per_token_s)
        if m.input_tokens is not None:
            children.usage_in.observe(m.input_tokens)
            children.input_tokens.inc(m.input_tokens)
        if m.output_tokens is not None:
            children.usage_out.observe(m.output_tokens)
            children.output_tokens.inc(m.output_tokens)
        if (m.model, m.version) not in self._revisions:
            self._retired.add(
                (m.model, m.version)
            )  # it ended after its revision was retired: swept with the next table

    def retry(self, model: str, version: str, cause: str) -> None:
        """Count a request that was sent once more because `version` failed."""
        self.retries.labels(model, version, cause).inc()

    def rejected(self, model: str, reason: str) -> None:
        """Count a rejection; `model` must be "" unless the traffic table names it."""
        self.rejections.labels(model, reason).inc()

    def set_events_dropped(self, total: int) -> None:
        """Bring the counter of lost evidence to `total`, which only grows."""
        self.events_dropped.inc(total - self._dropped)
        self._dropped = total

    def set_in_flight(self, counts: Iterable[tuple[str, str, int]]) -> None:
        """Set the answers under way by (model, version)."""
        for model, version, count in counts:
            self.in_flight.labels(model, version).set(count)

    def set_revisions(self, revisions: Iterable[RevisionInfo]) -> None:
        """Say which revisions exist now; series of all others are removed."""
        revisions = list(revisions)
        self.revision_info.clear()
        for r in revisions:
            self.revision_info.labels(r.model, r.version, r.revision, r.role).set(1)
        current = {(r.model, r.version) for r in revisions}
        self._retired |= self._revisions
        for model, version in self._retired - current:
            for metric in self._of_version:
                metric.remove_by_labels({"model": model, "version": version})
            for key in [k for k in self._children if k[:2] == (model, version)]:
                del self._children[key]
        for model in {m for m, _ in self._retired} - {m for m, _ in current}:
            self.rejections.remove_by_labels({"model": model})
        self._retired.clear()
        self._revisions = current

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition in the format that an `Accept` header asks for: (body, content type)."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


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
        registry = CollectorRegistry()
        weight = Gauge(
            "tidegate_rollout_weight_ratio", "The canary's part of new requests.", ("model", "state"), registry=registry
        )
        phase = Gauge("tidegate_rollout_phase", "1 for the phase in force.", ("model", "phase"), registry=registry)
        labels = ("model", "version", "signal")
        evidence = Gauge("tidegate_rollout_log_evidence", "ln W against the canary.", labels, registry=registry)
        threshold = Gauge("tidegate_rollout_evidence_threshold", "ln W that rolls back.", labels, registry=registry)
        taken_back = Counter("tidegate_rollbacks", "Rollbacks by why.", ("model", "trigger"), registry=registry)
        for r in rollouts:
            weight.labels(r.model, "desired").set(r.desired_weight_ratio)
            if r.observed_weight_ratio is not None:
                weight.labels(r.model, "observed").set(r.observed_weight_ratio)
            for name in r.phases:
                phase.labels(r.model, name).set(name == r.phase)
            for signal, log_e, limit in r.signals:
                evidence.labels(r.model, r.version, signal).set(log_e)
                threshold.labels(r.model, r.version, signal).set(limit)
        for (model, trigger), count in rollbacks.items():
            taken_back.labels(model, trigger).inc(count)
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type
