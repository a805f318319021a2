"""The models of other tools, case by case as their documentation and source have it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from benchmarks.exposure import argo, flagger, kayenta
from benchmarks.exposure.peers import Counts, End
from tests.unit.benchmarks_exposure.streams import BROKEN, PERFECT, seen


def counts(requests: int, errors: int = 0, findings: int = 0, slow: int = 0) -> Counts:
    latencies = np.array([0.9] * slow + [0.1] * (requests - slow))
    return Counts(requests, errors, findings, latencies)


# Argo Rollouts


@pytest.mark.parametrize(
    ("window", "holds"),
    [
        pytest.param(counts(100), True, id="nothing wrong"),
        pytest.param(counts(100, errors=5), True, id="95 of 100 is enough"),
        pytest.param(counts(100, errors=6), False, id="94 of 100 is not"),
        pytest.param(counts(100, findings=6), False, id="findings are held to the same rate"),
        pytest.param(counts(100, slow=1), True, id="one slow request of 100 is within the p99"),
        pytest.param(counts(100, slow=2), False, id="two are not"),
        pytest.param(counts(0), None, id="nothing to measure"),
    ],
)
def test_an_argo_measurement(window, holds):
    assert argo.measure(window, 0.5, argo.DOCUMENTED) is holds


@pytest.mark.parametrize(
    ("measurements", "aborted"),
    [
        pytest.param("fff", False, id="failureLimit 3 allows three failures"),
        pytest.param("ffff", True, id="the fourth aborts"),
        pytest.param("fsfssfsf", True, id="failures need not be consecutive"),
        pytest.param("eeee", False, id="four errors in a row are allowed"),
        pytest.param("eeeee", True, id="the fifth in a row aborts"),
        pytest.param("eeeeseeee", False, id="a measurement forgives errors"),
        pytest.param("ssssssssssss", False, id="success after success"),
    ],
)
def test_an_argo_analysis_run(measurements, aborted):
    meaning = {"s": True, "f": False, "e": None}
    analysis = argo.Analysis(argo.DOCUMENTED)
    assert [analysis.add(meaning[m]) for m in measurements][-1] is aborted


@pytest.mark.parametrize(
    ("fault", "config", "end", "minutes"),
    [
        pytest.param(BROKEN, argo.DOCUMENTED, End.ROLLED_BACK, 25, id="measured at 10, 15, 20 and 25 minutes"),
        pytest.param(BROKEN, argo.HELD, End.ROLLED_BACK, 20, id="at 10 %: an error at 0, then 5, 10, 15 and 20"),
        pytest.param(PERFECT, argo.DOCUMENTED, End.PROMOTED, 40, id="four pauses of ten minutes"),
        pytest.param(PERFECT, argo.HELD, End.RUNNING, 50, id="held at 10 %"),
    ],
)
def test_an_argo_rollout(fault, config, end, minutes):
    verdict = argo.argo(seen(fault, 3_000.0), config)
    assert (verdict.end, verdict.at_s / 60.0) == (end, minutes)


def test_argos_documented_weights_are_what_users_meet():
    world = seen(BROKEN, 3_000.0)
    outcome = world.outcome(argo.argo(world, argo.DOCUMENTED))
    assert outcome.exposure == pytest.approx(10.0 * (0.2 * 600 + 0.4 * 600 + 0.6 * 300), rel=0.01)


# Flagger


@pytest.mark.parametrize(
    ("window", "healthy"),
    [
        pytest.param(counts(100, errors=1), True, id="99 % is within the range"),
        pytest.param(counts(100, errors=2), False, id="98 % is not"),
        pytest.param(counts(99, errors=1), False, id="98.99 % is not"),
        pytest.param(counts(200, findings=3), False, id="findings are held to the same rate"),
        pytest.param(counts(100, slow=1), True, id="p99 at the limit"),
        pytest.param(counts(100, slow=2), False, id="p99 above it"),
        pytest.param(counts(0), False, id="no values found is a failed check"),
    ],
)
def test_a_flagger_check(window, healthy):
    assert flagger.check(window, flagger.DOCUMENTED) is healthy


@pytest.mark.parametrize(
    ("weight", "failed", "healthy", "end", "after"),
    [
        pytest.param(5, 0, True, End.RUNNING, (10, 0), id="a success raises the weight"),
        pytest.param(25, 3, False, End.RUNNING, (25, 4), id="a failure holds it and is counted"),
        pytest.param(25, 9, True, End.RUNNING, (30, 9), id="a success forgives nothing"),
        pytest.param(25, 9, False, End.RUNNING, (25, 10), id="the tenth failure waits for the next tick"),
        pytest.param(25, 10, True, End.ROLLED_BACK, (25, 10), id="which rolls back whatever it would have seen"),
        pytest.param(45, 0, True, End.RUNNING, (50, 0), id="up to maxWeight"),
        pytest.param(50, 0, True, End.PROMOTED, (50, 0), id="a success there promotes"),
    ],
)
def test_a_flagger_tick(weight, failed, healthy, end, after):
    state = flagger.State(weight, failed)
    assert flagger.tick(state, healthy, flagger.DOCUMENTED) is end
    assert (state.weight_percent, state.failed_checks) == after


@pytest.mark.parametrize(
    ("fault", "end", "minutes", "exposure"),
    [
        pytest.param(BROKEN, End.ROLLED_BACK, 11, 0.05 * 660 * 10, id="ten failures at 5 %, then one tick more"),
        pytest.param(PERFECT, End.PROMOTED, 10, (2.75 * 60 + 600) * 10, id="ten successes from 5 to 50 %, then all"),
    ],
)
def test_a_flagger_rollout(fault, end, minutes, exposure):
    world = seen(fault, 1_200.0)
    verdict = flagger.flagger(world)
    assert (verdict.end, verdict.at_s / 60.0) == (end, minutes)
    assert world.outcome(verdict).exposure == pytest.approx(exposure, rel=0.02)


# Kayenta


@pytest.mark.parametrize("ties", [False, True], ids=["without ties", "with ties"])
def test_the_rank_sum_statistic_is_that_of_scipy(ties):
    rng = np.random.default_rng(4)
    experiment, control = rng.normal(0.3, 1.0, 40), rng.normal(0.0, 1.0, 55)
    if ties:
        experiment, control = np.round(experiment), np.round(control)
    found = kayenta.wilcoxon_z(experiment, control, np.zeros(1))[0]
    p = mannwhitneyu(experiment, control, alternative="two-sided", method="asymptotic", use_continuity=True).pvalue
    assert 2.0 * norm.sf(abs(found)) == pytest.approx(p)


def test_the_estimate_is_the_median_of_all_differences():
    rng = np.random.default_rng(5)
    experiment, control = rng.normal(2.0, 1.0, 60), rng.normal(0.0, 1.0, 60)
    shift = kayenta.shift_where(experiment, control, 0.0)
    assert shift == pytest.approx(float(np.median(experiment[:, None] - control[None, :])), abs=0.01)


def test_the_lower_limit_lies_below_the_shift_and_falls_with_fewer_points():
    rng = np.random.default_rng(6)
    experiment, control = rng.normal(1.0, 1.0, 200), rng.normal(0.0, 1.0, 200)
    many = kayenta.shift_where(experiment, control, kayenta.Z)
    few = kayenta.shift_where(experiment[:20], control[:20], kayenta.Z)
    assert few < many < kayenta.shift_where(experiment, control, 0.0)


RAMP = np.arange(60, dtype=float)


@pytest.mark.parametrize(
    ("experiment", "control", "high"),
    [
        pytest.param(RAMP, RAMP, False, id="equal data pass"),
        pytest.param(RAMP + 100.0, RAMP, True, id="all above all"),
        pytest.param(RAMP - 100.0, RAMP, False, id="lower is not looked for"),
        pytest.param(RAMP + 3.0, RAMP, False, id="a shift within the noise"),
        pytest.param(np.zeros(60), np.zeros(60), False, id="no errors anywhere"),
        pytest.param(np.ones(60), np.zeros(60), True, id="always against never"),
        pytest.param(np.full(60, math.nan), RAMP, False, id="no data"),
        pytest.param(np.append(np.zeros(58), (1.0, 1.0)), np.zeros(60), False, id="two bad minutes of sixty"),
    ],
)
def test_what_the_judge_calls_high(experiment, control, high):
    assert kayenta.is_high(experiment, control) is high


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        pytest.param([1.0, 2.0, 3.0, math.nan], [1.0, 2.0, 3.0], id="NaN goes"),
        pytest.param([*range(100), 10_000], [*range(100)], id="far out goes"),
        pytest.param([*range(100), 150], [*range(100), 150], id="within three ranges stays"),
        pytest.param([math.nan], [], id="nothing is left"),
    ],
)
def test_outliers(values, kept):
    assert kayenta.without_outliers(np.array(values, dtype=float)).tolist() == kept


@pytest.mark.parametrize(
    ("total", "last", "end"),
    [
        pytest.param(100.0, False, End.RUNNING, id="good, and not the last run"),
        pytest.param(74.9, False, End.ROLLED_BACK, id="below marginal fails at once"),
        pytest.param(75.0, False, End.RUNNING, id="marginal goes on"),
        pytest.param(94.9, True, End.ROLLED_BACK, id="the last run must pass"),
        pytest.param(95.0, True, End.PROMOTED, id="at the passing score it does"),
    ],
)
def test_what_a_score_decides(total, last, end):
    assert kayenta.judge(total, last=last, config=kayenta.DOCUMENTED) is end


def test_one_bad_metric_of_three_is_below_marginal():
    assert kayenta.score([True, False, False]) == pytest.approx(66.7, abs=0.1)
    assert kayenta.score([False, False, False]) == 100.0


@pytest.mark.parametrize(
    ("fault", "config", "end", "minutes"),
    [
        pytest.param(BROKEN, kayenta.DOCUMENTED, End.ROLLED_BACK, 60, id="the first run fails"),
        pytest.param(PERFECT, kayenta.DOCUMENTED, End.PROMOTED, 180, id="three runs pass"),
        pytest.param(BROKEN, kayenta.SHORT, End.ROLLED_BACK, 10, id="short runs fail earlier"),
    ],
)
def test_a_kayenta_stage(fault, config, end, minutes):
    verdict = kayenta.kayenta(seen(fault, 10_800.0, rate=5.0), config)
    assert (verdict.end, verdict.at_s / 60.0) == (end, minutes)
