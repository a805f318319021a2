"""Write the aggregates of finished requests as Prometheus' text, in the classic format or in OpenMetrics. Pure.

Both formats differ here in one thing: OpenMetrics names a counter's family without `_total`. Labels are in the
order of their names, as Prometheus' own clients write them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from monitoring.aggregates import Histogram, OperationAggregates

Item = tuple[tuple[str, str, str], OperationAggregates]

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
    requests: dict[str, int] = {}
    tokens: dict[str, float] = {}
    for (model, version, _), counted in items:
        where = f'model="{_escape(model)}"', f'version="{_escape(version)}"'
        for outcome, count in counted.outcomes.items():
            labels = f'{{{where[0]},outcome="{outcome.value}",{where[1]}}}'
            requests[labels] = requests.get(labels, 0) + count
        for direction, histogram in (("input", counted.input_tokens), ("output", counted.output_tokens)):
            labels = f'{{direction="{direction}",{where[0]},{where[1]}}}'
            tokens[labels] = tokens.get(labels, 0.0) + histogram.total
    _counter(lines, "tidegate_requests", "Requests by how they ended.", requests, openmetrics)
    _counter(lines, "tidegate_tokens", "Tokens in and out, as the engine reported them.", tokens, openmetrics)
    families: tuple[tuple[str, str, Callable[[OperationAggregates], list[tuple[str, str, Histogram]]]], ...] = (
        ("gen_ai_server_time_to_first_token_seconds", "From a request's arrival to its first output.",
         lambda c: [("", "", c.first_token)]),
        ("gen_ai_server_time_per_output_token_seconds", "Time per output token after the first.",
         lambda c: [("", "", c.per_token)]),
        ("gen_ai_server_request_duration_seconds", "From a request's arrival to the end of its answer.",
         lambda c: [(f'error_type="{error}",', "", h) for error, h in c.durations.items()]),
        ("gen_ai_client_token_usage", "Tokens of a request, as the engine reported them.",
         lambda c: [("", 'gen_ai_token_type="input",', c.input_tokens),
                    ("", 'gen_ai_token_type="output",', c.output_tokens)]),
    )  # fmt: skip
    for name, text, series in families:
        lines.append(f"# HELP {name} {text}\n# TYPE {name} histogram\n")
        for (model, version, operation), counted in items:
            middle = f'gen_ai_operation_name="{operation}",gen_ai_provider_name="{provider}",'
            last = f'version="{_escape(version)}"'
            for before, between, histogram in series(counted):
                _histogram(lines, name, f"{before}{middle}{between}", f'model="{_escape(model)}",', last, histogram)
    return "".join(lines)


def _counter(lines: list[str], name: str, text: str, values: dict[str, int] | dict[str, float], om: bool) -> None:
    family = name if om else name + "_total"
    lines.append(f"# HELP {family} {text}\n# TYPE {family} counter\n")
    lines += [f"{name}_total{labels} {float(value)!r}\n" for labels, value in values.items()]


def _histogram(lines: list[str], name: str, first: str, model: str, last: str, histogram: Histogram) -> None:
    labels = f"{{{first}{model}{last}}}"
    count = 0
    for bound, count in histogram.cumulative():
        le = "+Inf" if bound == float("inf") else repr(bound)
        lines.append(f'{name}_bucket{{{first}le="{le}",{model}{last}}} {count}.0\n')
    lines.append(f"{name}_count{labels} {count}.0\n{name}_sum{labels} {histogram.total!r}\n")


def _escape(value: str) -> str:
    return value.translate(_ESCAPES)
