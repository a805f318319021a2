"""Every metric that dashboards and rules may name: whose it is, its labels, and whether it is there yet. Pure.

A panel that needs a metric which is only promised is left out of the dashboards until the metric is exported; then
its line moves from `PROMISED` to `EXPORTED` and the panel appears with the next generation. A panel without data
teaches people not to look.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Source(enum.StrEnum):
    """Who exports it."""

    GATEWAY = "gateway"
    CONTROL = "control plane"
    DRIFT = "drift watch"
    GUARD = "guardrails' models"
    ENGINE = "vLLM"
    RAY = "Ray"
    GPU = "DCGM exporter"
    HOST = "node exporter"
    PROMETHEUS = "Prometheus"


class Kind(enum.StrEnum):
    """Prometheus' types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: its name as it is asked for (a histogram without `_bucket`)."""

    name: str
    kind: Kind
    source: Source
    labels: tuple[str, ...] = ()

    @property
    def series_names(self) -> tuple[str, ...]:
        """The names that series of it have."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{end}" for end in ("bucket", "count", "sum"))
        return (self.name,)


_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
_GEN_AI = ("model", "version", "gen_ai_operation_name", "gen_ai_provider_name")


def _gateway(name: str, kind: Kind, *labels: str) -> Metric:
    return Metric(name, kind, Source.GATEWAY, labels)


def _control(name: str, kind: Kind, *labels: str) -> Metric:
    return Metric(name, kind, Source.CONTROL, labels)


def _drift(name: str, kind: Kind, *labels: str) -> Metric:
    return Metric(name, kind, Source.DRIFT, labels)


def _guard(name: str, kind: Kind, *labels: str) -> Metric:
    return Metric(name, kind, Source.GUARD, labels)


EXPORTED = (
    _gateway("tidegate_requests_total", _C, "model", "version", "outcome"),
    _gateway("tidegate_tokens_total", _C, "model", "version", "direction"),
    _gateway("gen_ai_server_time_to_first_token_seconds", _H, *_GEN_AI),
    _gateway("gen_ai_server_time_per_output_token_seconds", _H, *_GEN_AI),
    _gateway("gen_ai_server_request_duration_seconds", _H, *_GEN_AI, "error_type"),
    _gateway("gen_ai_client_token_usage", _H, *_GEN_AI, "gen_ai_token_type"),
    _gateway("tidegate_retries_total", _C, "model", "version", "cause"),
    _gateway("tidegate_mirrored_requests_total", _C, "model", "version", "result"),
    _gateway("tidegate_guardrail_verdicts_total", _C, "model", "version", "check", "direction", "verdict"),
    _gateway("tidegate_rejections_total", _C, "model", "reason"),
    _gateway("tidegate_streams_in_flight", _G, "model", "version"),
    _gateway("tidegate_queue_depth", _G, "model", "priority"),
    _gateway("tidegate_quota_limit", _G, "key_namespace", "limit"),
    _gateway("tidegate_quota_used", _G, "key_namespace", "limit"),
    _gateway("tidegate_endpoints_ready", _G, "model", "version"),
    _gateway("tidegate_revision_info", _G, "model", "version", "revision", "role"),
    _gateway("tidegate_gateway_events_dropped_total", _C),
    _gateway("tidegate_telemetry_dropped_total", _C, "kind"),
    _gateway("tidegate_rejections_unkept_total", _C),
    _gateway("tidegate_feedback_total", _C, "model", "version", "rating"),
    _gateway("tidegate_gateway_lease_valid", _G),
    _control("tidegate_rollout_weight_ratio", _G, "model", "state"),
    _control("tidegate_rollout_phase", _G, "model", "phase"),
    _control("tidegate_rollout_log_evidence", _G, "model", "version", "signal"),
    _control("tidegate_rollout_evidence_threshold", _G, "model", "version", "signal"),
    _control("tidegate_rollout_info", _G, "model", "model_namespace", "stable", "version", "strategy", "stage"),
    _control("tidegate_rollout_cause_info", _G, "model", "version", "cause"),
    _control("tidegate_rollout_step", _G, "model", "version"),
    _control("tidegate_rollout_steps", _G, "model", "version"),
    _control("tidegate_rollout_exposed_requests", _G, "model", "version"),
    _control("tidegate_rollout_exposure_lower_bound", _G, "model", "version"),
    _control("tidegate_rollout_started_timestamp_seconds", _G, "model", "version"),
    _control("tidegate_rollout_finished_timestamp_seconds", _G, "model", "version", "stage"),
    _control("tidegate_rollout_signal_info", _G, "model", "version", "signal", "verdict"),
    _control("tidegate_rollout_forward_log_evidence", _G, "model", "version", "signal"),
    _control("tidegate_rollout_forward_evidence_threshold", _G, "model", "version", "signal"),
    _control("tidegate_rollout_requests_to_decision", _G, "model", "version", "signal"),
    _control("tidegate_rollbacks_total", _C, "model", "trigger"),
    _gateway("tidegate_answers_read_total", _C, "model", "version"),
    _gateway("tidegate_answer_signals_total", _C, "model", "version", "signal"),
    _gateway("tidegate_drift_untold_total", _C),
    _drift("tidegate_drift_statistic", _G, "model", "stream", "detector"),
    _drift("tidegate_drift_threshold", _G, "model", "stream", "detector"),
    _drift("tidegate_drift_alarm_active", _G, "model", "stream", "detector"),
    _drift("tidegate_drift_alarms_total", _C, "model", "stream", "detector"),
    _drift("tidegate_drift_requests_total", _C, "model", "result"),
    _drift("tidegate_drift_dropped_total", _C),
    _guard("tidegate_guard_service_requests_total", _C, "check", "result"),
    _guard("tidegate_guard_service_texts_total", _C, "check"),
    _guard("tidegate_guard_service_waiting_texts", _G, "check"),
    _guard("tidegate_guard_service_duration_seconds", _H, "check"),
)
"""What Tidegate exports now."""

PROMISED: tuple[Metric, ...] = ()
"""Names that docs/interface.md promises and nothing exports yet."""


def _foreign(source: Source, kind: Kind, *names: str) -> tuple[Metric, ...]:
    return tuple(Metric(name, kind, source) for name in names)


FOREIGN = (
    *_foreign(Source.ENGINE, _G, "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    *_foreign(Source.ENGINE, _C, "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total",
              "vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:num_preemptions_total"),
    *_foreign(Source.ENGINE, _H, "vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"),
    *_foreign(Source.RAY, _G, "ray_serve_deployment_replica_healthy", "ray_serve_autoscaling_target_replicas",
              "ray_node_mem_used", "ray_node_mem_total"),
    *_foreign(Source.RAY, _C, "ray_serve_deployment_replica_starts_total"),
    *_foreign(Source.GPU, _G, "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE",
              "DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_XID_ERRORS"),
    *_foreign(Source.HOST, _C, "node_cpu_seconds_total", "node_network_receive_bytes_total",
              "node_network_transmit_bytes_total"),
    *_foreign(Source.HOST, _G, "node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes", "node_load1",
              "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_hwmon_temp_celsius"),
    *_foreign(Source.PROMETHEUS, _G, "up", "ALERTS"),
)  # fmt: skip
"""What others export; Ray puts `ray_` before vLLM's names and `_` for the colon."""


def known_series(metrics: tuple[Metric, ...]) -> frozenset[str]:
    """The names of all series of these metrics."""
    return frozenset(name for metric in metrics for name in metric.series_names)
