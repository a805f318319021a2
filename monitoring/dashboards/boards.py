"""What the dashboards for versions show: the overview for the person on call, rollouts, latency, safety. Pure.

The overview answers three questions from top to bottom: which version is rolling out, whether users feel it, and what
the evidence says.
"""

from __future__ import annotations

from dataclasses import replace

from monitoring.dashboards.panels import VARIABLE_MODEL as MODEL
from monitoring.dashboards.panels import Column, Dashboard, Panel, Query, Row, Shape, Unit, by_role
from monitoring.dashboards.rollouts import (
    EVENTS,
    EVIDENCE,
    EVIDENCE_OVER_TIME,
    EXPOSURE,
    READY,
    ROLLBACKS,
    ROLLOUTS,
    VERDICTS,
    WEIGHT,
    share_of_threshold,
)
from monitoring.dashboards.words import SEVERITIES
from monitoring.slo import ServiceLevels

GREEN_TO_RED = ((None, "green"), (0.5, "yellow"), (1.0, "red"))
LEVELS = ServiceLevels()
"""What is promised unless somebody exports the dashboards with promises of their own."""
_BAD_SHARE = round(1.0 - LEVELS.availability.objective, 9)
TROUBLE = ((None, "green"), (1.0, "red"))

ALERTS = Panel(
    "Alerts that fire", "A page is for what users feel now, a ticket can wait for the morning. A click on the name "
    "opens its runbook below the address at the top.",
    (Query('max by (alertname, severity, model) (ALERTS{alertname=~"Tidegate.*",alertstate="firing"})', ""),),
    Shape.TABLE, height=8,
    columns=(
        Column("severity", "Severity", words=SEVERITIES),
        Column("alertname", "Alert", link="${runbooks}/${__value.raw}.md"),
        Column("model", "Model"),
    ),
)  # fmt: skip
BAD = Panel(
    "Bad requests, stable against canary",
    "Errors and time-outs, of the requests that count, over 5 minutes. Above the line the promised share is broken.",
    by_role(f"model_version:tidegate_requests_bad:ratio_rate5m{{{MODEL}}}"), unit=Unit.RATIO, height=8,
    steps=((None, "green"), (_BAD_SHARE, "red")), links=(("latency and tokens", "tidegate-latency"),),
)  # fmt: skip
FIRST_TOKEN = Panel(
    "Time to first token, p95",
    "From a request's arrival at the gateway to its first output, of streams. What is promised is below the line.",
    by_role(f"model_version:tidegate_first_token_seconds:p95_5m{{{MODEL}}}"), unit=Unit.SECONDS, height=8,
    steps=((None, "green"), (LEVELS.first_token.within_s, "red")), links=(("latency and tokens", "tidegate-latency"),),
)  # fmt: skip

OVERVIEW = Dashboard(
    "tidegate-overview", "Tidegate / Overview",
    "For the person on call: which version is rolling out, whether users feel it, and what the evidence says.",
    (
        Row("Which version is rolling out", (ROLLOUTS, WEIGHT, replace(EXPOSURE, width=8, height=7))),
        Row("Do users feel it", (
            ALERTS, BAD, FIRST_TOKEN,
            Panel("Shed requests", "Of all that came, over 5 minutes: the engines were at their limit.",
                  (Query(f"model:tidegate_shed:ratio_rate5m{{{MODEL}}}", "{{model}}"),),
                  Shape.STAT, Unit.RATIO, 6, 5, ((None, "green"), (0.01, "yellow"), (0.2, "red"))),
            Panel("Requests per second", "Finished requests of every outcome, by version.",
                  by_role(f"model_version:tidegate_requests:rate5m{{{MODEL}}}"), Shape.STAT, Unit.PER_SECOND, 6, 5),
            READY,
            Panel("Gateways that hear a controller", "Without one the new version gets no traffic.",
                  (Query("sum(tidegate_gateway_lease_valid)", "hear one"),
                   Query("count(tidegate_gateway_lease_valid)", "gateways")),
                  Shape.STAT, width=6, height=5),
        )),
        Row("What the evidence says", (
            EVIDENCE, VERDICTS, replace(EVIDENCE_OVER_TIME, width=16, height=8), replace(ROLLBACKS, width=8),
        )),
    ),
    annotations=EVENTS, runbooks=True,
)  # fmt: skip

ROLLOUT = Dashboard(
    "tidegate-rollout", "Tidegate / Rollouts",
    "One rollout from near: its weight, its evidence over time, and how many requests it has cost.",
    (
        Row("Weight and phase", (
            ROLLOUTS, WEIGHT,
            Panel("Versions", "Which version is stable and which is the canary, as gateways have it.",
                  (Query(f'max by (model, version, role) (tidegate_revision_info{{{MODEL},role!="draining"}})',
                         "{{model}} {{role}}: {{version}}"),), Shape.NAMES),
        )),
        Row("Evidence", (
            EVIDENCE, VERDICTS, replace(EVIDENCE_OVER_TIME, width=16, height=9),
            Panel("ln W now", "The raw evidence against the canary, and at which it is taken back.",
                  (Query(f"max by (model, version, signal) (tidegate_rollout_log_evidence{{{MODEL}}})", ""),
                   Query(f"max by (model, version, signal) (tidegate_rollout_evidence_threshold{{{MODEL}}})", "")),
                  Shape.TABLE, height=9,
                  columns=(Column("version", "Version"), Column("signal", "Signal"), Column("Value #A", "ln W"),
                           Column("Value #B", "takes it back at"))),
        )),
        Row("Exposure", (
            EXPOSURE,
            Panel("Requests by version", "Per second, of every outcome.",
                  by_role(f"model_version:tidegate_requests:rate5m{{{MODEL}}}", others=True), unit=Unit.PER_SECOND,
                  width=9, height=8),
            Panel("Saved by stable", "Requests sent once more because the version failed before its first byte.",
                  (Query(f"sum by (model, version, cause) (rate(tidegate_retries_total{{{MODEL}}}[5m]))",
                         "{{version}} {{cause}}"),), unit=Unit.PER_SECOND, width=9, height=8),
            Panel("Mirrored copies", "By what became of them; they reach nobody and are in no other metric.",
                  (Query(f"sum by (model, version, result) (rate(tidegate_mirrored_requests_total{{{MODEL}}}[5m]))",
                         "{{version}} {{result}}"),), unit=Unit.PER_SECOND),
            Panel("Streams in flight", "Answers under way by version, so also of one that drains.",
                  (Query(f"sum by (model, version) (tidegate_streams_in_flight{{{MODEL}}})",
                         "{{model}} {{version}}"),)),
            Panel("Evidence lost", "Events that gateways had to drop since the controller was away.",
                  (Query("sum(increase(tidegate_gateway_events_dropped_total[$__range]))", "events"),), Shape.STAT,
                  steps=TROUBLE),
        )),
    ),
    annotations=EVENTS,
)  # fmt: skip


def _quantile(ratio: float, histogram: str) -> Panel:
    rate = f"sum by (model, version, le) (rate({histogram}_bucket{{{MODEL}}}[$__rate_interval]))"
    queries = by_role(f"histogram_quantile({ratio}, {rate})")
    return Panel(f"p{ratio * 100:g}", "Stable against canary.", queries, unit=Unit.SECONDS)


def _latency(title: str, histogram: str) -> Row:
    return Row(title, tuple(_quantile(ratio, histogram) for ratio in (0.5, 0.95, 0.99)))


LATENCY = Dashboard(
    "tidegate-latency", "Tidegate / Latency and tokens",
    "What clients felt, measured at the gateway; and what went in and out.",
    (
        _latency("Time to first token", "gen_ai_server_time_to_first_token_seconds"),
        _latency("Time per output token", "gen_ai_server_time_per_output_token_seconds"),
        _latency("Whole request", "gen_ai_server_request_duration_seconds"),
        Row("Requests and tokens", (
            Panel("Requests by outcome", "Per second.",
                  (Query(f"sum by (model, outcome) (rate(tidegate_requests_total{{{MODEL}}}[$__rate_interval]))",
                         "{{model}} {{outcome}}"),), unit=Unit.PER_SECOND),
            Panel("Rejected before any engine", "Per second and reason; model is empty when the request named none.",
                  (Query("sum by (model, reason) (rate(tidegate_rejections_total[$__rate_interval]))",
                         "{{model}} {{reason}}"),), unit=Unit.PER_SECOND),
            Panel("Tokens per second", "As engines report them.",
                  (Query(f"sum by (model, direction) (model_version_direction:tidegate_tokens:rate5m{{{MODEL}}})",
                         "{{model}} {{direction}}"),), unit=Unit.TOKENS_PER_SECOND),
        )),
    ),
    annotations=EVENTS,
)  # fmt: skip


def _mean_answer() -> str:
    parts = (
        f'sum by (model, version) (rate(gen_ai_client_token_usage_{end}{{{MODEL},gen_ai_token_type="output"}}[5m]))'
        for end in ("sum", "count")
    )
    return " / ".join(parts)


def _ended(outcome: str) -> tuple[Query, ...]:
    all_of = f"model_version:tidegate_requests:rate5m{{{MODEL}}}"
    ended = f'sum by (model, version) (rate(tidegate_requests_total{{{MODEL},outcome="{outcome}"}}[5m]))'
    return by_role(f"({ended} or 0 * {all_of}) / {all_of}")


def _shown(*signals: str) -> tuple[Query, ...]:
    all_of = f"sum by (model, version) (rate(tidegate_answers_read_total{{{MODEL}}}[5m]))"
    matchers = f'{MODEL},signal=~"{"|".join(signals)}"'
    showing = f"sum by (model, version) (rate(tidegate_answer_signals_total{{{matchers}}}[5m]))"
    return by_role(f"({showing} or 0 * {all_of}) / {all_of}")


ON_ANSWERS = "empty|length-stop|repetition|refusal|language-mismatch|invalid-json|score/.*|guardrail/.*"

QUALITY = Dashboard(
    "tidegate-quality", "Tidegate / Guardrails, drift and quality",
    "Whether what goes in and what comes out has changed, by version.",
    (
        Row("Guardrails", (
            Panel("Verdicts", "By check, direction and verdict.",
                  (Query("sum by (check, direction, verdict) "
                         f"(rate(tidegate_guardrail_verdicts_total{{{MODEL}}}[$__rate_interval]))",
                         "{{check}} {{direction}} {{verdict}}"),), unit=Unit.PER_SECOND, width=16),
            Panel("Blocked answers", "Per second, stable against canary.",
                  by_role("sum by (model, version) (rate(tidegate_guardrail_verdicts_total"
                          f'{{{MODEL},direction="output",verdict="block"}}[5m]))'), unit=Unit.PER_SECOND),
            Panel("Models' service: requests", "Of all gateways, by check and result; empty where models run in them.",
                  (Query("sum by (check, result) (rate(tidegate_guard_service_requests_total[$__rate_interval]))",
                         "{{check}} {{result}}"),), unit=Unit.PER_SECOND),
            Panel("Models' service: time to answer", "p99 by check; a gateway gives up after 5 s.",
                  (Query("histogram_quantile(0.99, sum by (check, le) "
                         "(rate(tidegate_guard_service_duration_seconds_bucket[$__rate_interval])))", "{{check}}"),),
                  unit=Unit.SECONDS),
            Panel("Models' service: waiting texts", "Above 1,024 of one check in one replica it refuses.",
                  (Query("max by (check) (tidegate_guard_service_waiting_texts)", "{{check}} waiting"),
                   Query("sum by (check) (rate(tidegate_guard_service_texts_total[$__rate_interval]))",
                         "{{check}} examined per second"))),
        )),
        Row("Drift", (
            Panel("Drift alarms in force",
                  "1 while a detector's alarm is on; `tidegate drift explain MODEL` says what changed.",
                  (Query(f"max by (model, stream, detector) (tidegate_drift_alarm_active{{{MODEL}}})",
                         "{{model}} {{stream}} {{detector}}"),),
                  Shape.STAT, steps=TROUBLE),
            Panel("Drift, of what raises the alarm",
                  "The statistic over its threshold: logarithms of evidence for the e-detectors, a distance for the "
                  "kernel window. At 1 the alarm is raised.",
                  (Query(f'ln(1 + tidegate_drift_statistic{{{MODEL},detector!="kernel_window"}}) '
                         "/ ln(tidegate_drift_threshold)", "{{model}} {{stream}} {{detector}}"),
                   Query(f'tidegate_drift_statistic{{{MODEL},detector="kernel_window"}} / tidegate_drift_threshold',
                         "{{model}} {{stream}} {{detector}}")), unit=Unit.RATIO, steps=GREEN_TO_RED),
            Panel("Drift alarms", "In the time range shown.",
                  (Query("sum by (model, stream, detector) "
                         f"(increase(tidegate_drift_alarms_total{{{MODEL}}}[$__range]))",
                         "{{model}} {{stream}} {{detector}}"),), Shape.STAT),
            Panel("Requests that the drift watch saw", "Per second: told of, embedded, without any text.",
                  (Query(f"sum by (model, result) (rate(tidegate_drift_requests_total{{{MODEL}}}[$__rate_interval]))",
                         "{{model}} {{result}}"),), unit=Unit.PER_SECOND, width=12),
            Panel("Requests that it missed", "Per second: sampled, and dropped since the watch was away or slow.",
                  (Query("sum(rate(tidegate_drift_untold_total[$__rate_interval]))", "not told by gateways"),
                   Query("sum(rate(tidegate_drift_dropped_total[$__rate_interval]))", "dropped by the watch")),
                  unit=Unit.PER_SECOND, width=12),
        )),
        Row("Quality", (
            Panel("Mean answer", "Output tokens per answer: a version that babbles or stops early is seen here first.",
                  by_role(_mean_answer())),
            Panel("Answers that decline", "Share of the answers that were looked at, stable against canary.",
                  _shown("refusal"), unit=Unit.RATIO),
            Panel("Empty, repetitive or broken answers",
                  "Share of the answers that were looked at: empty, looping, no JSON where it was asked for.",
                  _shown("empty", "repetition", "invalid-json"), unit=Unit.RATIO),
            Panel("Answers in another script", "Share of the answers that were looked at.",
                  _shown("language-mismatch"), unit=Unit.RATIO),
            Panel("Clients that left", "Share of requests whose client went away before the end.",
                  _ended("client_abort"), unit=Unit.RATIO),
            Panel("Evidence on answers", "Everything that is read off answers, of what takes the canary back.",
                  (Query(share_of_threshold(f',signal=~"{ON_ANSWERS}"'),
                         "{{version}} {{signal}}"),), unit=Unit.RATIO),
            Panel("Thumbs down", "Share of feedback, stable against canary.",
                  by_role(f'sum by (model, version) (rate(tidegate_feedback_total{{{MODEL},rating="down"}}[1h])) '
                          f"/ sum by (model, version) (rate(tidegate_feedback_total{{{MODEL}}}[1h]))"),
                  unit=Unit.RATIO),
        )),
    ),
    annotations=EVENTS,
)  # fmt: skip
