"""What gateways tell the controller, and how the two talk. Pure; the contract between serving and rollout.

Over one WebSocket that the gateway dials, JSON messages, each with a `type`:

    gateway -> controller    hello, ack, events, totals
    controller -> gateway    table, accepted, heartbeat, refused

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

from pydantic import Field, TypeAdapter

from serving.specs import Digest, Frozen
from serving.traffic import Role, TrafficTable


class Signal(enum.StrEnum):
    """What can go wrong with an answer. A closed set: every gateway measures all of them on both arms."""

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
    CLIENT_ABORT = "client-abort"
    """The client went away before the end."""


LEVELS = ("p50", "p80", "p95", "p99")
"""The quantiles of stable's latency at which slow events are judged."""


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

    Times are wall-clock seconds of the gateway. `weight` is the canary's in percent, as in force at admission;
    0 or 100 (a forced request) never makes an event. `session` is a keyed hash, or None when the unit is a
    single request. `level` is the quantile for latency signals, "" for the others.
    """

    sequence: Annotated[int, Field(ge=1)]
    model: str
    rollout: str
    signal: Signal
    level: str = ""
    cause: Cause = Cause.VERSION
    arm: Role
    digest: Digest
    weight: Annotated[int, Field(gt=0, lt=100)]
    session: str | None = None
    request_index: Annotated[int, Field(ge=1)] = 1
    admission: Annotated[int, Field(ge=1)]
    admitted_at: float
    settled_at: float


class Total(Frozen):
    """Cumulative counts of one revision of one model at one weight within one rollout (or outside any, "").

    `admitted` counts units that carry evidence, `forced` those that do not (no choice of arm was possible, or
    the version was pinned). `settled` counts evidence units with an outcome and all of whose predecessors have
    one too, `settled_events` those of them that had an event, by `signal` or `signal:level`.
    """

    model: str
    rollout: str
    digest: str
    role: Role
    weight: int
    admitted: int = 0
    forced: int = 0
    settled: int = 0
    settled_events: dict[str, int] = Field(default_factory=dict)
    retried_on_stable: int = 0
    in_flight: int = 0
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


class TablePush(Frozen):
    """The table to obey from now on."""

    type: Literal["table"] = "table"
    table: TrafficTable


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


FromGateway = Annotated[Hello | Ack | Events | Totals, Field(discriminator="type")]
FromController = Annotated[TablePush | Accepted | Heartbeat | Refused, Field(discriminator="type")]

FROM_GATEWAY: TypeAdapter[FromGateway] = TypeAdapter(FromGateway)
FROM_CONTROLLER: TypeAdapter[FromController] = TypeAdapter(FromController)
