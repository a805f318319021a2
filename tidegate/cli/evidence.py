"""Evidence in words. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.replies import RolloutStatus, SignalStatus


def e_value(log_e: float) -> str:
    """An e-value from its natural logarithm: how many times better "it is worse" bets than "it is not".

    >>> e_value(3.6), e_value(0.0), e_value(-3.0), e_value(23.03)
    ('37', '1', '0.05', '10^10')
    """
    if not math.isfinite(log_e):
        return "?"
    if log_e > math.log(99_999):
        return f"10^{log_e / math.log(10):.0f}"
    value = math.exp(log_e)
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def rate(events: int, n: int) -> str:
    """A share of events in percent, or that there is nothing to divide by.

    >>> rate(7, 142), rate(0, 0)
    ('4.9 %', 'none yet')
    """
    return f"{100 * events / n:.1f} %" if n else "none yet"


def signal_line(signal: SignalStatus) -> str:
    """One signal in one line."""
    if not (signal.canary.n or signal.canary.events or signal.stable.n or signal.stable.events):
        return f"{signal.name}  no requests yet"
    rates = f"canary {rate(signal.canary.events, signal.canary.n)} against stable " + rate(
        signal.stable.events, signal.stable.n
    )
    parts = [rates, f"e = {e_value(signal.log_e)} of {e_value(signal.threshold)}", f"n = {signal.canary.n}"]
    if signal.forward_threshold > 0:
        parts.append(f"for it {e_value(signal.forward_log_e)} of {e_value(signal.forward_threshold)}")
    parts.append(outlook(signal))
    return f"{signal.name}  " + ", ".join(parts)


def outlook(signal: SignalStatus) -> str:
    """How much longer it takes, or how it ended."""
    if signal.verdict in ("Failed", "Successful", "Error"):
        return signal.verdict
    if signal.requests_to_decision is None:
        return "no estimate at this weight"
    return f"about {signal.requests_to_decision} more requests"


def exposure_line(status: RolloutStatus) -> str:
    """How many requests met the canary, beside the fewest that could have told."""
    seen = status.exposure
    bound = f"; at least {seen.lower_bound} were needed to tell" if seen.lower_bound is not None else ""
    return f"{seen.canary_requests} canary requests{bound}"


def headline(status: RolloutStatus) -> str:
    """Where a rollout stands, in one line."""
    parts = [status.phase]
    if status.canary is not None:
        # Without `observed_weight` not every gateway has the newest table yet, or none is connected.
        follows = "" if status.observed_weight == status.weight else " (not yet at every gateway)"
        parts.append(f"{status.canary} at {status.weight} %{follows}")
        if place := step_place(status):
            parts.append(place)
        if status.stage:
            parts.append(status.stage)
    parts.append(f"stable {status.stable or 'none'}")
    return ", ".join(parts)


def step_place(status: RolloutStatus) -> str:
    """Which step of how many; "" when it is at none."""
    steps = [s for s in status.steps if s.weight < 100 and not s.soak]
    return f"step {min(status.step, len(steps))} of {len(steps)}" if steps and status.step else ""


def step_left_s(status: RolloutStatus, now: float) -> float | None:
    """How long the present step still takes at least, in seconds; None when it is at none or its time is unknown."""
    steps = [s for s in status.steps if s.weight < 100 and not s.soak]
    if status.stage != "stepping" or not 1 <= status.step <= len(steps) or status.step_started_at is None:
        return None
    return max(0.0, status.step_started_at + steps[status.step - 1].duration_s - now)
