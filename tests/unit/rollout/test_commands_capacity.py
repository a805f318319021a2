"""`scale` and `undeploy`: what they do to a status, and when they are refused."""

from __future__ import annotations

import pytest

from rollout.actions import Deployed
from rollout.commands import Command, Verb, scale, undeploy
from rollout.engine_specs import EngineSpec, WorkloadRef
from rollout.errors import CommandRefused
from rollout.status import Leaving, ModelStatus, Phase, RolloutState, Stage, apply
from tests.simulation.world import deployed, spec

STABLE, NEXT = deployed("1.0.0"), deployed("1.1.0")
THEIRS = Deployed(revision=STABLE.revision, engine=EngineSpec(workload_ref=WorkloadRef(name="chat")))


def state(stage: Stage = Stage.STEPPING) -> RolloutState:
    return RolloutState(
        id="r", spec=spec("1.1.0"), target=NEXT, salt="s", stage=stage, weight=10, started_at=0, step_started_at=0
    )


SERVING = ModelStatus(model="chat", stable=STABLE, history=(STABLE,))
ROLLING = SERVING.model_copy(update={"rollout": state()})
LEFT = SERVING.model_copy(update={"leaving": Leaving(deployed=NEXT, weight=5, since=0.0)})


def to(replicas: int | None, most: int | None = None) -> Command:
    return Command(verb=Verb.SCALE, actor="a", replicas=replicas, most=most)


def test_stable_gets_other_replicas_and_nothing_else_changes() -> None:
    after = apply(SERVING, scale(SERVING, to(3, 5)).actions, at=9.0, reason="r", actor="a")
    assert after.stable is not None
    assert (after.stable.replicas, after.stable.engine.min_replicas, after.stable.engine.max_replicas) == (3, 3, 5)
    assert after.stable.digest == STABLE.digest
    assert (after.reason, after.rollout) == (SERVING.reason, None), "the reason stays that of the rollout"


@pytest.mark.parametrize(
    ("status", "command", "why"),
    [
        (ModelStatus(model="chat"), to(2), "has no stable version"),
        (SERVING, to(None), "no number of replicas is given"),
        (SERVING, to(1), "has 1 replicas already"),
        (SERVING, to(4, 3), "at most 3 replicas is fewer than 4"),
        (ROLLING, to(2), "its replicas change when that has ended"),
        (LEFT, to(2), "its replicas change when that has ended"),
        (ModelStatus(model="chat", stable=THEIRS), to(2), "somebody else's workload"),
    ],
)
def test_scale_is_refused(status: ModelStatus, command: Command, why: str) -> None:
    with pytest.raises(CommandRefused, match=why):
        scale(status, command)


@pytest.mark.parametrize("status", [SERVING, ROLLING, LEFT, SERVING.model_copy(update={"previous": NEXT})])
def test_a_model_that_is_taken_away_keeps_only_what_drains(status: ModelStatus) -> None:
    command = Command(verb=Verb.UNDEPLOY, actor="a")
    after = apply(status, undeploy(status, command).actions, at=9.0, reason="r", actor="a")
    assert (after.stable, after.canary, after.leaving, after.previous, after.history) == (None, None, None, None, ())
    assert {d.digest for d in after.running()} == {r.deployed.digest for r in after.retiring}
    assert {r.deployed.digest for r in after.retiring} == {d.digest for d in status.running()}
    assert after.phase is Phase.HEALTHY
    with pytest.raises(CommandRefused, match="nothing of chat is deployed"):
        undeploy(after, command)
