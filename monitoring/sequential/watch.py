"""An endless watch: no end to the rollout, so no alpha to spend, but a bounded rate of false alarms. Pure.

Shiryaev-Roberts as an e-detector (analysis page, section 7; Shin, Ramdas and Rinaldo, arXiv 2203.03532):
`M = (M + 1)*f` with the factors of the rollback test. Under the null M - n is a supermartingale, so the mean number of
events until a false alarm at M >= 1/a is at least 1/a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.sequential.events import THETAS, check_weight, odds


@dataclass(frozen=True, slots=True)
class WatchState:
    """M_k for each ratio of the grid; JSON by `to_json`."""

    m: tuple[float, ...]
    n: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"m": list(self.m), "n": self.n}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> WatchState:
        """The state that `to_json` gave."""
        return cls(tuple(float(value) for value in stored["m"]), int(stored["n"]))

    @property
    def value(self) -> float:
        """M, the average over the grid: alarm when it is at least 1/a."""
        return sum(self.m) / len(self.m)


def start_watch(points: int = len(THETAS)) -> WatchState:
    """Before any event; also the state to go on with after an alarm was dealt with."""
    return WatchState((0.0,) * points)


def watch(
    state: WatchState, canary: bool, weight: float, rho0: float = 1.0, grid: tuple[float, ...] = THETAS
) -> WatchState:
    """The state after one event; arguments as in `events.CappedMixture.update`, grid in multiples of rho0.

    Raises:
        ValueError: for a weight that is not between 0 and 1.

    """
    check_weight(weight)
    f_canary, f_stable, _, _ = odds(tuple(rho0 * ratio for ratio in grid), rho0, weight)
    factors = f_canary if canary else f_stable
    return WatchState(tuple((m + 1.0) * f for m, f in zip(state.m, factors, strict=True)), state.n + 1)


def alarmed(state: WatchState, a: float) -> bool:
    """Whether to raise the alarm; false ones come at most once in 1/a events on average."""
    return state.value >= 1.0 / a
