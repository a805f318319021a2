"""A rollout with the signal `probe/bias` waits for the probes of its version, and for a person where they find gaps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout.bias_gate import bias_reasons, why_biased
from rollout.commands import Verb
from rollout.errors import InvalidSpec
from rollout.gates import Gate, gated
from rollout.observation import Verdict
from rollout.specs import parse_spec
from rollout.status import Phase
from tests.simulation.world import MODEL, World

GATED = {"analysis": {"signals": [{"name": "error"}, {"name": "probe/bias"}]}}
GAP = {"gender.refusal": 0.2}

Reports = dict[str, dict[str, float]]


@pytest.fixture
def world() -> Iterator[World]:
    made = World(seed=1)
    yield made
    made.close()


def gate(world: World, reports: Reports) -> Gate:
    return Gate(
        bias_reasons(lambda _model, version: reports.get(version)),
        source="probe",
        wanted=lambda: gated(world.controller.statuses, "probe"),
        sink=world.controller.on_measured,
        boot="b",
        clock=lambda: world.now,
    )


def advance(world: World, asked: Gate, seconds: float) -> None:
    for _ in range(int(seconds * 2)):
        world.run(asked.once())
        world.step(0.5, requests=20)


def said(world: World) -> str:
    (reading,) = [s for s in world.controller.observation(MODEL).signals if s.name == "probe/bias"]
    assert (reading.verdict is Verdict.ERROR) is bool(reading.error)
    return reading.error


def test_a_rollout_waits_for_the_probes_of_its_version_and_goes_on_when_they_find_nothing_new(world: World) -> None:
    reports: Reports = {"1.0.0": GAP}
    asked = gate(world, reports)
    world.first()
    world.deploy("1.0.1", **GATED)
    advance(world, asked, 30)
    assert world.status.phase is Phase.PROGRESSING
    assert "tidegate probe run" in said(world)
    reports["1.0.1"] = {"gender.refusal": 0.1}
    advance(world, asked, 60)
    assert world.status.phase is Phase.HEALTHY
    assert world.status.stable is not None
    assert world.status.stable.version == "1.0.1"


def test_a_new_gap_holds_it_until_somebody_promotes_and_never_takes_it_back(world: World) -> None:
    asked = gate(world, {"1.0.0": {}, "1.0.1": GAP})
    world.first()
    world.deploy("1.0.1", **GATED)
    advance(world, asked, 120)
    assert world.status.phase is Phase.PROGRESSING
    assert world.status.rollout is not None
    step = world.status.rollout.step
    assert "gender.refusal" in said(world)
    world.say(Verb.PROMOTE)
    assert world.status.rollout.step > step or world.status.phase is Phase.HEALTHY


@pytest.mark.parametrize(
    ("gaps", "of_stable", "waits"),
    [
        (None, {}, True),
        ({}, None, False),
        (GAP, None, True),
        (GAP, {}, True),
        (GAP, {"gender.refusal": 0.1}, False),
        (GAP, {"gender.refusal": -0.1}, True),
        (GAP, {"age.refusal": 0.1}, True),
    ],
)
def test_a_version_waits_when_it_was_not_probed_or_shows_what_stable_does_not(
    gaps: dict[str, float] | None, of_stable: dict[str, float] | None, waits: bool
) -> None:
    assert bool(why_biased("chat@1.0.1", gaps, of_stable)) is waits


def test_there_is_no_other_signal_of_probes() -> None:
    with pytest.raises(InvalidSpec, match="of probe there is probe/bias"):
        parse_spec({"model": "chat", "version": "1.0.0", "analysis": {"signals": [{"name": "probe/speed"}]}})
