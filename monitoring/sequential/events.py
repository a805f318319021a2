"""The rollback test: is the canary's share of the events larger than its share of the units? Pure.

Method: the capped e-process with restarts (analysis page, section 3). Given that an event happened (an error,
say), it fell on the canary with probability `q(rho, w)`, rho being the canary's event rate over stable's and w the
probability with which units were assigned to the canary. That holds whatever the hour, the load, or an outage
upstream that hits both arms. The null hypothesis is rho <= rho0 at every unit; evidence W is a wealth that starts at
1 and has, under the null, a mean of at most 1 after any event; by Ville's inequality it ever reaches 1/alpha with
probability at most alpha, so one may look after each event and stop at any of them.

Sources: Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022); Ramdas et al.,
arXiv 2106.02693 (e-processes); Waudby-Smith and Ramdas, arXiv 2010.09686 (betting); Shin, Ramdas and Rinaldo,
arXiv 2203.03532 (restarts); arXiv 2504.19952 (no wealth past the threshold).

Worked numbers, w = 0.1, rho0 = 1, alpha = 0.01: the first event multiplies W by 3.99 when it is the canary's, by
0.668 when it is stable's; three canary events in a row roll back (3.99, 21.9, 100).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import mul
from typing import Any, NamedTuple

RESTART_DELAY_EVENTS = 20
"""Half of the cash is bet after this many events, the rest ever more slowly: for faults that come late."""


def q(theta: float, w: float) -> float:
    """Probability that an event is the canary's, for a rate ratio theta and a canary weight w in (0, 1).

    >>> round(q(5.0, 0.1), 4)
    0.3571
    """
    return w * theta / (w * theta + 1.0 - w)


def log_spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` points from low to high at equal ratios, ends included."""
    step = math.log(high / low) / (count - 1)
    return tuple(low * math.exp(step * i) for i in range(count))


THETAS = log_spaced(1.5, 40.0, 20)
"""Rate ratios that the test bets on, as multiples of rho0. Steps of 1.19, so a ratio
between two points costs next to nothing. Below about 1.25 the test is blind."""


@dataclass(frozen=True, slots=True)
class EProcessConfig:
    """What a rollback test is asked for.

    Attributes:
        alpha: the chance, over the whole rollout, of rolling back a canary that is not worse than rho0.
        rho0: largest canary/stable ratio of event rates that is still fine; 1 is "not worse".
        grid: ratios to bet on as multiples of rho0, each above 1.
        cash: part of the wealth held back at the start for faults that come late. 0.2 costs 0.22 of the 4.6 nats
            that alpha = 1 % needs, and halves the exposure to a fault after thousands of healthy requests.
        capped: bet no more than reaching the threshold needs; what would be won beyond it buys smaller losses.
        cap_factor: the cap is cap_factor/alpha. Above 1 only where several processes are averaged.

    """

    alpha: float
    rho0: float = 1.0
    grid: tuple[float, ...] = THETAS
    cash: float = 0.2
    capped: bool = True
    cap_factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha is {self.alpha}; give a probability between 0 and 1, such as 0.01")
        if not 0.0 < self.rho0 < math.inf:
            raise ValueError(f"rho0 is {self.rho0}; give a positive rate ratio, 1 for 'not worse'")
        if not self.grid or min(self.grid) <= 1.0:
            raise ValueError("grid holds multiples of rho0 above 1 (there is nothing to bet on below); add or drop")
        if not 0.0 <= self.cash < 1.0:
            raise ValueError(f"cash is {self.cash}; give the part held back, from 0 to below 1")
        if self.cap_factor < 1.0:
            raise ValueError(f"cap_factor is {self.cap_factor}; below 1 the threshold could never be reached")

    @property
    def log_threshold(self) -> float:
        """Natural logarithm of 1/alpha: roll back from here on."""
        return -math.log(self.alpha)

    @property
    def log_cap(self) -> float:
        """Natural logarithm of the largest wealth; infinite when not capped."""
        return self.log_threshold + math.log(self.cap_factor) if self.capped else math.inf


@dataclass(frozen=True, slots=True)
class EProcessState:
    """Everything the test remembers. Immutable, JSON through `to_json` and `from_json`.

    Attributes:
        log_w: natural logarithm of the evidence W.
        shares: R_k, how the uncapped wealth is spread over the grid; normalised to sum to 1 with cash. Kept as
            shares, since each event brings new cash to each of them: what underflows to 0 was past recovery.
        cash: part of the wealth that is not bet yet.
        n: events seen.
        canary: those of them that were the canary's.
        crossed: whether W has ever reached 1/alpha.

    """

    log_w: float
    shares: tuple[float, ...]
    cash: float
    n: int = 0
    canary: int = 0
    crossed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats survive `json.dumps` and `json.loads` exactly."""
        return {
            "log_w": self.log_w,
            "shares": list(self.shares),
            "cash": self.cash,
            "n": self.n,
            "canary": self.canary,
            "crossed": self.crossed,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> EProcessState:
        """The state that `to_json` gave; unknown keys are left alone (what was stored is read tolerantly)."""
        return cls(
            log_w=float(stored["log_w"]),
            shares=tuple(float(r) for r in stored["shares"]),
            cash=float(stored["cash"]),
            n=int(stored["n"]),
            canary=int(stored["canary"]),
            crossed=bool(stored["crossed"]),
        )


class Odds(NamedTuple):
    """Factors of one event by grid point, and the null's probability that it is the canary's (and stable's)."""

    canary: tuple[float, ...]
    stable: tuple[float, ...]
    q0: float
    p0: float


def odds(thetas: Iterable[float], rho0: float, w: float) -> Odds:
    """f_k(1) = q(theta_k, w)/q(rho0, w) and f_k(0) = (1 - q(theta_k, w))/(1 - q(rho0, w)).

    Written without a difference of near-equal numbers, so that it is exact for w close to 0 and to 1.
    """
    null = w * rho0 + 1.0 - w
    scales = [null / (w * theta + 1.0 - w) for theta in thetas]
    canary = tuple(theta / rho0 * scale for theta, scale in zip(thetas, scales, strict=True))
    return Odds(canary, tuple(scales), w * rho0 / null, (1.0 - w) / null)


_odds_on_grid = lru_cache(maxsize=2048)(odds)
"""About 1 kB an entry. Besides the grid itself, scores ask for at most 1,025 others (ranks among the last 512)."""


def check_weight(weight: float) -> None:
    """Refuse a weight without evidence in it.

    Raises:
        ValueError: the unit was forced (weight 0 or 1), or the weight is in percent.

    """
    if not 0.0 < weight < 1.0:
        raise ValueError(
            f"the weight is {weight}; it must lie between 0 and 1 (a probability, not percent): "
            "leave out forced units, they carry no evidence"
        )


class CappedMixture:
    """The capped e-process with restarts, over immutable states. One instance serves any number of rollouts."""

    def __init__(self, config: EProcessConfig) -> None:
        self.config = config
        self.thetas = tuple(config.rho0 * ratio for ratio in config.grid)
        self._log_cap = config.log_cap
        self._log_threshold = config.log_threshold
        self._points = len(config.grid)

    def start(self) -> EProcessState:
        """Before any event: W = 1, of which `cash` is not bet yet."""
        share = (1.0 - self.config.cash) / self._points
        return EProcessState(log_w=0.0, shares=(share,) * self._points, cash=self.config.cash)

    def update(
        self, state: EProcessState, canary: bool, weight: float, *, thetas: tuple[float, ...] | None = None
    ) -> EProcessState:
        """The state after one more event. About 6 us.

        Args:
            state: before the event.
            canary: whether the event is of the canary's (assigned) arm.
            weight: the probability in (0, 1) with which that unit was assigned to the canary, as in force at its
                admission; known before the arm was.
            thetas: what each grid point predicts for this very unit, when that differs by unit (`for_session`,
                `scores.for_score`); known without the arm, and not below rho0.

        Raises:
            ValueError: for a weight that is not between 0 and 1.

        """
        check_weight(weight)
        n = state.n + 1
        room = self._log_cap - state.log_w
        if room <= 0.0:
            # At the cap every bet is 1: nothing that follows changes the verdict.
            return replace(state, n=n, canary=state.canary + canary)
        rho0 = self.config.rho0
        f_canary, f_stable, q0, p0 = _odds_on_grid(self.thetas if thetas is None else thetas, rho0, weight)
        # gamma_n of section 3 as a part of the cash that is left: 0.2*21/((n+20)(n+21)) of 0.2*21/(n+20).
        moved = state.cash / (n + RESTART_DELAY_EVENTS + 1)
        each = moved / self._points
        shares = [share + each for share in state.shares]
        cash = state.cash - moved

        up = sum(map(mul, shares, f_canary)) + cash
        limit = math.exp(room) if room < 700.0 else math.inf
        if canary:
            mixed = up
            shares = list(map(mul, shares, f_canary))
            log_w = self._log_cap if up >= limit else state.log_w + math.log(up)
        else:
            shares = list(map(mul, shares, f_stable))
            mixed = sum(shares) + cash
            down = (1.0 - q0 * limit) / p0 if up >= limit else mixed
            log_w = state.log_w + math.log(down)
        scale = 1.0 / mixed
        return EProcessState(
            log_w=log_w,
            shares=tuple([share * scale for share in shares]),
            cash=cash * scale,
            n=n,
            canary=state.canary + canary,
            crossed=state.crossed or log_w >= self._log_threshold,
        )

    def crossed(self, state: EProcessState) -> bool:
        """Whether to roll back. Once true it stays true."""
        return state.crossed


def for_session(thetas: Iterable[float], request_index: int, event_rate: float, rho0: float = 1.0) -> tuple[float, ...]:
    """What grid points predict for a session's *first* event when it comes at its k-th request (section 2).

    A bad canary's sessions have their first event early, so a late one is weaker evidence:
    `theta_k = max(rho0, theta * [(1 - min(theta*p, 0.9)) / (1 - p)]^(k-1))`. Without it, power is lost; the bound on
    false rollbacks holds either way.

    Args:
        thetas: `CappedMixture.thetas`.
        request_index: k, from 1.
        event_rate: p, stable's rate per request, from the past alone; in [0, 1).
        rho0: the null's ratio.

    >>> [round(t, 2) for t in for_session((5.0,), 11, 0.01)]
    [3.31]

    """
    return tuple(
        max(rho0, theta * ((1.0 - min(theta * event_rate, 0.9)) / (1.0 - event_rate)) ** (request_index - 1))
        for theta in thetas
    )


@dataclass(frozen=True, slots=True)
class AveragedState:
    """One process per latency level, and whether their average has ever reached 1/alpha."""

    levels: tuple[EProcessState, ...]
    crossed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values, as of `EProcessState.to_json`."""
        return {"levels": [level.to_json() for level in self.levels], "crossed": self.crossed}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> AveragedState:
        """The state that `to_json` gave."""
        return cls(tuple(EProcessState.from_json(level) for level in stored["levels"]), bool(stored["crossed"]))


class AveragedLevels:
    """The average of the e-processes at several latency quantiles of one signal (section 4).

    An average of e-processes is one, whatever their dependence, provided that they move together: all levels
    that one unit exceeded go into *one* call of `update`. Each level is capped at levels/alpha, where it carries
    the average alone; a cap that looked at the other levels would let the set of exceeded levels, which differs
    between the arms even when the canary is fine, steer the bets.
    """

    def __init__(self, config: EProcessConfig, levels: int = 4) -> None:
        self.config = replace(config, cap_factor=float(levels))
        self.process = CappedMixture(self.config)
        self.count = levels

    def start(self) -> AveragedState:
        """Before any event."""
        return AveragedState((self.process.start(),) * self.count)

    def update(
        self,
        state: AveragedState,
        exceeded: Collection[int],
        canary: bool,
        weight: float,
        *,
        thetas: Mapping[int, tuple[float, ...]] | None = None,
    ) -> AveragedState:
        """The state after one slow unit.

        Args:
            state: before the unit.
            exceeded: indices of all levels that its latency exceeded, 0 for the first.
            canary: whether it was assigned to the canary.
            weight: as in `CappedMixture.update`.
            thetas: by level, as there; levels that are not named bet on the grid itself.

        Raises:
            ValueError: for a level that does not exist, or a weight not between 0 and 1.

        """
        if not all(0 <= level < self.count for level in exceeded):
            raise ValueError(f"levels {sorted(exceeded)} exceeded, but there are only 0 to {self.count - 1}")
        levels = tuple(
            self.process.update(level, canary, weight, thetas=thetas.get(index) if thetas else None)
            if index in exceeded
            else level
            for index, level in enumerate(state.levels)
        )
        return AveragedState(levels, state.crossed or self._log_mean(levels) >= self.config.log_threshold - 1e-12)

    def log_e(self, state: AveragedState) -> float:
        """Natural logarithm of the averaged evidence."""
        return self._log_mean(state.levels)

    def crossed(self, state: AveragedState) -> bool:
        """Whether to roll back. Once true it stays true."""
        return state.crossed

    def _log_mean(self, levels: tuple[EProcessState, ...]) -> float:
        highest = max(level.log_w for level in levels)
        return highest + math.log(math.fsum(math.exp(level.log_w - highest) for level in levels) / self.count)
