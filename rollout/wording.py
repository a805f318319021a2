"""How signals, effects and revisions are told to people. Pure."""

from __future__ import annotations

import math

from rollout.actions import Deployed
from rollout.observation import Comparison, Counts, SampleRatio, SignalReading, Similarity, Verdict
from rollout.specs import GATES

_LARGEST_E = math.log(1e6)
"""Up to here an e-value is written as a number, beyond as a power of e."""


def name_of(deployed: Deployed) -> str:
    """A revision as people write it: `chat@1.2.0`."""
    return f"{deployed.revision.model}@{deployed.version}"


def describe(signal: SignalReading) -> str:
    """One signal in one line.

    For instance `error: canary 4.8 % against stable 1.1 %, e = 37 of 100, n = 142, about 45 more requests`.
    """
    if signal.name in GATES:
        return f"{signal.name}: {signal.error or 'nothing holds it'}"
    if signal.verdict is Verdict.ERROR:
        return f"{signal.name}: could not be measured ({signal.error or 'no reason was given'})"
    if signal.absolute_threshold > 0 and signal.absolute_log_e >= signal.absolute_threshold:
        return (
            f"{signal.name}: {_percent(signal.canary)} of {signal.canary.n}, above its objective, "
            f"e = {e_value(signal.absolute_log_e)} of {e_value(signal.absolute_threshold)}"
        )
    rates = f"canary {_percent(signal.canary)} against stable {_percent(signal.stable)}"
    told = f"{signal.name}: {rates}, e = {e_value(signal.log_e)} of {e_value(signal.threshold)}, n = {signal.canary.n}"
    if signal.verdict is Verdict.FAILED:
        return told
    if signal.verdict is not Verdict.SUCCESSFUL and signal.forward_threshold > 0:
        told += f", for it {e_value(signal.forward_log_e)} of {e_value(signal.forward_threshold)}"
    if signal.verdict is not Verdict.SUCCESSFUL and signal.requests_to_decision is not None:
        told += f", about {signal.requests_to_decision} more requests"
    return told


def e_value(log_e: float) -> str:
    """An e-value from its natural logarithm: a number up to a million, then a power of e.

    >>> e_value(math.log(37.2)), e_value(-1.0), e_value(20.0)
    ('37', '0.37', 'e^20')
    """
    if log_e > _LARGEST_E:
        return f"e^{log_e:.0f}"
    value = math.exp(log_e)
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _percent(counts: Counts) -> str:
    return rate(counts.events / counts.n) if counts.n else "of no request yet"


def rate(value: float) -> str:
    """A rate in percent with as many digits as tell something: `4.8 %`, `0.03 %`, `12 %`."""
    percent = 100.0 * value
    if percent == 0 or percent >= 10:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 else f"{percent:.2g} %"


def describe_effect(found: Comparison) -> str:
    """One signal of an A/B report.

    For instance `error: canary 2 of 500 (0.4 %), stable 5 of 510 (1 %), 0.41 times stable's rate (0.05 to 2.9)`.
    """
    arms = ", ".join(
        f"{arm} {c.events} of {c.n}{f' ({rate(c.events / c.n)})' if c.n else ''}"
        for arm, c in (("canary", found.canary), ("stable", found.stable))
    )
    if found.ratio is None:
        return f"{found.name}: {arms}, no effect can be told yet"
    low = "0" if found.ratio_low is None else f"{found.ratio_low:.2g}"
    high = "any" if found.ratio_high is None else f"{found.ratio_high:.2g}"
    return f"{found.name}: {arms}, {found.ratio:.2g} times stable's rate ({low} to {high}), e = {e_value(found.log_e)}"


def describe_mismatch(found: SampleRatio) -> str:
    """Why a sample ratio blocks."""
    return (
        f"sessions do not divide as the weights say ({found.canary} on the canary, {found.stable} on stable, "
        f"e = {e_value(found.log_e)} of {e_value(found.threshold)}): something drops units of one arm, so the "
        "evidence can't be trusted; find out what, then `promote` or `abort` by hand"
    )


def describe_similarity(found: Similarity) -> str:
    """How alike a shadow's answers are, or nothing when that was not measured."""
    if found.to_stable is None:
        return ""
    own = f", stable's to its own {found.baseline:.2f}" if found.baseline is not None else ""
    return f"; likeness to stable's answers {found.to_stable:.2f} over {found.pairs} pairs{own}"
