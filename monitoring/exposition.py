"""Write the aggregates of finished requests as Prometheus' text, in the classic format or in OpenMetrics. Pure.

The formats differ in two things: OpenMetrics names a counter's family without `_total`, and has exemplars. Labels are
in the order of their names, as Prometheus' own clients write them. Native histograms can't be written as text; see
`protobuf`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from monitoring.aggregates import Histogram, OperationAggregates

Item = tuple[tuple[str, str, str], OperationAggregates]

Counts = dict[tuple[str, str, str, str], float]
"""By (name of the label, its value, model, version)."""

HISTOGRAMS: tuple[tuple[str, str, Callable[[OperationAggregates], list[tuple[str, str, Histogram]]]], ...] = (
    ("gen_ai_server_time_to_first_token_seconds", "From a request's arrival to its first output.",
     lambda c: [("", "", c.first_token)]),
    ("gen_ai_server_time_per_output_token_seconds", "Time per output token after the first.",
     lambda c: [("", "", c.per_token)]),
    ("gen_ai_server_request_duration_seconds", "From a request's arrival to the end of its answer.",
     lambda c: [("error_type", error, h) for error, h in c.durations.items()]),
    ("gen_ai_client_token_usage", "Tokens of a request, as the engine reported them.",
     lambda c: [("gen_ai_token_type", "input", c.input_tokens), ("gen_ai_token_type", "output", c.output_tokens)]),
)  # fmt: skip
"""Name, help, and for one operation of one version: a further label (or "") with its value, and the histogram."""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def write_finished(items: Sequence[Item], provider: str, *, openmetrics: bool) -> str:
    """All series of finished requests.

    Args:
        items: (model, version, operation) with what was counted.
        provider: The value of `gen_ai_provider_name`.
        openmetrics: Whether to write OpenMetrics.

    Returns:
        The families, without the final mark of OpenMetrics.
    """
    lines: list[str] = []
    for name, text, counts in counters(items):
        family = name if openmetrics else f"{name}_total"
        lines.append(f"# HELP {family} {text}\n# TYPE {family} counter\n")
        for (more, value, model, version), count in counts.items():
            where = f'{{{more}="{value}",model="{_escape(model)}",version="{_escape(version)}"}}'
            if more > "model":
                where = f'{{model="{_escape(model)}",{more}="{value}",version="{_escape(version)}"}}'
            lines.append(f"{name}_total{where} {float(count)!r}\n")
    for name, text, series in HISTOGRAMS:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} histogram\n")
        for (model, version, operation), counted in items:
            middle = f'gen_ai_operation_name="{operation}",gen_ai_provider_name="{provider}",'
            last = f'version="{_escape(version)}"'
            for more, value, histogram in series(counted):
                told = f'{more}="{value}",' if more else ""
                before, between = (told, "") if more < "gen_ai" else ("", told)
                where = f'model="{_escape(model)}",'
                _histogram(lines, name, f"{before}{middle}{between}", where, last, histogram, openmetrics)
    return "".join(lines)


def counters(items: Sequence[Item]) -> tuple[tuple[str, str, Counts], tuple[str, str, Counts]]:
    """Name without `_total`, help, and the counts, over all operations."""
    requests: Counts = {}
    tokens: Counts = {}
    for (model, version, _), counted in items:
        for outcome, count in counted.outcomes.items():
            key = ("outcome", outcome.value, model, version)
            requests[key] = requests.get(key, 0) + count
        for direction, histogram in (("input", counted.input_tokens), ("output", counted.output_tokens)):
            key = ("direction", direction, model, version)
            tokens[key] = tokens.get(key, 0.0) + histogram.total
    return (
        ("tidegate_requests", "Requests by how they ended.", requests),
        ("tidegate_tokens", "Tokens in and out, as the engine reported them.", tokens),
    )


def _histogram(lines: list[str], name: str, first: str, model: str, last: str, histogram: Histogram, om: bool) -> None:
    labels = f"{{{first}{model}{last}}}"
    exemplars = histogram.exemplars if om else None
    count = 0
    for place, (bound, count) in enumerate(histogram.cumulative()):
        le = "+Inf" if bound == float("inf") else repr(bound)
        seen = exemplars.get(place) if exemplars else None
        more = f' # {{trace_id="{seen.trace_id}"}} {seen.value!r} {seen.at:.3f}' if seen is not None else ""
        lines.append(f'{name}_bucket{{{first}le="{le}",{model}{last}}} {count}.0{more}\n')
    lines.append(f"{name}_count{labels} {count}.0\n{name}_sum{labels} {histogram.total!r}\n")


def _escape(value: str) -> str:
    return value.translate(_ESCAPES)
