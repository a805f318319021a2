"""The status document that the control plane, the command line and the console show."""

from __future__ import annotations

import json

import pytest

from rollout.actions import Trigger
from rollout.decision import Cause, Decision
from rollout.observation import Comparison, Counts, SampleRatio, Similarity, SmokeResult, Verdict
from rollout.reports import measurement, report
from rollout.status import Leaving, ModelStatus, Phase, Stage
from rollout.workloads.base import WorkloadState
from tests.unit.rollout.positions import CANARY, FAILED, OLDER, SMOKE, STABLE, reading, seen, starting, status

PROMISED = {
    "model", "phase", "strategy", "stable", "canary", "weight", "step", "steps", "reason", "streams_in_flight",
    "signals", "exposure", "started_at", "updated_at", "actor",
}  # fmt: skip

BLUE_GREEN = {"blueGreen": {"smoke": SMOKE, "previewDuration": "1m"}}
SHADOW = {"shadow": {"mirrorPercent": 20, "duration": "1m"}}
AB = {"ab": {"weight": 40, "sessions": 500}}

# name -> (status, strategy, weights of the steps)
TABLE = {
    "canary": (status(), "canary", [10, 50]),
    "canary with a soak": (status(soak="3m"), "canary", [10, 50, 80, 90, 95]),
    "blue-green": (status(Stage.PREVIEWING, 0, 0, strategy=BLUE_GREEN), "blue-green", [0, 100]),
    "shadow": (status(Stage.MIRRORING, 0, 0, strategy=SHADOW), "shadow", [0]),
    "ab": (status(weight=40, strategy=AB), "ab", [40]),
}


@pytest.mark.parametrize("case", TABLE)
def test_it_has_what_is_promised_for_every_strategy_and_no_secret(case):
    where, strategy, weights = TABLE[case]
    told = report(where, seen(in_flight={CANARY.digest: 3}), None)
    assert told.keys() >= PROMISED
    assert (told["strategy"], told["canary"], told["stable"]) == (strategy, "1.0.1", "1.0.0")
    assert [s["weight"] for s in told["steps"]] == weights
    assert told["streams_in_flight"] == {"1.0.0": 0, "1.0.1": 3}
    assert "salt" not in json.dumps(told)


def test_a_model_without_any_rollout_is_told_too():
    told = report(ModelStatus(model="chat"), seen(), None)
    assert (told["strategy"], told["stable"], told["canary"], told["steps"]) == (None, None, None, [])


def test_evidence_is_told_in_numbers_and_in_words():
    found = Comparison(
        name="error", canary=Counts(events=2, n=100), stable=Counts(events=1, n=100), ratio=2.0, ratio_low=0.3,
        ratio_high=9.0, log_e=0.1,
    )  # fmt: skip
    told = report(
        status(weight=40, strategy=AB),
        seen(
            sample_ratio=SampleRatio(log_e=8.0, threshold=6.9, canary=9, stable=3),
            comparisons=(found,),
            similarity=Similarity(pairs=7, to_stable=0.5),
            smoke=SmokeResult(passed=True, ran=1),
            sessions=12,
            pairs=7,
        ),
        None,
    )
    assert told["sample_ratio"]["mismatched"] is True
    assert "2 times stable's rate" in told["comparisons"][0]["told"]
    assert "canary 1.0 % against stable 0.2 %" in told["signals"][0]["told"]
    assert (told["similarity"]["to_stable"], told["smoke"]["passed"], told["sessions"], told["pairs"]) == (
        0.5,
        True,
        12,
        7,
    )


def test_what_is_left_to_a_person_is_told():
    where = status(weight=40, strategy=AB, told={"paused": True, "at_end": True})
    waiting = Decision(cause=Cause.PAUSED, reason="waits for a person")
    told = report(where, seen(), waiting)
    assert (told["awaits"], told["waiting_for"], told["cause"]) == ("promote", "waits for a person", "paused")


def test_a_watch_and_the_ways_back_are_told():
    where = status(
        Stage.PROMOTED, 0, 100, stable=CANARY, told={"watch_until": 2600.0},
        beside={"previous": STABLE, "warm_until": 2600.0, "history": (CANARY, STABLE, OLDER)},
    )  # fmt: skip
    told = report(where, seen(), None)
    assert (told["watch"], told["previous"], told["kept"]) == ({"until": 2600.0}, "1.0.0", ["1.0.0", "0.9.0"])


def test_what_a_rollback_could_not_move_is_told_and_measured():
    there = {"leaving": Leaving(deployed=CANARY, weight=30, since=1000.0)}
    where = status(Stage.WITHDRAWING, 0, 30, beside=there)
    assert report(where, seen(), None)["leaving"] == {"version": "1.0.1", "weight": 30, "since": 1000.0}
    measured = measurement(where, seen())
    assert (measured.version, measured.desired_weight_ratio) == ("1.0.1", 0.3)


def test_a_weight_is_observed_only_once_every_gateway_follows():
    assert report(status(), seen(), None)["observed_weight"] == 10
    assert report(status(), seen(table_applied=False), None)["observed_weight"] is None
    assert report(starting(), seen(), None)["observed_weight"] == 0


def test_a_rollout_is_measured_with_its_versions_stage_step_and_what_it_waits_for():
    waiting = Decision(cause=Cause.EVIDENCE, reason="more")
    measured = measurement(status(), seen(), waiting)
    assert (measured.stable, measured.version, measured.strategy, measured.stage) == (
        "1.0.0", "1.0.1", "canary", "stepping",
    )  # fmt: skip
    assert (measured.step, measured.steps, measured.cause, measured.started_at) == (1, 2, "evidence", 1000.0)
    (signal,) = measured.signals
    assert (signal.name, signal.verdict, signal.log_e, signal.forward_threshold) == ("error", "Successful", 0.5, 3.0)


def test_after_a_rollback_its_evidence_and_why_are_still_measured():
    ended = status(Stage.WITHDRAWN, 0, 0, told={"finished_at": 1600.0}).model_copy(update={"phase": Phase.DEGRADED})
    measured = measurement(ended, seen(WorkloadState.READY, *FAILED), None, Trigger.SIGNAL)
    assert (measured.version, measured.stage, measured.cause, measured.step) == ("1.0.1", "withdrawn", "signal", 0)
    assert [(s.name, s.verdict) for s in measured.signals] == [("error", "Failed")]
    assert measured.finished_at == 1600.0


def test_after_a_promotion_no_evidence_is_measured_any_more():
    ended = status(Stage.PROMOTED, 1, 100, stable=CANARY).model_copy(update={"phase": Phase.HEALTHY})
    measured = measurement(ended, seen(), None)
    assert (measured.version, measured.stage, measured.signals, measured.exposed) == ("1.0.1", "promoted", (), None)


def test_of_a_watched_version_the_evidence_that_is_nearer_to_taking_it_back_is_measured():
    both = reading(Verdict.RUNNING, log_e=1.0, threshold=5.0, absolute_log_e=4.0, absolute_threshold=8.0)
    (signal,) = measurement(status(), seen(WorkloadState.READY, both)).signals
    assert (signal.log_e, signal.threshold) == (4.0, 8.0)


def test_a_gate_on_drift_is_measured_by_its_verdict_alone():
    gate = reading(Verdict.RUNNING, name="drift/input")
    (signal,) = measurement(status(), seen(WorkloadState.READY, gate)).signals
    assert (signal.verdict, signal.threshold, signal.forward_threshold) == ("Running", 0.0, 0.0)
