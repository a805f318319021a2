"""Service levels as objects: what counts, what is promised, and how fast a budget may burn. Pure.

An indicator is the share of counted requests that were good. Burn rates and their windows are those of Google's
Site Reliability Workbook, chapter 5, "Alerting on SLOs": the budget of a period is `1 - objective`; at a burn rate of
14.4 two percent of a 30 days' budget are gone in an hour. An alert needs both of its windows to burn: the long one says
that it matters, the short one that it still goes on.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from monitoring.aggregates import FIRST_TOKEN_BUCKETS_S
from monitoring.measurements import RequestOutcome

Ratio = Annotated[float, Field(gt=0.0, lt=1.0)]

DAY_S = 86_400
WINDOW_NAMES = {300: "5m", 1_800: "30m", 3_600: "1h", 21_600: "6h", 259_200: "3d"}
"""Every window that is recorded, in seconds, with its name in Prometheus."""


class Treatment(enum.StrEnum):
    """What an outcome is to a service level."""

    GOOD = "good"
    BAD = "bad"
    EXCLUDED = "excluded"
    """Neither: it is in no numerator and in no denominator."""


class Severity(enum.StrEnum):
    """Who is told: somebody now, or somebody during working hours."""

    PAGE = "page"
    TICKET = "ticket"


class Level(BaseModel):
    """Base of what is written down here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BurnAlert(Level):
    """Alert when the budget burns at `factor` times the even rate, over both windows."""

    factor: Annotated[float, Field(gt=0.0)]
    long_s: int
    short_s: int
    severity: Severity

    @model_validator(mode="after")
    def _windows_are_recorded(self) -> Self:
        for window_s in (self.long_s, self.short_s):
            if window_s not in WINDOW_NAMES:
                raise ValueError(f"a window of {window_s} s is not recorded; take one of {sorted(WINDOW_NAMES)}")
        if self.short_s >= self.long_s:
            raise ValueError(f"the short window, {self.short_s} s, must be shorter than {self.long_s} s")
        return self

    def threshold(self, objective: float) -> float:
        """The share of bad requests above which it burns that fast.

        >>> BurnAlert(factor=14.4, long_s=3600, short_s=300, severity=Severity.PAGE).threshold(0.999)
        0.0144
        """
        return round(self.factor * (1.0 - objective), 9)


BURN_ALERTS = (
    BurnAlert(factor=14.4, long_s=3_600, short_s=300, severity=Severity.PAGE),
    BurnAlert(factor=6.0, long_s=21_600, short_s=1_800, severity=Severity.PAGE),
    BurnAlert(factor=1.0, long_s=3 * DAY_S, short_s=21_600, severity=Severity.TICKET),
)

OUTCOMES: Mapping[RequestOutcome, Treatment] = {
    RequestOutcome.OK: Treatment.GOOD,
    RequestOutcome.RETRIED: Treatment.EXCLUDED,
    RequestOutcome.ERROR: Treatment.BAD,
    RequestOutcome.TIMEOUT: Treatment.BAD,
    RequestOutcome.CLIENT_ERROR: Treatment.EXCLUDED,
    RequestOutcome.CLIENT_ABORT: Treatment.EXCLUDED,
    RequestOutcome.BLOCKED: Treatment.EXCLUDED,
}
"""A request that stable saved after the canary failed is no failure for its client and no credit to the version."""

BAD_REJECTIONS = ("model_not_ready", "guardrail_unavailable")
"""Rejections that are our failure. All others are excluded: the caller's fault, a limit, a guardrail's block, or load
that was shed on purpose, which has an alert of its own."""


class Availability(Level):
    """Requests that were answered, of those that should have been.

    Attributes:
        objective: The share that is promised.
        least_requests: Fewer counted requests than this in the long window are no ground for an alert.
        outcomes: Every outcome and what it counts as.
        bad_rejections: Reasons of rejections before any engine that count as bad; all others are excluded.
    """

    objective: Ratio = 0.999
    least_requests: Annotated[int, Field(ge=1)] = 100
    outcomes: Mapping[RequestOutcome, Treatment] = Field(default_factory=lambda: dict(OUTCOMES))
    bad_rejections: tuple[str, ...] = BAD_REJECTIONS

    @field_validator("outcomes")
    @classmethod
    def _names_every_outcome(cls, given: Mapping[RequestOutcome, Treatment]) -> Mapping[RequestOutcome, Treatment]:
        missing = [o.value for o in RequestOutcome if o not in given]
        if missing:
            raise ValueError(f"outcomes {', '.join(missing)} are not named; call each good, bad or excluded")
        for needed in (Treatment.GOOD, Treatment.BAD):
            if needed not in given.values():
                raise ValueError(f"no outcome is {needed}; a service level needs at least one")
        return given

    def treated_as(self, treatment: Treatment) -> tuple[str, ...]:
        """The outcomes treated so, in their own order."""
        return tuple(o.value for o in RequestOutcome if self.outcomes[o] is treatment)

    def counts(self, outcomes: Mapping[str, int], rejections: Mapping[str, int]) -> tuple[int, int]:
        """Count (good, bad) requests.

        Args:
            outcomes: Requests by outcome.
            rejections: Rejections by reason.
        """
        good = sum(outcomes.get(o, 0) for o in self.treated_as(Treatment.GOOD))
        bad = sum(outcomes.get(o, 0) for o in self.treated_as(Treatment.BAD))
        return good, bad + sum(rejections.get(r, 0) for r in self.bad_rejections)


class FirstToken(Level):
    """Streams whose first output came within `within_s`, of all that had one.

    `within_s` must be a bound of the histogram's buckets: between bounds nobody knows how many there were.
    """

    objective: Ratio = 0.95
    within_s: float = 2.5
    least_requests: Annotated[int, Field(ge=1)] = 100

    @field_validator("within_s")
    @classmethod
    def _is_a_bound(cls, given: float) -> float:
        if given not in FIRST_TOKEN_BUCKETS_S:
            bounds = ", ".join(f"{b:g}" for b in FIRST_TOKEN_BUCKETS_S)
            raise ValueError(f"{given:g} s is no bound of the histogram, so it can't be measured; take one of {bounds}")
        return given

    @property
    def bucket(self) -> str:
        """The value of the label `le`, as the gateway writes it."""
        return repr(float(self.within_s))


class ServiceLevels(Level):
    """What is promised to users of every model, and when somebody is told that it is being broken."""

    availability: Availability = Availability()
    first_token: FirstToken = FirstToken()
    burn_alerts: tuple[BurnAlert, ...] = BURN_ALERTS

    @property
    def windows_s(self) -> tuple[int, ...]:
        """Every window that an alert needs, and five minutes for the dashboards, ascending."""
        found = {300} | {w for alert in self.burn_alerts for w in (alert.long_s, alert.short_s)}
        return tuple(sorted(found))


def burn_rate(good: int, bad: int, objective: float) -> float | None:
    """How many times faster than evenly the budget burns; None without a counted request.

    >>> round(burn_rate(985, 15, 0.999), 1)
    15.0
    """
    total = good + bad
    return None if total == 0 else (bad / total) / (1.0 - objective)


def fires(
    alert: BurnAlert, objective: float, least_requests: int, long: tuple[int, int], short: tuple[int, int]
) -> bool:
    """Whether an alert fires on (good, bad) of its long and its short window: what its rule says, in plain numbers."""
    if sum(long) < least_requests:
        return False
    rates = (burn_rate(*long, objective), burn_rate(*short, objective))
    return all(rate is not None and rate > alert.factor for rate in rates)
