"""What gateways and workloads are told, for every strategy and every state."""

from __future__ import annotations

import pytest

from rollout.desired import desired_table, desired_workloads
from rollout.status import Leaving, ModelStatus, Retiring, Stage
from serving.traffic import Role
from tests.unit.rollout.positions import CANARY, NEXT, OLDER, STABLE, sized, starting, status

TESTERS = [{"header": "X-Beta", "value": "1"}, {"key": "abcdefgh1234"}]
BLUE_GREEN = {"blueGreen": {"testers": TESTERS}}
SHADOW = {"shadow": {"mirrorPercent": 20}}
CANARY_TESTED = {"canary": {"testers": TESTERS}}


def traffic(where):
    table = desired_table([where], fence=3, sequence=7, now=5.0)
    return table.model("chat")


def weights(told):
    return {r.version: r.weight for r in told.revisions}


LEFT = Leaving(deployed=OLDER, weight=30, since=1.0)

# name -> (status, weights, rollout, mirror percent, watch, testers)
TABLE = {
    "starting": (starting(strategy=CANARY_TESTED), {"1.0.0": 100, "1.0.1": 0}, None, 0, False, 0),
    "a step": (status(strategy=CANARY_TESTED), {"1.0.0": 90, "1.0.1": 10}, "r", 0, False, 2),
    "soaking": (status(Stage.SOAKING, 1, 80), {"1.0.0": 20, "1.0.1": 80}, "r", 0, False, 0),
    "an A/B split": (
        status(weight=40, strategy={"ab": {"weight": 40}}), {"1.0.0": 60, "1.0.1": 40}, "r", 0, False, 0),
    "a preview": (
        status(Stage.PREVIEWING, 0, 0, strategy=BLUE_GREEN), {"1.0.0": 100, "1.0.1": 0}, "r", 0, True, 2),
    "a shadow": (
        status(Stage.MIRRORING, 0, 0, strategy=SHADOW, told={"mirror_percent": 20}),
        {"1.0.0": 100, "1.0.1": 0}, "r", 20, False, 0),
    "a shadow that has not begun": (starting(strategy=SHADOW), {"1.0.0": 100, "1.0.1": 0}, None, 0, False, 0),
    "switched and watched": (
        status(Stage.PROMOTED, 0, 100, stable=CANARY, strategy=BLUE_GREEN, told={"watch_until": 9.0}),
        {"1.0.1": 100}, "r", 0, True, 0),
    "promoted": (status(Stage.PROMOTED, 0, 100, stable=CANARY), {"1.0.1": 100}, None, 0, False, 0),
    "withdrawn": (status(Stage.WITHDRAWN, 0, 0), {"1.0.0": 100}, None, 0, False, 0),
    "still leaving": (
        status(Stage.WITHDRAWING, 0, 30, beside={"leaving": LEFT}), {"1.0.0": 70, "0.9.0": 30}, None, 0, False, 0),
    "a new version starts while another is leaving": (
        starting(beside={"leaving": LEFT}), {"1.0.0": 70, "0.9.0": 30}, None, 0, False, 0),
    "a first version": (starting(stable=None), {"1.0.1": 100}, None, 0, False, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_the_table_says_who_gets_what(case):
    where, expected, rollout, mirror, watch, testers = TABLE[case]
    told = traffic(where)
    assert weights(told) == expected
    assert (told.rollout, told.mirror_percent, told.watch, len(told.testers)) == (rollout, mirror, watch, testers)


def of(namespace, deployed):
    return deployed.model_copy(update={"namespace": namespace})


def comes_from(namespace, where):
    rollout = where.rollout.model_copy(update={"target": of(namespace, CANARY)})
    return where.model_copy(update={"rollout": rollout})


# name -> (status, whose model the gateways are told that it is)
OWNERS = {
    "outside a cluster": (status(), ""),
    "what serves": (status(stable=of("shop", STABLE)), "shop"),
    "what comes, while nothing serves": (comes_from("shop", starting(stable=None)), "shop"),
    "what serves, while another's comes": (comes_from("bank", starting(stable=of("shop", STABLE))), "shop"),
}


@pytest.mark.parametrize("case", OWNERS)
def test_the_table_says_whose_model_it_is_and_nothing_outside_a_cluster(case):
    where, namespace = OWNERS[case]
    told = traffic(where)
    assert told.namespace == where.namespace == namespace
    assert ("namespace" in told.model_dump_json()) is bool(namespace)  # no table of the local platform changes


def test_a_version_that_starts_while_another_is_leaving_is_known_to_the_gateways():
    # Otherwise no gateway could tell that it answers, and it would never become ready.
    told = traffic(starting(beside={"leaving": LEFT}))
    assert [d.version for d in told.drains] == ["1.0.1"]


def test_whatever_else_runs_may_end_its_answers():
    kept = Retiring(deployed=NEXT, since=1.0, deadline_at=2.0)
    told = traffic(status(beside={"previous": OLDER, "retiring": (kept,)}))
    assert {d.version for d in told.drains} == {"0.9.0", "1.0.2"}


def test_testers_are_told_in_the_words_of_the_wire():
    told = traffic(status(strategy=CANARY_TESTED))
    assert (told.testers[0].header, told.testers[0].value, told.testers[1].key) == ("x-beta", "1", "abcdefgh1234")


@pytest.mark.parametrize(("asked", "told"), [(None, 1.25), ("2.5", 2.5)])
def test_latency_is_measured_against_what_was_asked_for(asked, told):
    signal = {"name": "slow-tokens"} | ({"maxSlowdown": asked} if asked else {})
    where = status(analysis={"signals": [{"name": "error"}, signal]})
    assert traffic(where).max_slowdown == told


def test_a_model_that_serves_nothing_is_not_in_the_table():
    assert traffic(ModelStatus(model="chat")) is None


def replicas(where):
    return {w.revision.version: w.replicas for w in desired_workloads([where])}


REPLACE = {"engine": {"capacity": "replace", "minReplicas": 2}}
FOUR = sized(STABLE, 4)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        pytest.param(status(stable=FOUR), {"1.0.0": 4, "1.0.1": 1}, id="beside stable's"),
        pytest.param(starting(stable=FOUR, **REPLACE), {"1.0.0": 3, "1.0.1": 1}, id="in the place of one"),
        pytest.param(
            status(Stage.WITHDRAWN, 0, 0, stable=FOUR, **REPLACE), {"1.0.0": 4}, id="stable has its replicas again"),
        pytest.param(
            status(Stage.PROMOTED, 0, 100, stable=sized(CANARY, 4), beside={"previous": FOUR}, **REPLACE),
            {"1.0.1": 3, "1.0.0": 1}, id="one replica is kept warm for the way back"),
        pytest.param(
            status(Stage.PROMOTED, 0, 100, stable=sized(CANARY, 4), **REPLACE), {"1.0.1": 4},
            id="the rollback window is over"),
    ],
)  # fmt: skip
def test_replicas_come_from_where_the_spec_says(where, expected):
    assert replicas(where) == expected


def test_roles_are_stable_and_canary():
    told = traffic(status())
    assert told.by_role(Role.STABLE).version == "1.0.0"
    assert told.by_role(Role.CANARY).version == "1.0.1"
