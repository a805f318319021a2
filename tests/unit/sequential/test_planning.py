"""Bounds, alpha's shares and the operator's estimate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from monitoring.sequential.forward import objective_log_e
from monitoring.sequential.planning import (
    Path,
    Standing,
    bernoulli_kl,
    least_canary_requests,
    requests_to_decision,
    share_alpha,
    smoothed_ratio,
)


@pytest.mark.parametrize(
    ("p0", "p1", "requests"), [(0.01, 0.05, 135.0), (0.01, 0.10, 41.1), (0.05, 0.10, 254.4), (0.01, 0.5, 4.41)]
)
def test_the_lower_bound_of_section_8(p0, p1, requests):
    assert least_canary_requests(p0, p1, 0.1, 0.01) == pytest.approx(requests, rel=2e-3)


def test_nothing_tells_equal_rates_apart():
    assert least_canary_requests(0.01, 0.01, 0.1, 0.01) == math.inf


@pytest.mark.parametrize(
    ("p", "r", "nats"), [(0.5, 0.5, 0.0), (0.5, 0.1, 0.5108), (0.0, 0.05, 0.0513), (0.1, 0.0, math.inf)]
)
def test_divergence_of_coins(p, r, nats):
    assert bernoulli_kl(p, r) == pytest.approx(nats, abs=1e-4)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"error": 1}, {"error": 0.01}),
        ({"error": 5, "a": 1, "b": 1}, {"error": 0.005, "a": 0.0025, "b": 0.0025}),
        ({"error": 1, "a": 1, "b": 3}, {"error": 0.005, "a": 0.00125, "b": 0.00375}),
        ({"a": 1, "b": 1}, {"a": 0.005, "b": 0.005}),
        ({}, {}),
    ],
)
def test_half_of_alpha_goes_to_error(weights, expected):
    shares = share_alpha(0.01, weights)
    assert shares == pytest.approx(expected)
    assert not shares or math.fsum(shares.values()) == pytest.approx(0.01)


def test_a_weight_of_nothing_is_refused():
    with pytest.raises(ValueError, match="leave the signal out"):
        share_alpha(0.01, {"error": 1, "a": 0})


@pytest.mark.parametrize(
    ("counts", "ratio"),
    [
        ((0, 0, 0, 0), 1.0),
        ((0, 100, 0, 900), 1.0),
        ((5, 0, 5, 900), 1.0),
        ((14, 280, 25, 2520), 4.91),
        ((3, 100, 0, 900), 31.0),
    ],
)
def test_the_ratio_is_smoothed_by_a_fair_part_of_an_event(counts, ratio):
    assert smoothed_ratio(*counts) == pytest.approx(ratio, rel=5e-3)


BAD = Standing(
    weight=0.1,
    canary_events=14,
    canary_units=280,
    stable_events=25,
    stable_units=2520,
    log_e=2.0,
    alpha=0.01,
    forward_log_e=-3.0,
    rho1=3.0,
)
CLEAN = replace(
    BAD, canary_events=0, canary_units=20, stable_events=0, stable_units=180, log_e=0.0, forward_log_e=0.0,
    objective_log_e=objective_log_e(20, 0, 0.05), p_max=0.05,
)  # fmt: skip


@pytest.mark.parametrize(
    ("standing", "requests", "path"),
    [
        pytest.param(BAD, 82, Path.ROLLBACK, id="worse"),
        pytest.param(replace(BAD, log_e=5.0), 0, Path.ROLLBACK, id="decided"),
        pytest.param(CLEAN, 41, Path.OBJECTIVE, id="faultless"),
        pytest.param(replace(CLEAN, objective_log_e=3.0), 0, Path.OBJECTIVE, id="passed"),
        pytest.param(
            replace(BAD, canary_events=3, log_e=-1.0, forward_log_e=1.0), 306, Path.NON_INFERIORITY, id="as-good"
        ),
    ],
)
def test_about_how_many_more_requests(standing, requests, path):
    estimate = requests_to_decision(standing)
    assert (estimate.requests, estimate.path) == (pytest.approx(requests, rel=0.02), path)


def test_when_this_weight_will_not_tell_it_says_so():
    no_events = replace(CLEAN, objective_log_e=None, p_max=None)
    estimate = requests_to_decision(no_events)
    assert estimate.requests is None
    assert "not at this weight" in estimate.reason
    far = requests_to_decision(replace(BAD, log_e=-4.0), longest=100)
    assert far.requests is None
    assert "limit 100" in far.reason
    nothing = requests_to_decision(replace(no_events, canary_units=0, stable_units=0))
    assert "no canary request" in nothing.reason
