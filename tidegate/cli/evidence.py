"""Evidence in words. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.client import RolloutStatus, SignalStatus


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
        observed = status.observed_weight
        follows = "" if observed in (None, status.weight) else f" (gateways: {observed} %)"
        parts.append(f"{status.canary} at {status.weight} %{follows}")
        steps = [s for s in status.steps if s.weight < 100]
        if steps and status.step:
            parts.append(f"step {min(status.step, len(steps))} of {len(steps)}")
        if status.stage:
            parts.append(status.stage)
    parts.append(f"stable {status.stable or 'none'}")
    return ", ".join(parts)
