"""Planted faults that the invariants of chaos.py must catch: a property that no mutant breaks proves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rollout import actuate, commands, controller, decide, desired, status
from rollout.actions import Promote, SetStep, Withdraw
from rollout.decision import go
from rollout.event_log.memory import MemoryEventLog
from rollout.observation import SmokeResult, Verdict
from rollout.status import Stage
from rollout.strategies import ab, blue_green, canary, shadow
from serving.errors import InvalidTable
from tests.property.chaos import Violated, live

Plant = Callable[[pytest.MonkeyPatch], None]


def weight_before_ready(patch: pytest.MonkeyPatch) -> None:
    """A canary gets its first step as soon as it is started."""
    real = decide._first_step

    def hasty(spec, where, rollout, seen):
        if where.stable is None:
            return real(spec, where, rollout, seen)
        return go(decide.Cause.PROGRESS, "hasty", SetStep(step=0, weight=10))

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
        self._fold_of_log.decision(model, decision, at=self._clock(), actor=actor)
        self._traffic_due = True

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

    def careless(where, target, command, seen=None):
        decision = real(where, target, command, seen)
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


def shadow_gives_weight(patch: pytest.MonkeyPatch) -> None:
    """A shadow gets a part of the clients beside the copies."""
    real = desired._revisions

    def generous(where):
        told = real(where)
        if where.rollout is None or where.rollout.stage is not Stage.MIRRORING or len(told) < 2:
            return told
        return tuple(r.model_copy(update={"weight": 90 if r.role == "stable" else 10}) for r in told)

    patch.setattr(desired, "_revisions", generous)


def switch_not_atomic(patch: pytest.MonkeyPatch) -> None:
    """Blue-green goes over half instead of switching."""
    real = blue_green.judge

    def halfway(plan, where, rollout, seen, now):
        decision = real(plan, where, rollout, seen, now)
        if not any(isinstance(a, Promote) for a in decision.actions):
            return decision
        return decision.model_copy(update={"actions": (SetStep(step=0, weight=50),)})

    patch.setattr(blue_green, "judge", halfway)


def switch_that_nobody_watches(patch: pytest.MonkeyPatch) -> None:
    """Blue-green switches and forgets."""
    patch.setattr(blue_green, "Promote", lambda watch: Promote())


def watch_dropped_after_a_switch(patch: pytest.MonkeyPatch) -> None:
    """The table stops asking for evidence once the new side is stable."""
    real = desired._traffic

    def careless(where):
        told = real(where)
        promoted = told is not None and where.rollout is not None and where.rollout.stage is Stage.PROMOTED
        return told.model_copy(update={"watch": False}) if promoted else told

    patch.setattr(desired, "_traffic", careless)


def smoke_suite_ignored(patch: pytest.MonkeyPatch) -> None:
    """Blue-green switches whatever the smoke suite found."""
    real = blue_green.judge

    def optimistic(plan, where, rollout, seen, now):
        return real(plan, where, rollout, seen.model_copy(update={"smoke": SmokeResult(passed=True, ran=1)}), now)

    patch.setattr(blue_green, "judge", optimistic)
    patch.setattr(blue_green, "unsafe", lambda where, rollout, seen: None)


def pairs_not_counted(patch: pytest.MonkeyPatch) -> None:
    """A shadow passes without its least number of pairs."""
    real = shadow.judge

    def impatient(plan, where, rollout, seen, now):
        shown = reading_of_success(seen)
        return real(plan, where, rollout, seen.model_copy(update={"pairs": 10**6, "signals": shown}), now)

    patch.setattr(shadow, "judge", impatient)


def reading_of_success(seen):
    return tuple(s.model_copy(update={"verdict": Verdict.SUCCESSFUL}) for s in seen.signals)


def ab_promotes_by_itself(patch: pytest.MonkeyPatch) -> None:
    """An A/B test ends in a promotion that nobody asked for."""
    real = ab.judge

    def eager(plan, rollout, seen):
        decision = real(plan, rollout, seen)
        return decision.model_copy(update={"actions": (Promote(),)}) if decision.actions else decision

    patch.setattr(ab, "judge", eager)


def sample_ratio_ignored(patch: pytest.MonkeyPatch) -> None:
    """A canary goes on though one arm loses units."""
    patch.setattr(canary, "not_trusted", lambda rollout, seen: None)


def failed_signals_ignored(patch: pytest.MonkeyPatch) -> None:
    """Evidence against a version has no consequence."""
    patch.setattr(decide, "failed_signals", lambda rollout, seen: [])


def withdrawing_raises_weight(patch: pytest.MonkeyPatch) -> None:
    """A version that was taken back gets more again when stable loses replicas."""
    real_plan, real_fold = decide._shift, status._shift

    def both_ways(where, leaving, seen):
        return real_plan(where, leaving.model_copy(update={"weight": 99}), seen)

    def raising(where, action, at):
        leaving = where.leaving.model_copy(update={"weight": max(where.leaving.weight, action.weight)})
        return real_fold(where.model_copy(update={"leaving": leaving}), action, at)

    patch.setattr(decide, "_shift", both_ways)
    patch.setattr(status, "_shift", raising)


def leaving_has_no_workload(patch: pytest.MonkeyPatch) -> None:
    """What still carries a part of the traffic is not kept running."""
    real = status.ModelStatus.running

    def forgetful(self):
        return real(self.model_copy(update={"leaving": None}))

    patch.setattr(actuate, "desired_workloads", lambda all_of_them: desired.desired_workloads(
        [s.model_copy(update={"leaving": None}) for s in all_of_them]))  # fmt: skip
    patch.setattr(status.ModelStatus, "running", forgetful)
    patch.setattr(decide, "_shift", lambda where, leaving, seen: None)


def fence_not_checked(patch: pytest.MonkeyPatch) -> None:
    """The log takes entries from whoever comes."""
    real = MemoryEventLog.append

    def trusting(self, entries, fence, *rest, **more):
        return real(self, entries, self._fence, *rest, **more)

    patch.setattr(MemoryEventLog, "append", trusting)


MUTANTS: dict[Plant, str | None] = {
    weight_before_ready: "canary",
    withdrawn_keeps_its_weight: "canary",
    table_not_sent_after_a_command: "canary",
    removed_without_draining: "canary",
    old_stable_forgotten: "canary",
    commands_not_logged: None,
    acts_before_it_writes: None,
    clock_read_in_the_fold: None,
    superseded_without_withdrawing: "canary",
    start_keeps_the_old_weight: "canary",
    weights_not_complementary: "canary",
    promotes_what_was_withdrawn: None,
    shadow_gives_weight: "shadow",
    switch_not_atomic: "blue-green",
    switch_that_nobody_watches: "blue-green",
    watch_dropped_after_a_switch: "blue-green",
    smoke_suite_ignored: "blue-green",
    pairs_not_counted: "shadow",
    ab_promotes_by_itself: "ab",
    sample_ratio_ignored: "soak",
    failed_signals_ignored: "soak",
    withdrawing_raises_weight: "soak",
    leaving_has_no_workload: "soak",
    fence_not_checked: None,
}
"""Each with the strategy under which it shows soonest; None for any."""


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda p: p.__name__)
def test_each_mutant_is_caught(plant, monkeypatch):
    plant(monkeypatch)
    for seed in range(12):
        try:
            live(seed, moves=250, only=MUTANTS[plant])
        except (Violated, InvalidTable) as caught:
            print(f"{plant.__name__}: seed {seed}: {type(caught).__name__}: {caught}")
            return
    pytest.fail(f"no invariant catches {plant.__name__}: {plant.__doc__}")
