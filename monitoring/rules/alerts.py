"""Alert rules: who is told what, and where it says what to do. Pure.

A page is for what users feel now. A rollback that worked is a ticket: somebody should look at the version tomorrow.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.rules.recording import (
    REJECTIONS,
    bad_name,
    counted_name,
    slow_name,
    streams_name,
)
from monitoring.slo import WINDOW_NAMES, BurnAlert, ServiceLevels, Severity

AUTOMATIC_TRIGGERS = ("signal", "smoke", "never-ready", "engine-lost", "insufficient-evidence")
"""Why a version was taken back without anybody's command."""

STUCK_WINDOW = "2h"
"""Longer than any step or soak of the default plan; a plan with longer steps sees a ticket, which is what it is for."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert rule. `hold` is how long its expression must hold before it fires, in Prometheus' words."""

    name: str
    expr: str
    severity: Severity
    summary: str
    description: str
    hold: str = ""
    kind: str = ""
    """Told apart by this label where one alert has several rules."""


def _burning(alert: BurnAlert, ratio: tuple[str, str], traffic: str, objective: float, least: int) -> str:
    threshold = alert.threshold(objective)
    long, short = ratio
    return f"{long} > {threshold:g} and {short} > {threshold:g} and {traffic} * {alert.long_s} >= {least}"


def burn_alerts(levels: ServiceLevels) -> tuple[Alert, ...]:
    """The error budgets of availability and of the first token."""
    found = []
    ready, first = levels.availability, levels.first_token
    promised, in_time = f"{ready.objective * 100:g} %", f"{first.objective * 100:g} %"
    for alert in levels.burn_alerts:
        long, short = alert.long_s, alert.short_s
        kind = f"{alert.factor:g}x over {WINDOW_NAMES[long]}"
        speed = f"burns more than {alert.factor:g} times too fast, over {WINDOW_NAMES[long]} and {WINDOW_NAMES[short]}."
        bad = _burning(
            alert, (bad_name(long), bad_name(short)), counted_name(long), ready.objective, ready.least_requests
        )
        late = _burning(
            alert, (slow_name(long), slow_name(short)), streams_name(long), first.objective, first.least_requests
        )
        summary = "{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests"
        text = f"Answers are promised for {promised} of requests; the budget {speed}"
        found.append(Alert("TidegateAvailabilityBurn", bad, alert.severity, summary, text, kind=kind))
        summary = "{{ $labels.model }}: {{ $value | humanizePercentage }} of first tokens come late"
        text = f"First tokens within {first.within_s:g} s are promised for {in_time} of answers; the budget {speed}"
        found.append(Alert("TidegateFirstTokenBurn", late, alert.severity, summary, text, kind=kind))
    return tuple(found)


def serving_alerts() -> tuple[Alert, ...]:
    """Gateways, their endpoints and their queues."""
    stable = 'tidegate_revision_info{role="stable"}'
    return (
        Alert(
            "TidegateGatewayDown", 'up{job="tidegate-gateway"} == 0', Severity.PAGE,
            "the gateway at {{ $labels.instance }} does not answer",
            "Prometheus could not read its metrics for two minutes; its clients are probably not served.", "2m",
        ),
        Alert(
            "TidegateNoReadyEndpoint",
            "min by (instance, model, version) (tidegate_endpoints_ready) == 0 "
            f"and on (instance, model, version) {stable}",
            Severity.PAGE,
            "{{ $labels.model }}@{{ $labels.version }} has no ready endpoint",
            "The stable version can't serve at {{ $labels.instance }}: its requests are rejected.", "1m",
        ),
        Alert(
            "TidegateQueueShedding", "model:tidegate_shed:ratio_rate5m > 0.2", Severity.PAGE,
            "{{ $labels.model }} sheds {{ $value | humanizePercentage }} of its requests",
            "The engines can't take the load. Shed requests are in no service level, so nothing else says this.", "5m",
            "above 20 %",
        ),
        Alert(
            "TidegateQueueShedding", "model:tidegate_shed:ratio_rate5m > 0.01", Severity.TICKET,
            "{{ $labels.model }} sheds {{ $value | humanizePercentage }} of its requests",
            "The engines are at their limit; low priorities are shed first.", "15m", "above 1 %",
        ),
        Alert(
            "TidegateKeysUnavailable",
            f'sum by (instance) (rate({REJECTIONS}{{reason="keys_unavailable"}}[5m])) > 0', Severity.PAGE,
            "the gateway at {{ $labels.instance }} rejects requests since it has no API keys",
            "It has never reached the controller, or too long ago to trust what it knew.", "2m",
        ),
        Alert(
            "TidegateGatewayRefusing",
            "sum by (instance, reason) "
            f'(rate({REJECTIONS}{{reason=~"internal_error|too_many_connections"}}[5m])) > 0',
            Severity.PAGE,
            "the gateway at {{ $labels.instance }} refuses requests: {{ $labels.reason }}",
            "It failed itself, or has as many connections as it may: such requests belong to no model, so they are in "
            "no service level.", "2m",
        ),
    )  # fmt: skip


def rollout_alerts() -> tuple[Alert, ...]:
    """The control plane and its rollouts."""
    triggers = "|".join(AUTOMATIC_TRIGGERS)
    rollbacks = f'max by (model, trigger) (tidegate_rollbacks_total{{trigger=~"{triggers}"}}'
    progressing = 'tidegate_rollout_phase{phase="Progressing"}'
    desired, observed = (f'tidegate_rollout_weight_ratio{{state="{s}"}}' for s in ("desired", "observed"))
    return (
        Alert(
            "TidegateControlPlaneDown", 'up{job="tidegate-control"} == 0', Severity.TICKET,
            "the control plane at {{ $labels.instance }} does not answer",
            "Gateways go on serving; without it canaries get no traffic and nothing is rolled out or back.", "5m",
        ),
        Alert(
            "TidegateGatewayWithoutController", "tidegate_gateway_lease_valid == 0", Severity.TICKET,
            "the gateway at {{ $labels.instance }} hears no controller",
            "It serves with the last table, canaries without traffic, and keeps evidence while it has room.", "5m",
        ),
        Alert(
            "TidegateStaleTable", f"max by (model) ({desired}) unless on (model) {observed}", Severity.TICKET,
            "a gateway does not follow the traffic table of {{ $labels.model }}",
            "A table that was decided is not confirmed by every gateway for five minutes; the rollout holds.", "5m",
        ),
        Alert(
            "TidegateRolloutStuck",
            f"max by (model) (min_over_time({progressing}[{STUCK_WINDOW}])) == 1 "
            f"and on (model) {progressing} offset {STUCK_WINDOW} "
            f"and on (model) max by (model) (changes({desired}[{STUCK_WINDOW}])) == 0",
            Severity.TICKET,
            "the rollout of {{ $labels.model }} has not moved for two hours",
            "It is progressing, yet its weight did not change: too little traffic for a verdict, or it is held.", "5m",
        ),
        Alert(
            "TidegateRolloutWaiting", 'max by (model) (tidegate_rollout_phase{phase="Paused"}) == 1', Severity.TICKET,
            "the rollout of {{ $labels.model }} waits for somebody",
            "It is paused: the evidence did not suffice, its plan is done, or somebody paused it.", "30m",
        ),
        Alert(
            "TidegateRolledBack",
            f"{rollbacks}) - ({rollbacks} offset 15m) or 0 * {rollbacks})) > 0 "
            "and on () count(tidegate_rollout_phase offset 15m)",
            Severity.TICKET,
            "a version of {{ $labels.model }} was taken back by itself ({{ $labels.trigger }})",
            "It worked: stable serves. Look at the version; condemned ones can't be rolled out again without `ack`.",
        ),
        Alert(
            "TidegateEvidenceLost", "increase(tidegate_gateway_events_dropped_total[1h]) > 0", Severity.TICKET,
            "the gateway at {{ $labels.instance }} has lost evidence",
            "The controller was away for longer than the gateway could keep events; rollouts decide without them.",
        ),
        Alert(
            "TidegateTelemetryLost", "increase(tidegate_telemetry_dropped_total[1h]) > 0", Severity.TICKET,
            "the gateway at {{ $labels.instance }} has lost {{ $labels.kind }}",
            "The collector, or the log's writer, did not take what it was handed; requests were answered all the same.",
        ),
    )  # fmt: skip


def drift_alerts() -> tuple[Alert, ...]:
    """The drift watch."""
    active = 'max by (model, stream, detector) (tidegate_drift_alarm_active{detector%s"kernel_window"}) == 1'
    return (
        Alert(
            "TidegateInputDrift", active % "!=", Severity.PAGE,
            "requests to {{ $labels.model }} ({{ $labels.stream }}) are not what its reference is of",
            "The {{ $labels.detector }} detector has its alarm until somebody acknowledges it; at most one stream in a "
            "hundred of 10,000 requests gets there by chance.", kind="alarm",
        ),
        Alert(
            "TidegateInputDrift", active % "=", Severity.TICKET,
            "requests to {{ $labels.model }} ({{ $labels.stream }}) begin to look unlike its reference",
            "An early warning, wrong now and then: it ends by itself when the requests look as before.", "10m",
            "warning",
        ),
        Alert(
            "TidegateDriftWatchDown", 'up{job="tidegate-drift"} == 0', Severity.TICKET,
            "the drift watch at {{ $labels.instance }} does not answer",
            "Requests are served as ever; drift is not looked for, and signals named drift/... hold their rollouts.",
            "5m",
        ),
    )  # fmt: skip


def alert_rules(levels: ServiceLevels) -> tuple[Alert, ...]:
    """All alerts."""
    return (*burn_alerts(levels), *serving_alerts(), *rollout_alerts(), *drift_alerts())
