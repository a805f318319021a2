"""The rollback test that ships, for thousands of rollouts at once in numpy, so that thousands can be simulated.

The recurrence is `monitoring.sequential.events.CappedMixture.update`, one array row for a rollout (or for one latency
level of it). It is a second writing of it, so nothing rests on it alone: the tests compare it with the first one event
by event, and the bench gives part of every table's rollouts to the product's own ledger and counts disagreements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring.sequential.events import RESTART_DELAY_EVENTS, CappedMixture, EProcessConfig, odds
from rollout.analysis.comparison import LONGEST_DISCOUNT_INDEX

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ROWS_AT_ONCE = 2_000
"""Bounds the memory of `paths`, and keeps the working arrays in the cache."""


@dataclass(frozen=True, slots=True)
class Events:
    """One rollout's events of one signal in their order, each array of one length.

    Attributes:
        canary: whether it is the canary's.
        index: which request of its session it came from, from 1.
        rate: stable's rate of such events as known then; 0 for no discount (`events.for_session`).

    """

    canary: Flags
    index: NDArray[np.int64]
    rate: Floats

    @classmethod
    def alone(cls, canary: Flags) -> Events:
        """Events of requests that are their own sessions."""
        return cls(canary, np.ones(len(canary), dtype=np.int64), np.zeros(len(canary)))

    def __len__(self) -> int:
        return len(self.canary)


class Batch:
    """Many e-processes with one configuration and one weight, advanced together."""

    def __init__(self, config: EProcessConfig, weight: float, rows: int) -> None:
        thetas = CappedMixture(config).thetas
        factors = odds(thetas, config.rho0, weight)
        self._thetas, self._rho0, self._weight = np.array(thetas), config.rho0, weight
        self._canary, self._stable = np.array(factors.canary), np.array(factors.stable)
        self._q0, self._p0 = factors.q0, factors.p0
        self._cap, self._threshold = config.log_cap, config.log_threshold
        self._points = len(thetas)
        self.log_w = np.zeros(rows)
        self.shares = np.full((rows, self._points), (1.0 - config.cash) / self._points)
        self.cash = np.full(rows, config.cash)
        self.n = np.zeros(rows)
        """Events that each row has seen."""

    def keep(self, rows: Flags) -> None:
        """Drop the rows that have ended."""
        self.log_w, self.shares, self.cash, self.n = self.log_w[rows], self.shares[rows], self.cash[rows], self.n[rows]

    @property
    def crossed(self) -> Flags:
        """Which rows are at the threshold now."""
        return self.log_w >= self._threshold

    def _factors(self, index: NDArray[np.int64], rate: Floats) -> tuple[Floats, Floats]:
        """Each row's factors of a canary event and of a stable one, discounted by the request's place (section 2)."""
        p = np.where(index > 1, rate, 0.0)[:, None]
        places = np.minimum(index, LONGEST_DISCOUNT_INDEX)[:, None] - 1
        kept = ((1.0 - np.minimum(self._thetas * p, 0.9)) / (1.0 - p)) ** places
        thetas = np.where(p > 0.0, np.maximum(self._rho0, self._thetas * kept), self._thetas)
        null = self._weight * self._rho0 + 1.0 - self._weight
        scales = null / (self._weight * thetas + 1.0 - self._weight)
        return thetas / self._rho0 * scales, scales

    def update(
        self, canary: Flags, only: Flags | None = None, discount: tuple[NDArray[np.int64], Floats] | None = None
    ) -> None:
        """One more event for every row, or for some.

        Args:
            canary: whether it is the canary's.
            only: the rows that have an event; None for all.
            discount: each row's `Events.index` and `Events.rate`; None for requests without sessions.

        """
        if discount is None:
            f_canary, f_stable = self._canary, self._stable
        else:
            f_canary, f_stable = self._factors(*discount)
        n = self.n + 1
        room = self._cap - self.log_w
        moved = self.cash / (n + RESTART_DELAY_EVENTS + 1)
        shares = self.shares + (moved / self._points)[:, None]
        cash = self.cash - moved
        up = (shares @ f_canary if discount is None else (shares * f_canary).sum(axis=1)) + cash
        limit = np.exp(np.minimum(room, 700.0))
        shares *= np.where(canary[:, None], f_canary, f_stable)
        mixed = shares.sum(axis=1) + cash
        capped = up >= limit
        step = np.log(np.where(canary, up, np.where(capped, (1.0 - self._q0 * limit) / self._p0, mixed)))
        log_w = np.where(canary & capped, self._cap, self.log_w + step)
        log_w = np.where(room <= 0.0, self.log_w, log_w)
        shares /= mixed[:, None]
        cash /= mixed
        if only is not None:
            n, log_w, cash = (
                np.where(only, new, old) for new, old in ((n, self.n), (log_w, self.log_w), (cash, self.cash))
            )
            shares = np.where(only[:, None], shares, self.shares)
        self.n, self.log_w, self.shares, self.cash = n, log_w, shares, cash


def paths(config: EProcessConfig, weight: float, sequences: Sequence[Events]) -> list[Floats]:
    """The logarithm of the evidence after each event of every sequence."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    found: list[Floats] = [np.empty(0)] * len(sequences)
    for start in range(0, len(order), ROWS_AT_ONCE):
        chosen = order[start : start + ROWS_AT_ONCE]
        for i, way in zip(chosen, _ways(config, weight, [sequences[i] for i in chosen]), strict=True):
            found[i] = way
    return found


def _ways(config: EProcessConfig, weight: float, sequences: list[Events]) -> list[Floats]:
    """The same for sequences that are sorted, longest first: those that go on are always the first rows."""
    lengths = np.array([len(s) for s in sequences])
    canary = _table([s.canary for s in sequences], False)
    discounted = any((s.index > 1).any() and s.rate.any() for s in sequences)
    index, rate = _table([s.index for s in sequences], 1), _table([s.rate for s in sequences], 0.0)
    log_w = np.zeros(canary.shape)
    batch = Batch(config, weight, len(sequences))
    for step in range(len(canary)):
        going = int(np.searchsorted(-lengths, -step, side="left"))
        if going < len(batch.log_w):
            batch.keep(np.arange(len(batch.log_w)) < going)
        batch.update(canary[step, :going], discount=(index[step, :going], rate[step, :going]) if discounted else None)
        log_w[step, :going] = batch.log_w
    return [log_w[:length, column].copy() for column, length in enumerate(lengths.tolist())]


def _table(columns: list[NDArray[Any]], filler: float) -> NDArray[Any]:
    """Arrays of falling lengths side by side, one row for a step."""
    table = np.full((len(columns[0]), len(columns)), filler, dtype=columns[0].dtype)
    for column, values in enumerate(columns):
        table[: len(values), column] = values
    return table
