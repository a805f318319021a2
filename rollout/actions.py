"""What a decision does. Pure values; status.py folds them, actuate.py makes the world follow the status."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import Field

from rollout.specs import RolloutSpec
from serving.specs import Digest, Frozen, RevisionSpec


class Deployed(Frozen):
    """A revision with the capacity it runs at."""

    revision: RevisionSpec
    replicas: int = 1

    @property
    def digest(self) -> str:
        """The revision's digest."""
        return self.revision.digest

    @property
    def version(self) -> str:
        """The revision's semantic version."""
        return self.revision.version

    @property
    def application(self) -> str:
        """The revision's Serve application."""
        return self.revision.application


class Trigger(enum.StrEnum):
    """Why a canary was taken back: the closed set of `tidegate_rollbacks_total{trigger}`."""

    SIGNAL = "signal"
    OPERATOR = "operator"
    ABORT = "abort"
    NEVER_READY = "never-ready"
    ENGINE_LOST = "engine-lost"
    INSUFFICIENT = "insufficient-evidence"
    SUPERSEDED = "superseded"


class Start(Frozen):
    """Begin a rollout: run the target beside stable, without traffic."""

    type: Literal["start"] = "start"
    rollout: str
    spec: RolloutSpec
    target: Deployed
    salt: str


class SetStep(Frozen):
    """Give the canary this step's weight (percent). A step at 100 - holdback with `soaking` is the soak."""

    type: Literal["set-step"] = "set-step"
    step: int
    weight: Annotated[int, Field(ge=1, le=99)]
    soaking: bool = False


class Promote(Frozen):
    """Make the canary stable with all traffic; keep the old stable warm for the rollback window."""

    type: Literal["promote"] = "promote"


class Withdraw(Frozen):
    """Take all traffic from the canary at once; `condemn` quarantines its digest until `ack`."""

    type: Literal["withdraw"] = "withdraw"
    trigger: Trigger
    condemn: bool


class SwitchBack(Frozen):
    """Give all traffic to the warm previous revision at once, and condemn the one that had it."""

    type: Literal["switch-back"] = "switch-back"
    trigger: Trigger
    condemn: bool = True


class Pause(Frozen):
    """Stay at the present weight until resumed. Safety goes on working."""

    type: Literal["pause"] = "pause"


class Resume(Frozen):
    """Go on after a pause."""

    type: Literal["resume"] = "resume"


class RetirePrevious(Frozen):
    """The rollback window is over: drain the revision that was kept warm."""

    type: Literal["retire-previous"] = "retire-previous"


class Remove(Frozen):
    """A retired revision has no streams left, or its deadline has passed: stop its workload."""

    type: Literal["remove"] = "remove"
    digest: Digest
    streams_cut: int = 0


class Acknowledge(Frozen):
    """Somebody has looked at a condemned revision: it may be rolled out again."""

    type: Literal["acknowledge"] = "acknowledge"
    digest: Digest


Action = Annotated[
    Start | SetStep | Promote | Withdraw | SwitchBack | Pause | Resume | RetirePrevious | Remove | Acknowledge,
    Field(discriminator="type"),
]
