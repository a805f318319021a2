"""What a decision does. Pure values; status.py folds them, actuate.py makes the world follow the status."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import Field

from rollout.engine_specs import EngineSpec
from rollout.specs import RolloutSpec
from serving.specs import Digest, Frozen, RevisionSpec, object_name

DASHBOARD_PORT = 8265
"""Of Ray's dashboard in a cluster."""


class Deployed(Frozen):
    """A revision with the capacity it runs at, and the text of its guardrail policy, so that the log needs no registry.

    `policy` is "" where the version brings none; its SHA-256 is the revision's `policy_sha256`.
    """

    revision: RevisionSpec
    replicas: int = 1
    engine: EngineSpec = EngineSpec()
    """What its replicas need and where they run, as the spec that brought it said."""
    namespace: str = ""
    """Where on a cluster it lives; empty on the local platform."""
    longest_stream_s: float = 30.0
    """How long its answers may take, as that spec's `drainDeadline` said."""
    policy: str = ""

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

    def scaled(self, replicas: int, most: int | None) -> Deployed:
        """The same revision with another capacity."""
        engine = self.engine.model_copy(update={"min_replicas": replicas, "max_replicas": most})
        return self.model_copy(update={"replicas": replicas, "engine": engine})

    @property
    def endpoints(self) -> str:
        """Where gateways learn which engines answer for it (`RevisionTraffic.endpoints`)."""
        if not self.namespace:
            return ""
        if self.engine.workload_ref is not None:
            ref = self.engine.workload_ref
            return f"service://{self.namespace}/{ref.service_name}:{ref.port}"
        return f"ray://{object_name(self.application)}-head-svc.{self.namespace}.svc:{DASHBOARD_PORT}"


class Trigger(enum.StrEnum):
    """Why a canary was taken back: the closed set of `tidegate_rollbacks_total{trigger}`."""

    SIGNAL = "signal"
    SMOKE = "smoke"
    OPERATOR = "operator"
    ABORT = "abort"
    NEVER_READY = "never-ready"
    ENGINE_LOST = "engine-lost"
    INSUFFICIENT = "insufficient-evidence"
    SUPERSEDED = "superseded"


class Start(Frozen):
    """Begin a rollout: run the target beside stable, without traffic.

    `judge` is the text of the policy that scores both arms until the rollout ends, "" where no signal needs one.
    """

    type: Literal["start"] = "start"
    rollout: str
    spec: RolloutSpec
    target: Deployed
    salt: str
    judge: str = ""


class SetStep(Frozen):
    """Give the canary this step's weight (percent). `soaking` marks the soak, `part` which part of it.

    `exposed` is how many requests the canary had had before: what a step's least number of requests counts from.
    """

    type: Literal["set-step"] = "set-step"
    step: int
    weight: Annotated[int, Field(ge=1, le=99)]
    soaking: bool = False
    part: int = 0
    exposed: int = 0


class Preview(Frozen):
    """Blue-green: the candidate answers testers and the smoke suite, and nobody else."""

    type: Literal["preview"] = "preview"


class Mirror(Frozen):
    """Shadow: copy this part of stable's requests (percent) to the canary; its answers reach nobody."""

    type: Literal["mirror"] = "mirror"
    percent: Annotated[int, Field(ge=1, le=100)]


class MakeRoom(Frozen):
    """Without spare capacity: the canary gets this many replicas, and stable as many fewer."""

    type: Literal["make-room"] = "make-room"
    replicas: Annotated[int, Field(ge=1)]


class Promote(Frozen):
    """Make the canary stable with all traffic; keep the old stable warm for the rollback window.

    With `watch` it goes on being judged through that window: it got all traffic without having been compared.
    """

    type: Literal["promote"] = "promote"
    watch: bool = False


class Withdraw(Frozen):
    """Take the traffic from the canary at once; `condemn` quarantines its digest until `ack`.

    `keep` is the part (percent) that stable's ready replicas can't take yet: the canary keeps at most that, and
    `Shift` lowers it.
    """

    type: Literal["withdraw"] = "withdraw"
    trigger: Trigger
    condemn: bool
    keep: Annotated[int, Field(ge=0, le=100)] = 0


class SwitchBack(Frozen):
    """Give the traffic to a revision that still runs at once, and condemn the one that had it.

    `to` names it: the previous one when left out, or one that is being retired and is wanted again. `keep` is what
    it can't take yet.
    """

    type: Literal["switch-back"] = "switch-back"
    trigger: Trigger
    condemn: bool = True
    to: Digest | None = None
    keep: Annotated[int, Field(ge=0, le=100)] = 0


class Shift(Frozen):
    """Lower what a revision that was taken back still carries to `weight` (percent). Never raises it; 0 retires it."""

    type: Literal["shift"] = "shift"
    weight: Annotated[int, Field(ge=0, le=99)]


class Degrade(Frozen):
    """Something is wrong and there is no way back: tell it, and change nothing."""

    type: Literal["degrade"] = "degrade"


class Pause(Frozen):
    """Stay at the present weight until resumed. Safety goes on working.

    `at_end`: all that the strategy asks for is there, and what follows is `promote` or `abort`, said by a person.
    """

    type: Literal["pause"] = "pause"
    at_end: bool = False


class Resume(Frozen):
    """Go on after a pause."""

    type: Literal["resume"] = "resume"


class EndWatch(Frozen):
    """The rollback window is over: the new stable is not judged any more."""

    type: Literal["end-watch"] = "end-watch"


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


class Scale(Frozen):
    """Stable gets this many replicas, and may grow to `most`."""

    type: Literal["scale"] = "scale"
    replicas: Annotated[int, Field(ge=1, le=64)]
    most: Annotated[int, Field(ge=1, le=64)] | None = None


class Undeploy(Frozen):
    """The model is wanted no more: nothing of it gets new requests, and all that runs is drained and removed."""

    type: Literal["undeploy"] = "undeploy"


Action = Annotated[
    Start
    | SetStep
    | Preview
    | Mirror
    | MakeRoom
    | Promote
    | Withdraw
    | SwitchBack
    | Shift
    | Degrade
    | Pause
    | Resume
    | EndWatch
    | RetirePrevious
    | Remove
    | Acknowledge
    | Scale
    | Undeploy,
    Field(discriminator="type"),
]
