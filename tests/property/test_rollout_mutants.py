"""Planted faults that the invariants of chaos.py must catch: a property that no mutant breaks proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rollout import actuate, commands, controller, decide, desired, status
from rollout.actions import Promote, Withdraw
from rollout.status import Stage
from serving.errors import InvalidTable
from tests.property.chaos import Violated, live

Plant = Callable[[pytest.MonkeyPatch], None]


def weight_before_ready(patch: pytest.MonkeyPatch) -> None:
    """A canary gets its first step as soon as it is started."""
    real = decide._first_step

    def hasty(spec, where, rollout, seen):
        steps = spec.strategy.canary.shifting_steps
        if where.stable is None:
            return real(spec, where, rollout, seen)
        return decide.Decision(
            cause=decide.Cause.PROGRESS, reason="hasty", actions=(decide.SetStep(step=0, weight=steps[0].weight),)
        )

    patch.setattr(decide, "_first_step", hasty)


def withdrawn_keeps_its_weight(patch: pytest.MonkeyPatch) -> None:
    """A withdrawal changes the phase but not the traffic."""
    real = status._withdraw

    def lame(where, action, at, reason):
        done = real(where, action, at, reason)
        return done.model_copy(update={"rollout": where.rollout})

    patch.setattr(status, "_withdraw", lame)


def table_not_sent_after_a_command(patch: pytest.MonkeyPatch) -> None:
    """The actuator believes that the table has been sent already, once there is one."""
    real = actuate.TrafficActuator.follow

    async def lazy(self, statuses, *, fence, now):
        if self._sent is None or fence != self._fence:
            await real(self, statuses, fence=fence, now=now)

    patch.setattr(actuate.TrafficActuator, "follow", lazy)


def removed_without_draining(patch: pytest.MonkeyPatch) -> None:
    """Whatever retires is removed at once, streams or not."""

    def hasty(where, observation, now):
        if not where.retiring:
            return None
        actions = tuple(decide.Remove(digest=r.deployed.digest) for r in where.retiring)
        return decide.Decision(cause=decide.Cause.DRAINED, reason="drained at once", actions=actions)

    patch.setattr(controller, "housekeeping", hasty)


def old_stable_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A promotion drops the workload of what still has traffic at gateways that lag behind."""
    real = desired.desired_workloads

    def only_canary(statuses):
        return tuple(
            w
            for w in real(statuses)
            if not any(
                s.canary is not None and s.stable is not None and w.application == s.stable.application
                for s in statuses
            )
        )

    patch.setattr(actuate, "desired_workloads", only_canary)


def commands_not_logged(patch: pytest.MonkeyPatch) -> None:
    """A command acts without an entry of its own."""
    real = controller.Controller._commit

    def silent(self, model, decision, seen, *, actor, command=None):
        real(self, model, decision, seen or self.observation(model) if model in self._statuses else None, actor=actor)

    patch.setattr(controller.Controller, "_commit", silent)


def acts_before_it_writes(patch: pytest.MonkeyPatch) -> None:
    """A decision is folded but not written: a restarted controller stands elsewhere."""

    def forgetful(self, model, decision, seen, *, actor, command=None):
        self._fold(model, decision, at=self._clock(), actor=actor)

    patch.setattr(controller.Controller, "_commit", forgetful)


def clock_read_in_the_fold(patch: pytest.MonkeyPatch) -> None:
    """Recovery folds with the time of recovery, not of the entry."""
    real = controller.Controller._recover

    def drifting(self):
        real(self)
        for model, where in self._statuses.items():
            self._statuses[model] = where.model_copy(update={"updated_at": self._clock() + 1})

    patch.setattr(controller.Controller, "_recover", drifting)


def superseded_without_withdrawing(patch: pytest.MonkeyPatch) -> None:
    """A new deployment forgets to retire the canary before it."""
    real = commands.deploy

    def careless(where, target, command):
        decision = real(where, target, command)
        kept = tuple(a for a in decision.actions if not isinstance(a, Withdraw))
        return decision.model_copy(update={"actions": kept})

    patch.setattr(commands, "deploy", careless)


def start_keeps_the_old_weight(patch: pytest.MonkeyPatch) -> None:
    """A new rollout begins with the weight of the one before."""
    real = status._start

    def sticky(where, action, at):
        done = real(where, action, at)
        if where.rollout is None or where.stable is None:
            return done
        rollout = done.rollout.model_copy(update={"weight": 50, "stage": Stage.STEPPING, "step": 0})
        return done.model_copy(update={"rollout": rollout})

    patch.setattr(status, "_start", sticky)


def weights_not_complementary(patch: pytest.MonkeyPatch) -> None:
    """Stable keeps everything while the canary gets its part too."""
    real = desired._entry

    def greedy(deployed, role, weight):
        made = real(deployed, role, weight)
        return made if role == "canary" or weight == 0 else made.model_copy(update={"weight": 100})

    patch.setattr(desired, "_entry", greedy)


def promotes_what_was_withdrawn(patch: pytest.MonkeyPatch) -> None:
    """`decide` forgets to look whether the rollout is still active."""
    real = decide.decide

    def zombie(spec, where, observation, now):
        if where.rollout is not None and where.rollout.stage is Stage.WITHDRAWN:
            return decide.Decision(cause=decide.Cause.PROGRESS, reason="zombie", actions=(Promote(),))
        return real(spec, where, observation, now)

    def judge(self, model):
        where, now = self._statuses[model], self._clock()
        if where.rollout is not None:
            seen = self.observation(model)
            decision = zombie(where.rollout.spec, where, seen, now)
            if decision.actions:
                self._commit(model, decision, seen, actor="controller")

    patch.setattr(controller.Controller, "_judge", judge)


MUTANTS: tuple[Plant, ...] = (
    weight_before_ready,
    withdrawn_keeps_its_weight,
    table_not_sent_after_a_command,
    removed_without_draining,
    old_stable_forgotten,
    commands_not_logged,
    acts_before_it_writes,
    clock_read_in_the_fold,
    superseded_without_withdrawing,
    start_keeps_the_old_weight,
    weights_not_complementary,
    promotes_what_was_withdrawn,
)


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda p: p.__name__)
def test_each_mutant_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    for seed in range(12):
        try:
            live(seed, moves=250)
        except (Violated, InvalidTable) as caught:
            print(f"{plant.__name__}: {type(caught).__name__}: {caught}")
            return
    pytest.fail(f"no invariant catches {plant.__name__}: {plant.__doc__}")
