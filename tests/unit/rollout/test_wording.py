"""How evidence is told to people."""

from __future__ import annotations

import math

import pytest

from rollout.observation import Comparison, Counts, SampleRatio, Similarity, Verdict
from rollout.wording import describe, describe_effect, describe_mismatch, describe_similarity, e_value, rate
from tests.unit.rollout.positions import reading

CANARY, STABLE = Counts(events=7, n=146), Counts(events=14, n=1270)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"verdict": Verdict.RUNNING, "requests_to_decision": 45, "forward_threshold": 0.0},
            "error: canary 4.8 % against stable 1.1 %, e = 37 of 100, n = 146, about 45 more requests",
        ),
        (
            {"verdict": Verdict.RUNNING, "forward_log_e": math.log(2.5), "forward_threshold": math.log(20)},
            "error: canary 4.8 % against stable 1.1 %, e = 37 of 100, n = 146, for it 2.5 of 20",
        ),
        ({"verdict": Verdict.SUCCESSFUL}, "error: canary 4.8 % against stable 1.1 %, e = 37 of 100, n = 146"),
        (
            {"verdict": Verdict.FAILED, "log_e": math.log(140)},
            "error: canary 4.8 % against stable 1.1 %, e = 140 of 100, n = 146",
        ),
        (
            {"verdict": Verdict.FAILED, "absolute_log_e": math.log(300), "absolute_threshold": math.log(200)},
            "error: 4.8 % of 146, above its objective, e = 300 of 200",
        ),
        (
            {"verdict": Verdict.ERROR, "error": "Prometheus does not answer"},
            "error: could not be measured (Prometheus does not answer)",
        ),
        (
            {
                "verdict": Verdict.PENDING,
                "canary": Counts(),
                "stable": Counts(),
                "log_e": 0.0,
                "forward_threshold": 0.0,
            },
            "error: canary of no request yet against stable of no request yet, e = 1 of 100, n = 0",
        ),
    ],
)
def test_a_signal_in_one_line(changes, told):
    base = {"canary": CANARY, "stable": STABLE, "log_e": math.log(37), "threshold": math.log(100)}
    assert describe(reading(**(base | changes))) == told


@pytest.mark.parametrize(
    ("log_e", "told"),
    [(0.0, "1"), (-3.0, "0.05"), (math.log(9.44), "9.4"), (math.log(1e6), "1000000"), (20.0, "e^20"), (900.0, "e^900"),
     (-900.0, "0")],
)  # fmt: skip
def test_an_e_value_is_a_number_up_to_a_million(log_e, told):
    assert e_value(log_e) == told


@pytest.mark.parametrize(("value", "told"), [(0.0, "0 %"), (0.00031, "0.031 %"), (0.048, "4.8 %"), (0.123, "12 %")])
def test_rates_have_as_many_digits_as_tell_something(value, told):
    assert rate(value) == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "error: canary 7 of 146 (4.8 %), stable 14 of 1270 (1.1 %), 4.3 times stable's rate (1.5 to 12), e = 37"),
        (
            {"ratio_low": None, "ratio_high": None},
            "error: canary 7 of 146 (4.8 %), stable 14 of 1270 (1.1 %), 4.3 times stable's rate (0 to any), e = 37",
        ),
        (
            {"ratio": None, "canary": Counts(), "stable": Counts()},
            "error: canary 0 of 0, stable 0 of 0, no effect can be told yet",
        ),
    ],
)
def test_an_effect_in_one_line(changes, told):
    base = {"name": "error", "canary": CANARY, "stable": STABLE, "ratio": 4.3, "ratio_low": 1.5, "ratio_high": 12.0,
            "log_e": math.log(37)}  # fmt: skip
    assert describe_effect(Comparison(**(base | changes))) == told


def test_a_mismatch_says_what_to_do():
    told = describe_mismatch(SampleRatio(log_e=8.0, threshold=6.9, canary=120, stable=90))
    assert "120 on the canary, 90 on stable, e = 2981 of 992" in told
    assert "by hand" in told


def test_likeness_is_told_beside_stables_own_and_not_at_all_when_unknown():
    assert describe_similarity(Similarity(pairs=9)) == ""
    assert describe_similarity(Similarity(pairs=9, to_stable=0.5)) == "; likeness to stable's answers 0.50 over 9 pairs"
