"""How many series a gateway can make: what docs/monitoring.md promises."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from guardrails.verdicts import Verdict
from monitoring.instruments import GatewayInstruments, RolloutInstruments
from monitoring.measurements import (
    RequestMeasurement,
    RequestOutcome,
    RevisionInfo,
    RolloutMeasurement,
    SignalMeasurement,
)
from rollout.actions import Trigger
from rollout.status import Phase
from serving.admission import Reason
from serving.mirroring import MirrorResult
from serving.openai_protocol import Operation
from serving.outcomes import Cause

DOCUMENT = Path(__file__).resolve().parents[3] / "docs/monitoring.md"
ON_TEXT = ("length-stop", "repetition", "empty", "refusal", "language-mismatch", "invalid-json")
PRIORITIES = ("interactive", "standard", "batch")


CHECKS = 2


def filled(models: int, versions: int, operations: int) -> str:
    """The exposition of a gateway to which everything has happened that can."""
    instruments = GatewayInstruments()
    all_of = [(f"m{m}", f"{v}.0.0") for m in range(models) for v in range(versions)]
    instruments.set_revisions(RevisionInfo(m, v, f"{m}{v}", "stable") for m, v in all_of)
    for model, version in all_of:
        for operation in list(Operation)[:operations]:
            for outcome in RequestOutcome:
                instruments.record(RequestMeasurement(model, version, operation.value, outcome, 1.0, 0.1, 0.01, 9, 9))
        for check, verdict in itertools.product(range(CHECKS), Verdict):
            instruments.guardrail_verdicts(model, version, f"check-{check}", "output", verdict.value)
        for cause in Cause:
            instruments.retry(model, version, cause.value)
        for result in MirrorResult:
            instruments.mirrored_request(model, version, result.value)
        instruments.answer_read(model, version, ON_TEXT)
        for rating in ("up", "down"):
            instruments.rated(model, version, rating)
    for model in ["", *(f"m{m}" for m in range(models))]:
        for reason in Reason:
            instruments.rejected(model, reason.value)
    instruments.set_in_flight([(m, v, 1) for m, v in all_of])
    instruments.set_queue_depths({(f"m{m}", p): 1 for m in range(models) for p in PRIORITIES})
    instruments.set_quotas({})
    instruments.set_telemetry_dropped({"traces": 1, "request-log": 1})
    instruments.set_serving(dict.fromkeys(all_of, 1), lease_valid=True)
    return instruments.render("application/openmetrics-text")[0].decode()


def series(text: str) -> int:
    """What Prometheus stores of it: every line but comments."""
    return sum(not line.startswith("#") for line in text.splitlines() if line)


@pytest.mark.parametrize(("models", "versions", "operations"), [(1, 1, 1), (2, 3, 2), (3, 2, 5)])
def test_a_gateway_to_which_everything_happened_has_as_many_series_as_documented(
    models: int, versions: int, operations: int
) -> None:
    formula = re.search(r"`series <= (.+)`", DOCUMENT.read_text())
    assert formula is not None
    each, version, check, model, rest = (int(n) for n in re.findall(r"\d+", formula[1]))
    most = (each * operations + version + check * CHECKS) * models * versions + model * models + rest
    assert series(filled(models, versions, operations)) == most


@pytest.mark.parametrize(("models", "signals"), [(1, 1), (3, 4)])
def test_a_control_plane_has_at_most_as_many_series_as_documented(models: int, signals: int) -> None:
    formula = re.search(r"`M \* \((\d+) \+ (\d+) \* signals\)`", DOCUMENT.read_text())
    assert formula is not None
    said = tuple(SignalMeasurement(f"s{n}", "Running", 1.0, 2.0, 1.0, 2.0, 9) for n in range(signals))
    told = [
        RolloutMeasurement(
            f"m{n}", "1.1.0", "Progressing", tuple(Phase), 0.1, 0.1, said, "ns", "1.0.0", "canary", "stepping",
            "evidence", 1, 3, 10, 5, 1.0, 2.0,
        )
        for n in range(models)
    ]  # fmt: skip
    rollbacks = {(f"m{n}", trigger.value): 1 for n in range(models) for trigger in Trigger}
    text = RolloutInstruments().render(told, rollbacks, "application/openmetrics-text")[0].decode()
    assert series(text) == models * (int(formula[1]) + int(formula[2]) * signals)
