"""The panels that tell of a rollout, shared by the overview and the dashboard of rollouts. Pure."""

from __future__ import annotations

from monitoring.dashboards.panels import VARIABLE_MODEL as MODEL
from monitoring.dashboards.panels import Annotation, Column, Panel, Query, Shape, Unit, with_role
from monitoring.dashboards.words import CAUSES, PHASES, STAGES
from monitoring.dashboards.words import VERDICTS as VERDICT_WORDS

TO_RED = ((None, "green"), (0.5, "yellow"), (1.0, "red"))
TO_GREEN = ((None, "text"), (1.0, "green"))
ONE_ROLLOUT = "/d/tidegate-rollout?${__url_time_range}&${datasource:queryparam}&var-model=${__value.raw}"

_OF_SIGNAL = "model, version, signal"


def _latest(name: str, *labels: str) -> str:
    """A control plane's gauge; two controllers tell the same, so one of them is taken."""
    return f"max by ({', '.join(('model', *labels))}) (tidegate_rollout_{name}{{{MODEL}}})"


def _share(evidence: str, threshold: str, matchers: str = "") -> str:
    told = f"max by ({_OF_SIGNAL}) (tidegate_rollout_{evidence}{{{MODEL}{matchers}}})"
    return f"{told} / max by ({_OF_SIGNAL}) (tidegate_rollout_{threshold})"


def share_of_threshold(matchers: str = "") -> str:
    """Evidence against the canary, of what takes it back."""
    return _share("log_evidence", "evidence_threshold", matchers)


ROLLOUTS = Panel(
    "Rollouts, one line for each model",
    "What is rolling out now, or did last; what it waits for, or why it was taken back. A click on the model opens its "
    "rollout; `tidegate rollout explain MODEL` tells the whole story.",
    (
        Query(_latest("info", "model_namespace", "stable", "version", "strategy", "stage"), ""),
        Query(f"{_latest('phase', 'phase')} == 1", ""),
        Query(_latest("cause_info", "cause"), ""),
        Query(f'max by (model) (tidegate_rollout_weight_ratio{{{MODEL},state="desired"}})', ""),
        Query(_latest("step"), ""),
        Query(_latest("steps"), ""),
        Query(f"1000 * {_latest('started_timestamp_seconds')}", ""),
    ),
    Shape.TABLE, width=24, height=6,
    columns=(
        Column("model_namespace", "Namespace"), Column("model", "Model", link=ONE_ROLLOUT),
        Column("phase", "Phase", words=PHASES),
        Column("stable", "Stable version"), Column("version", "New version"),
        Column("stage", "The new version", words=STAGES), Column("Value #D", "Its part of traffic", Unit.RATIO),
        Column("Value #E", "Step"), Column("Value #F", "of"), Column("cause", "Why", words=CAUSES),
        Column("strategy", "Strategy"), Column("Value #G", "Began", Unit.AGE),
    ),
)  # fmt: skip
WEIGHT = Panel(
    "Canary's part of new requests",
    "Decided, and confirmed by every gateway. No observed line: a gateway does not follow.",
    (Query(f"max by (model, state) (tidegate_rollout_weight_ratio{{{MODEL}}})", "{{model}} {{state}}"),),
    unit=Unit.RATIO, most=1.0, width=16,
)  # fmt: skip
EXPOSURE = Panel(
    "Requests that met the new version",
    "Since the rollout began, beside the fewest with which the worst failure could have been noticed at all.",
    (Query(_latest("exposed_requests", "version"), "{{model}} {{version}} met it"),
     Query(_latest("exposure_lower_bound", "version"), "{{model}} {{version}} fewest possible")),
    Shape.STAT, width=6, height=8,
)  # fmt: skip
READY = Panel(
    "Ready endpoints of stable", "At the gateway that has fewest.",
    (Query(f"min by (model, version) ({with_role(f'tidegate_endpoints_ready{{{MODEL}}}', 'stable')})",
           "{{model}} {{version}}"),),
    Shape.STAT, width=6, height=5, steps=((None, "red"), (1.0, "green")),
)  # fmt: skip
EVIDENCE = Panel(
    "Evidence against the new version, by signal",
    "At 100 % the version is taken back by itself; a healthy one gets there with the probability that the rollout "
    "allows (alpha), however long one looks. At 0 nothing speaks against it. (ln W over its threshold.)",
    (Query(share_of_threshold(), "{{model}} {{version}} {{signal}}"),),
    Shape.BARS, Unit.RATIO, 10, 8, TO_RED, 1.0, links=(("the rollout from near", "tidegate-rollout"),),
)  # fmt: skip
VERDICTS = Panel(
    "Verdicts, by signal",
    "What each signal says now. A step goes on when every signal that must pass has 100 % for the version; one signal "
    "with 100 % against it takes it back.",
    (
        Query(_latest("signal_info", "version", "signal", "verdict"), ""),
        Query(share_of_threshold(), ""),
        Query(_share("forward_log_evidence", "forward_evidence_threshold"), ""),
        Query(_latest("requests_to_decision", "version", "signal"), ""),
    ),
    Shape.TABLE, width=14, height=8,
    columns=(
        Column("model", "Model"), Column("version", "Version"), Column("signal", "Signal"),
        Column("verdict", "Verdict", words=VERDICT_WORDS), Column("Value #B", "Against it", Unit.RATIO, steps=TO_RED),
        Column("Value #C", "For it", Unit.RATIO, steps=TO_GREEN), Column("Value #D", "About so many more requests"),
    ),
)  # fmt: skip
EVIDENCE_OVER_TIME = Panel(
    "Evidence against the new version, over time", EVIDENCE.text,
    (Query(share_of_threshold(), "{{model}} {{version}} {{signal}}"),), unit=Unit.RATIO, width=16, height=9,
    steps=((None, "green"), (1.0, "red")),
)  # fmt: skip
ROLLBACKS = Panel(
    "Rollbacks by why", "Since the event log began. A rollback by itself is a ticket, no emergency: stable serves.",
    (Query(f"max by (model, trigger) (tidegate_rollbacks_total{{{MODEL}}})", "{{model}} {{trigger}}"),),
    Shape.STAT, width=6, height=8,
)  # fmt: skip


def _ended(stages: str) -> str:
    ended = f'tidegate_rollout_finished_timestamp_seconds{{{MODEL},stage=~"{stages}"}}'
    return f"1000 * max by (model, version) ({ended})"


EVENTS = (
    Annotation("Rollout began", f"1000 * {_latest('started_timestamp_seconds', 'version')}", "blue",
               "{{model}}: {{version}} begins"),
    Annotation("Promoted", _ended("promoted"), "green", "{{model}}: {{version}} is promoted"),
    Annotation("Taken back", _ended("withdrawing|withdrawn"), "red", "{{model}}: {{version}} is taken back"),
)  # fmt: skip
"""What every graph of a version is marked with."""
