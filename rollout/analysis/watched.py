"""One signal of a revision that is watched without another beside it: is its own rate above what it may be? Pure.

For the time after a blue-green switch, first deployments and emergencies (analysis page, section 7). What the rate
may be is p0 = max(maxRate, an upper bound of the old side's own rate, as watched before the switch): whoever had 8 %
of clients hanging up before does not want the new version taken back for 8 %. A tenth of the signal's alpha pays for
the bound of the old side, where there is one, the rest for the test.
"""

from __future__ import annotations

import math

from monitoring.sequential.absolute import RateTest, rate_upper_bound
from rollout.analysis.comparison import LATENCY
from rollout.observation import Counts
from rollout.specs import LATE_SIGNALS, SignalSpec
from serving.outcomes import Signal

DEFAULT_MAX_RATE: float = SignalSpec.model_fields["max_rate"].default
"""A `maxRate` of this value counts as not given."""

HIGHEST_P0 = 0.99
"""Above it no rate could be shown to be too high."""

BASELINE_ALPHA_SHARE = 0.1

_CLIENTS_DOING = frozenset({Signal.LENGTH_STOP.value, Signal.CLIENT_ABORT.value, Signal.ENGINE_4XX.value})
"""Signals whose rate is mostly the clients' doing: no default line would be right for everybody."""


def largest_fine_rate(spec: SignalSpec, baseline: Counts, alpha: float) -> tuple[float, float] | None:
    """p0 and the alpha that is left for the test; None where an absolute rate makes no sense for this signal.

    Args:
        spec: of the signal.
        baseline: the old side's own events and units, as watched before the switch.
        alpha: the signal's chance of a false rollback.

    """
    if spec.name in LATENCY or spec.name in LATE_SIGNALS or spec.name.startswith("score/"):
        return None
    if baseline.n == 0:
        given = spec.max_rate != DEFAULT_MAX_RATE
        return (spec.max_rate, alpha) if given or spec.name not in _CLIENTS_DOING else None
    spent = alpha * BASELINE_ALPHA_SHARE
    bound = rate_upper_bound(min(baseline.events, baseline.n), baseline.n, spent)
    return min(max(spec.max_rate, bound), HIGHEST_P0), alpha - spent


class WatchedSignal:
    """The evidence against one watched revision in one signal.

    Units are counted over all signals by the ledger, so they come as arguments. `settled` below is always the
    number of watched units that have settled so far.
    """

    def __init__(self, p0: float, alpha: float) -> None:
        self.p0 = p0
        self.alpha = alpha
        self.pending = 0
        """Events that are known of units that have not settled."""
        self._test = RateTest(p0)
        self._state = self._test.start()
        self._seen = 0

    @property
    def threshold(self) -> float:
        """Natural logarithm of 1/alpha."""
        return -math.log(self.alpha)

    def book(self, settled: int) -> None:
        """An event is known; whatever settled before it without one is taken in first, so that it is bet on afresh."""
        if settled > self._seen:
            self._state = self._test.update(self._state, settled - self._seen, 0)
            self._seen = settled
        self.pending += 1

    def settle(self, settled: int, events: int) -> None:
        """Some of the pending events belong to units that have settled now."""
        units = max(settled - self._seen, events)
        self._state = self._test.update(self._state, units, events)
        self._seen = max(self._seen, settled)
        self.pending -= events

    def log_e(self, units: int) -> float:
        """Natural logarithm of the evidence; `units` is the number of all watched units, settled or not."""
        return self._test.log_e(self._state, max(0, units - self._seen), self.pending)
