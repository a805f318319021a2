"""The rollout engine under crashes, doubled messages, lost gateways and impatient operators.

Hypothesis chooses the moves; the invariants are chaos.py's. The same invariants must catch each planted mutant.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.property.chaos import MOVES, Chaos, live
from tests.simulation.world import STRATEGIES


class Rollouts(RuleBasedStateMachine):
    """Every move in any order."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed):
        self.chaos = Chaos(seed)
        self.chaos.world.first()
        self.chaos.commands += 1

    @rule(move=st.sampled_from(MOVES), seed=st.integers(0, 2**16), times=st.integers(1, 6))
    def move(self, move, seed, times):
        rng = random.Random(seed)
        for _ in range(times if move == "do_step" else 1):
            getattr(self.chaos, move)(rng)
            self.chaos.check()

    @invariant()
    def all_holds(self):
        if hasattr(self, "chaos"):
            self.chaos.check()

    def teardown(self):
        if hasattr(self, "chaos"):
            self.chaos.close()


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
@pytest.mark.parametrize("seed", range(3))
def test_a_long_random_life(seed, strategy):
    live(seed, moves=200, only=strategy)
