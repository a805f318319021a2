"""A revision that has all traffic is judged by its own rate: against the limit, or what the old side showed before."""

from __future__ import annotations

import pytest

from monitoring.sequential.absolute import rate_upper_bound
from rollout.observation import Verdict
from serving.outcomes import Cause, Signal
from serving.traffic import Role
from tests.unit.rollout.evidence import CANARY, STABLE, event, increment, make, read, total

BLUE_GREEN = {"strategy": {"blueGreen": {}}}


def watched(*signals, weight=100, **changes):
    return make(*(signals or ({"name": Signal.ERROR},)), weight=weight, **(BLUE_GREEN | changes))


def units(admitted: int, settled: int | None = None, digest=CANARY, events=None, gateway="g", through=None):
    settled = admitted if settled is None else settled
    row = total(digest, settled=settled, admitted=admitted, events=events, weight=100)
    return increment(totals=(row,), settled_through=settled if through is None else through, gateway=gateway)


def then(ledger, events, *rows):
    """Events, and the totals that follow within a tenth of a second."""
    ledger.add(increment(*events))
    for row in rows:
        ledger.add(row)


def watched_event(sequence: int, admission: int | None = None, **changes):
    return event(sequence, weight=100, admission=admission or sequence, **changes)


def test_a_switch_to_a_version_that_fails_is_taken_back_by_its_own_rate():
    ledger = watched()
    then(ledger, (watched_event(i, 2 * i) for i in range(1, 11)), units(20, settled=0))
    found = read(ledger)
    assert found.verdict is Verdict.FAILED
    assert found.absolute_log_e >= found.absolute_threshold > 0.0
    assert found.log_e == 0.0, "nothing was compared"
    assert (found.canary.events, found.canary.n) == (10, 20)


def test_an_event_counts_the_moment_it_is_known_and_pending_units_count_as_quiet():
    early, late = watched(), watched()
    events = [watched_event(i, 2 * i) for i in range(1, 5)]
    then(early, events, units(20, settled=0))
    assert read(early).absolute_log_e > 1.0
    then(late, events, units(20, settled=0), units(20, settled=20, events={"error": 4}))
    assert read(late).absolute_log_e >= read(early).absolute_log_e - 1e-9


def test_units_that_totals_have_not_told_yet_are_bounded_by_the_admission_numbers():
    told, untold = watched(), watched()
    events = [watched_event(i, 280 + i) for i in range(1, 9)]
    then(told, events, units(288, settled=0))
    untold.add(units(10, settled=0))
    untold.add(increment(*events))
    assert read(untold).absolute_log_e <= read(told).absolute_log_e
    assert read(untold).canary.n >= 288


def test_the_old_sides_own_rate_is_what_the_new_one_may_have():
    events = [watched_event(i, 1_000 + 9 * i) for i in range(1, 101)]
    with_baseline, without = watched(), watched()
    with_baseline.add(units(1_000, digest=STABLE, events={"error": 100}))
    for ledger in (with_baseline, without):
        then(ledger, events, units(900, settled=0, through=1_000))
    assert read(without).verdict is Verdict.FAILED, "11 % against the objective of 5 %"
    assert read(with_baseline).verdict is Verdict.RUNNING, "11 % where it was 10 % before"


@pytest.mark.parametrize("signal", [Signal.CLIENT_ABORT, Signal.LENGTH_STOP, Signal.ENGINE_4XX])
@pytest.mark.parametrize(
    ("max_rate", "baseline", "judged"), [(None, False, False), (0.2, False, True), (None, True, True)]
)
def test_what_is_the_clients_doing_has_a_limit_only_when_there_is_one(signal, max_rate, baseline, judged):
    spec = {"name": signal} | ({} if max_rate is None else {"maxRate": max_rate})
    ledger = watched(spec)
    if baseline:
        ledger.add(units(500, digest=STABLE, events={signal.value: 50}))
    ledger.add(units(100, settled=0))
    ledger.add(increment(*(watched_event(i, signal=signal) for i in range(1, 91))))
    assert (read(ledger, signal).verdict is Verdict.FAILED) is judged


@pytest.mark.parametrize("signal", [Signal.SLOW_TOKENS, "score/nll"])
def test_latency_and_scores_have_no_absolute_limit(signal):
    ledger = watched({"name": signal})
    ledger.add(units(100, settled=0))
    more = {"score": 1.0} if signal == "score/nll" else {"level": "p99"}
    ledger.add(increment(*(watched_event(i, signal=signal, **more) for i in range(1, 50))))
    assert read(ledger, signal).absolute_threshold == 0.0
    assert read(ledger, signal).verdict is not Verdict.FAILED


def test_lost_connections_condemn_nobody_here_either():
    ledger = watched()
    ledger.add(units(100, settled=0))
    ledger.add(increment(*(watched_event(i, cause=Cause.ENDPOINT_LOST) for i in range(1, 60))))
    assert read(ledger).absolute_log_e <= 0.0


def test_one_session_that_always_fails_is_one_event():
    ledger = watched()
    ledger.add(units(100, settled=0))
    ledger.add(increment(*(watched_event(i, session="s") for i in range(1, 60))))
    assert read(ledger).canary.events == 1
    assert read(ledger).verdict is Verdict.RUNNING


def test_a_fault_after_a_long_healthy_watch_is_still_found():
    ledger = watched()
    ledger.add(units(50_000))
    fault = [watched_event(i, 50_000 + 2 * i) for i in range(1, 61)]
    found_after = None
    for e in fault:
        ledger.add(units(e.admission, settled=e.admission - 2, events={"error": e.sequence - 1}))
        ledger.add(increment(e))
        if read(ledger).verdict is Verdict.FAILED:
            found_after = e.admission - 50_000
            break
    assert found_after is not None, "half of all requests fail"
    assert found_after <= 60


def test_a_faultless_watched_revision_passes_by_its_objective_and_its_exposure_is_told():
    ledger = watched()
    ledger.add(units(64))
    assert read(ledger).verdict is Verdict.SUCCESSFUL
    assert ledger.exposure().canary_requests == 64


def test_how_many_requests_are_left_and_the_fewest_possible_are_told_while_watched():
    ledger = watched()
    then(ledger, (watched_event(i, 8 * i) for i in range(1, 13)), units(100, settled=0))
    found = read(ledger)
    assert found.verdict is Verdict.RUNNING
    assert 1 <= found.requests_to_decision <= 200
    assert 20 <= ledger.exposure().lower_bound <= 200


def test_a_first_deployment_without_any_stable_is_judged_too():
    ledger = make({"name": Signal.ERROR}, stable=None, weight=100, emergency=True)
    then(ledger, (watched_event(i, 2 * i) for i in range(1, 11)), units(20, settled=0))
    assert read(ledger).verdict is Verdict.FAILED


def test_events_of_the_old_side_are_no_evidence_against_the_new_one():
    ledger = watched()
    ledger.add(increment(*(watched_event(i, arm=Role.STABLE) for i in range(1, 40))))
    found = read(ledger)
    assert found.stable.events == 39
    assert found.absolute_log_e == 0.0
    assert found.verdict is Verdict.PENDING


def test_the_limit_is_frozen_at_the_switch():
    ledger = watched()
    ledger.add(units(1_000, digest=STABLE, events={"error": 10}))
    ledger.add(units(50, settled=0, through=1_000))
    before = read(ledger).absolute_log_e
    ledger.add(units(2_000, digest=STABLE, events={"error": 900}, through=1_000))
    assert read(ledger).absolute_log_e == before
    assert rate_upper_bound(10, 1_000, 0.001) < 0.05
