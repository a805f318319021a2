"""What gateways tell the controller, and how the two talk. Pure; the contract between serving and rollout.

Over one WebSocket that the gateway dials, JSON messages, each with a `type`:

    gateway -> controller    hello, ack, events, totals, usage
    controller -> gateway    table, keys, accepted, usage-accepted, heartbeat, refused

Events are rare (a bad outcome, or a score), travel one by one at once and in order, and are numbered by
(gateway, boot, sequence); the gateway keeps them until `accepted` names their number, and sends them again after
a reconnect. Totals are cumulative by (gateway, boot, model, rollout, digest, weight), so the newest one replaces the
others and doubled or late messages cost nothing.

Settlement (analysis.md, section 2). A gateway numbers admissions of a model 1, 2, 3, ... over both arms.
`settled_through` is the highest number such that every admission up to it has its outcome. Whatever lets a
rollout go *forward* uses only units at or below it; a rollback may use an event at once.
"""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter

from serving.accounting import UsageRow
from serving.keys import KeyRecord, Quota
from serving.specs import Digest, Frozen
from serving.traffic import Role, TrafficTable

SignalName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}(/[a-z0-9-]{1,40})?$")]
"""One of `Signal`, or a name with a family: `guardrail/toxicity`, `score/nll`, `prometheus/...`."""


class Signal(enum.StrEnum):
    """What can go wrong with an answer, as every gateway measures it on both arms without being told to."""

    ERROR = "error"
    """5xx, engine failure, time-out, or a stream cut before its end."""
    ENGINE_4XX = "engine-4xx"
    """A 4xx that the engine gave."""
    SLOW_TOKENS = "slow-tokens"
    """Time per output token above stable's running quantiles, see `Event.level`."""
    SLOW_FIRST_TOKEN = "slow-first-token"  # noqa: S105 - a token of text
    """Time to first token above stable's running quantiles, see `Event.level`."""
    LENGTH_STOP = "length-stop"
    """The answer ended because it reached its length limit."""
    REPETITION = "repetition"
    """The answer repeats itself."""
    EMPTY = "empty"
    """A finished answer without any content."""
    REFUSAL = "refusal"
    """The answer declines to answer (`monitoring/refusals.py`), or the engine says that it does."""
    LANGUAGE_MISMATCH = "language-mismatch"
    """Question and answer are clearly written in different scripts (`monitoring/languages.py`)."""
    INVALID_JSON = "invalid-json"
    """JSON was asked for, and the answer, though not cut, is none."""
    CLIENT_ABORT = "client-abort"
    """The client went away before the end."""


THUMBS_DOWN = "feedback/thumbs-down"
"""The signal of votes against an answer. They come when their units have long settled: they take back, and pass nothing
(analysis.md, section 2)."""

LEVELS = ("p50", "p80", "p95", "p99")
"""The quantiles of stable's latency at which slow events are judged."""


UNITS = ":units"
"""`guardrail/toxicity:units` in `Total.settled_events` counts the settled units on which this signal was measured."""


class Cause(enum.StrEnum):
    """Why an error event happened, as far as the gateway can tell."""

    VERSION = "version"
    """The engine answered, and answered badly."""
    ENDPOINT_LOST = "endpoint-lost"
    """The replica's connection refused or broke: the machine may be at fault, so it condemns nobody by itself."""
    TIMEOUT = "timeout"
    """Nothing arrived in time."""


class Event(Frozen):
    """One event of one unit: intention to treat, so the arm is the *assigned* one and the attempt the first.

    Times are wall-clock seconds of the gateway. `weight` is the canary's in percent, as in force at admission. 100
    marks an event of a request that had no choice of arm, told because the table asks to *watch* (`ModelTraffic`):
    evidence for an absolute objective, never for a comparison. `session` is a keyed hash, or None when the unit is
    a single request. `level` is the quantile for latency signals, "" for the others.

    A mirrored pair is a unit at weight 50: it makes an event of a signal only when exactly one of its two answers
    shows it, and `arm` says which one (`paired`). A scored signal tells one event per scored answer with its
    badness as `score` (higher is worse, any unit) and the rates at which each arm's answers are scored.
    """

    sequence: Annotated[int, Field(ge=1)]
    model: str
    rollout: str
    signal: SignalName
    level: str = ""
    cause: Cause = Cause.VERSION
    arm: Role
    digest: Digest
    weight: Annotated[int, Field(gt=0, le=100)]
    paired: bool = False
    score: float | None = None
    canary_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    stable_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    session: str | None = None
    request_index: Annotated[int, Field(ge=1)] = 1
    admission: Annotated[int, Field(ge=1)]
    admitted_at: float
    settled_at: float


class Total(Frozen):
    """Cumulative counts of one revision of one model at one weight within one rollout (or outside any, "").

    `admitted` counts units that carry evidence, `forced` those that do not (no choice of arm was possible, the
    version was pinned, or a mirrored pair was given up). `settled` counts evidence units with an outcome and all of
    whose predecessors have one too, `settled_events` those of them that had an event, by `signal` or `signal:level`;
    where not every answer is measured, as with `guardrail/...`, `signal:units` says how many were (`UNITS`).
    `first_sights` counts units whose session was seen for the first time (a request without a session is its own): what
    the sample-ratio check looks at. Mirrored pairs are counted on both revisions at weight 50; `similarity_*` sums,
    over pairs, how alike canary's answer is to stable's, `baseline_*` how alike a second answer of stable's is to its
    first.
    """

    model: str
    rollout: str
    digest: str
    role: Role
    weight: int
    admitted: int = 0
    forced: int = 0
    first_sights: int = 0
    settled: int = 0
    settled_events: dict[str, int] = Field(default_factory=dict)
    retried_on_stable: int = 0
    in_flight: int = 0
    similarity_n: int = 0
    similarity_sum: float = 0.0
    baseline_n: int = 0
    baseline_sum: float = 0.0
    first_admitted_at: float | None = None
    last_admitted_at: float | None = None


class Hello(Frozen):
    """First message of a connection. `boot` is new for each start of a gateway process."""

    type: Literal["hello"] = "hello"
    gateway: str
    boot: str
    fence: int = 0
    sequence: int = 0


class Ack(Frozen):
    """The gateway has applied the table of this generation (observed, where the controller only desired)."""

    type: Literal["ack"] = "ack"
    fence: int
    sequence: int
    applied_at: float


class Events(Frozen):
    """Bad outcomes, oldest first."""

    type: Literal["events"] = "events"
    events: tuple[Event, ...]


class Totals(Frozen):
    """All cumulative counters that changed, with the settlement watermark and in-flight count per model.

    `in_flight` is by revision digest: answers under way now, whatever their rollout.
    """

    type: Literal["totals"] = "totals"
    sent_at: float
    totals: tuple[Total, ...]
    settled_through: dict[str, int] = Field(default_factory=dict)
    in_flight: dict[str, int] = Field(default_factory=dict)
    endpoints_ready: dict[str, int] = Field(default_factory=dict)
    """By application: endpoints that this gateway could use now."""


class UsageReport(Frozen):
    """Tokens and requests by key, cumulative: see serving/accounting.py. Sent again until its number is accepted."""

    type: Literal["usage"] = "usage"
    number: Annotated[int, Field(ge=1)]
    rows: tuple[UsageRow, ...]


class TablePush(Frozen):
    """The table to obey from now on."""

    type: Literal["table"] = "table"
    table: TrafficTable


class KeysPush(Frozen):
    """All keys of the data plane, hashed. Replaces what the gateway had; a key that is not listed is no key."""

    type: Literal["keys"] = "keys"
    keys: tuple[KeyRecord, ...]
    quotas: tuple[Quota, ...] = ()
    """What the keys of a namespace may use together; one that is not listed has none."""


class UsageAccepted(Frozen):
    """The usage report of this number is in the store."""

    type: Literal["usage-accepted"] = "usage-accepted"
    number: int


class Accepted(Frozen):
    """Events up to this sequence are in the log; the gateway may forget them."""

    type: Literal["accepted"] = "accepted"
    through: int


class Heartbeat(Frozen):
    """The controller is alive and leads: renews the lease of the canary's weight."""

    type: Literal["heartbeat"] = "heartbeat"
    fence: int


class Refused(Frozen):
    """The controller does not lead or could not read what was sent; try again later."""

    type: Literal["refused"] = "refused"
    reason: str


FromGateway = Annotated[Hello | Ack | Events | Totals | UsageReport, Field(discriminator="type")]
FromController = Annotated[
    TablePush | KeysPush | Accepted | UsageAccepted | Heartbeat | Refused, Field(discriminator="type")
]

FROM_GATEWAY: TypeAdapter[FromGateway] = TypeAdapter(FromGateway)
FROM_CONTROLLER: TypeAdapter[FromController] = TypeAdapter(FromController)
