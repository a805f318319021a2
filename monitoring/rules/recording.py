"""Recording rules: the indicators that alerts and dashboards read, by model and by version. Pure.

Names follow Prometheus' practice, `level:metric:operations`. An indicator without a single bad event has no series for
it; `or 0 *` puts the zero there. Without traffic it is 0/0, which no comparison holds for.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.slo import WINDOW_NAMES, Availability, FirstToken, ServiceLevels, Treatment

REQUESTS = "tidegate_requests_total"
REJECTIONS = "tidegate_rejections_total"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"  # noqa: S105 - a token of text
PER_TOKEN = "gen_ai_server_time_per_output_token_seconds"  # noqa: S105
DURATION = "gen_ai_server_request_duration_seconds"
SHED_REASONS = ("queue_full", "overloaded", "deadline_unreachable")
"""Rejections by which the gateway sheds load."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One recording rule."""

    record: str
    expr: str


def one_of(values: tuple[str, ...]) -> str:
    """A regular expression that matches exactly these values, for a label matcher."""
    return "|".join(values)


def counted_name(window_s: int) -> str:
    """The recorded rate of requests that count for availability, per second and model."""
    return f"model:tidegate_requests_counted:rate{WINDOW_NAMES[window_s]}"


def bad_name(window_s: int) -> str:
    """The recorded share of bad requests, by model."""
    return f"model:tidegate_requests_bad:ratio_rate{WINDOW_NAMES[window_s]}"


def streams_name(window_s: int) -> str:
    """The recorded rate of answers that had a first token, per second and model."""
    return f"model:tidegate_first_tokens:rate{WINDOW_NAMES[window_s]}"


def slow_name(window_s: int) -> str:
    """The recorded share of them whose first token came late, by model."""
    return f"model:tidegate_first_tokens_slow:ratio_rate{WINDOW_NAMES[window_s]}"


def _availability(level: Availability, window_s: int) -> tuple[Recorded, ...]:
    window = WINDOW_NAMES[window_s]
    good, bad = (one_of(level.treated_as(t)) for t in (Treatment.GOOD, Treatment.BAD))
    rejected = f'rate({REJECTIONS}{{model!="",reason=~"{one_of(level.bad_rejections)}"}}[{window}])'
    failed = f'rate({REQUESTS}{{outcome=~"{bad}"}}[{window}])'
    failures = f"{failed} or {rejected}" if level.bad_rejections else failed
    counted = counted_name(window_s)
    return (
        Recorded(counted, f'sum by (model) (rate({REQUESTS}{{outcome=~"{good}"}}[{window}]) or {failures})'),
        Recorded(bad_name(window_s), f"(sum by (model) ({failures}) or 0 * {counted}) / {counted}"),
    )


def _first_token(level: FirstToken, window_s: int) -> tuple[Recorded, ...]:
    window = WINDOW_NAMES[window_s]
    streams = streams_name(window_s)
    in_time = f'sum by (model) (rate({FIRST_TOKEN}_bucket{{le="{level.bucket}"}}[{window}]))'
    return (
        Recorded(streams, f"sum by (model) (rate({FIRST_TOKEN}_count[{window}]))"),
        Recorded(slow_name(window_s), f"({streams} - {in_time}) / {streams}"),
    )


def _quantile(ratio: float, histogram: str) -> str:
    return f"histogram_quantile({ratio}, sum by (model, version, le) (rate({histogram}_bucket[5m])))"


def version_rules(level: Availability) -> tuple[Recorded, ...]:
    """What dashboards show of each version over five minutes; roles are joined there, since they change."""
    good, bad = (one_of(level.treated_as(t)) for t in (Treatment.GOOD, Treatment.BAD))
    counted = "model_version:tidegate_requests_counted:rate5m"
    failed = f'sum by (model, version) (rate({REQUESTS}{{outcome=~"{bad}"}}[5m]))'
    return (
        Recorded("model_version:tidegate_requests:rate5m", f"sum by (model, version) (rate({REQUESTS}[5m]))"),
        Recorded(counted, f'sum by (model, version) (rate({REQUESTS}{{outcome=~"{good}|{bad}"}}[5m]))'),
        Recorded("model_version:tidegate_requests_bad:ratio_rate5m", f"({failed} or 0 * {counted}) / {counted}"),
        Recorded("model_version:tidegate_first_token_seconds:p50_5m", _quantile(0.5, FIRST_TOKEN)),
        Recorded("model_version:tidegate_first_token_seconds:p95_5m", _quantile(0.95, FIRST_TOKEN)),
        Recorded("model_version:tidegate_per_token_seconds:p95_5m", _quantile(0.95, PER_TOKEN)),
        Recorded("model_version:tidegate_duration_seconds:p95_5m", _quantile(0.95, DURATION)),
        Recorded("model_version_direction:tidegate_tokens:rate5m",
                 "sum by (model, version, direction) (rate(tidegate_tokens_total[5m]))"),
        Recorded("model:tidegate_shed:ratio_rate5m", _shed()),
    )  # fmt: skip


def _shed() -> str:
    """Shed requests, of all that came for a model: those that an engine saw and those that were shed."""
    shed = f'sum by (model) (rate({REJECTIONS}{{model!="",reason=~"{one_of(SHED_REASONS)}"}}[5m]))'
    seen = f"sum by (model) (rate({REQUESTS}[5m]))"
    return f"({shed} or 0 * {seen}) / (({seen} or 0 * {shed}) + ({shed} or 0 * {seen}))"


def recording_rules(levels: ServiceLevels) -> tuple[Recorded, ...]:
    """All of them, each after what it reads."""
    windowed = (
        rule
        for window_s in levels.windows_s
        for rule in (*_availability(levels.availability, window_s), *_first_token(levels.first_token, window_s))
    )
    return (*windowed, *version_rules(levels.availability))
