"""Service levels: what counts, which promises can be measured, when an alert fires."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from monitoring.aggregates import FIRST_TOKEN_BUCKETS_S
from monitoring.measurements import RequestOutcome
from monitoring.rules.recording import SHED_REASONS
from monitoring.slo import (
    BURN_ALERTS,
    OUTCOMES,
    Availability,
    BurnAlert,
    FirstToken,
    ServiceLevels,
    Severity,
    Treatment,
    burn_rate,
    fires,
)
from serving.admission import Reason

FAST, SLOW, TICKET = BURN_ALERTS


def test_every_outcome_that_exists_has_a_treatment() -> None:
    assert set(OUTCOMES) == set(RequestOutcome)


@pytest.mark.parametrize(
    ("outcome", "treatment"),
    [
        ("ok", Treatment.GOOD),
        ("error", Treatment.BAD),
        ("timeout", Treatment.BAD),
        ("retried", Treatment.EXCLUDED),
        ("client_error", Treatment.EXCLUDED),
        ("client_abort", Treatment.EXCLUDED),
        ("blocked", Treatment.EXCLUDED),
    ],
)
def test_an_outcome_counts_as(outcome: str, treatment: Treatment) -> None:
    good, bad = Availability().counts({outcome: 3}, {})
    assert (good, bad) == {Treatment.GOOD: (3, 0), Treatment.BAD: (0, 3), Treatment.EXCLUDED: (0, 0)}[treatment]


def test_a_model_without_endpoints_or_checks_is_bad_and_what_is_shed_or_the_callers_fault_is_not() -> None:
    rejected = {reason.value: 1 for reason in Reason}
    assert Availability().counts({}, rejected) == (0, 2)


def test_reasons_named_here_are_reasons_of_the_gateway() -> None:
    assert {*Availability().bad_rejections, *SHED_REASONS} <= {reason.value for reason in Reason}


def test_an_outcome_that_is_not_named_is_refused() -> None:
    with pytest.raises(ValidationError, match="timeout are not named"):
        Availability(outcomes={o: t for o, t in OUTCOMES.items() if o is not RequestOutcome.TIMEOUT})


def test_a_level_that_nothing_can_break_is_refused() -> None:
    with pytest.raises(ValidationError, match="no outcome is bad"):
        Availability(outcomes=dict.fromkeys(RequestOutcome, Treatment.GOOD))


@pytest.mark.parametrize("within_s", FIRST_TOKEN_BUCKETS_S)
def test_a_latency_objective_on_a_bound_is_accepted(within_s: float) -> None:
    assert float(FirstToken(within_s=within_s).bucket) == within_s


@pytest.mark.parametrize("within_s", [2.0, 0.3, 11.0, 0.0])
def test_a_latency_objective_between_bounds_is_refused_with_the_bounds(within_s: float) -> None:
    with pytest.raises(ValidationError, match=r"is no bound of the histogram.*2\.5, 5, 7\.5, 10"):
        FirstToken(within_s=within_s)


@pytest.mark.parametrize("objective", [0.0, 1.0, 99.9])
def test_an_objective_is_a_share_between_nothing_and_everything(objective: float) -> None:
    with pytest.raises(ValidationError):
        Availability(objective=objective)


@pytest.mark.parametrize(("long_s", "short_s"), [(3600, 3600), (300, 3600), (7200, 300)])
def test_windows_that_make_no_pair_or_are_not_recorded_are_refused(long_s: int, short_s: int) -> None:
    with pytest.raises(ValidationError):
        BurnAlert(factor=1, long_s=long_s, short_s=short_s, severity=Severity.PAGE)


def test_the_windows_are_those_of_the_workbook() -> None:
    assert [(a.factor, a.long_s, a.short_s, a.severity.value) for a in BURN_ALERTS] == [
        (14.4, 3600, 300, "page"),
        (6.0, 6 * 3600, 1800, "page"),
        (1.0, 3 * 86400, 6 * 3600, "ticket"),
    ]
    assert ServiceLevels().windows_s == (300, 1800, 3600, 21600, 259200)


@pytest.mark.parametrize(
    ("case", "long", "short", "fired"),
    [
        ("2 % bad in both windows", (9800, 200), (980, 20), True),
        ("just at the threshold", (98560, 1440), (98560, 1440), False),
        ("over already", (9800, 200), (1000, 0), False),
        ("a spike that does not matter yet", (99990, 10), (980, 20), False),
        ("too little traffic", (50, 49), (5, 4), False),
        ("nothing in the short window", (9800, 200), (0, 0), False),
    ],
)
def test_the_fast_page_fires(case: str, long: tuple[int, int], short: tuple[int, int], fired: bool) -> None:
    assert fires(FAST, 0.999, 100, long, short) is fired, case


def test_a_burn_rate_without_requests_is_unknown_and_not_zero() -> None:
    assert burn_rate(0, 0, 0.99) is None
    assert burn_rate(10, 0, 0.99) == 0.0


@given(good=st.integers(0, 10**6), bad=st.integers(0, 10**6), more=st.integers(1, 1000))
def test_more_bad_requests_never_lower_the_burn_rate(good: int, bad: int, more: int) -> None:
    before, after = burn_rate(good, bad, 0.999), burn_rate(good, bad + more, 0.999)
    assert after is not None
    assert before is None or after >= before


@given(good=st.integers(0, 10**5), bad=st.integers(0, 10**5))
def test_what_pages_on_the_fast_factor_is_above_every_slower_one(good: int, bad: int) -> None:
    window = (good, bad)
    if fires(FAST, 0.999, 1, window, window):
        assert fires(SLOW, 0.999, 1, window, window)
        assert fires(TICKET, 0.999, 1, window, window)
