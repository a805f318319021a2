"""Which requests are mirrored, what is copied of them, and what a pair of answers says. Pure; chance is an argument.

Some of stable's requests are sent a second time: to the canary, which gives a *pair* of answers to one request, or by
the coin to stable once more, which gives the *baseline*: how alike two answers of one version are to each other. Under
the null hypothesis the two answers of a pair could be exchanged, so given that exactly one of them shows a signal it
is the canary's with probability 1/2: a unit at weight 50 (analysis page, section 5).

That holds only while both are asked the same, at the same time, and judged alike. Therefore

- whether a request is mirrored is decided before anything of its answer is known: by a keyed hash, by what it asks,
  and by what is under way;
- the copy leaves when the request does, not after its answer: an outage finds both, and a request that failed is as
  likely to have a copy as one that did not;
- what would have an effect outside is not asked twice. `store` has none on the answer, so it is stripped. A background
  job, server-side tools, a conversation that the engine keeps: without them the question would be another one, and a
  canary must not be judged by that, so such a request has no copy;
- both answers have the same time limit, counted from the same moment.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import orjson
from pydantic import ConfigDict

from serving.errors import ServingError
from serving.openai_protocol import Operation
from serving.outcomes import Cause, Signal, SignalName
from serving.queueing import SPARE_SHARE
from serving.traffic import Role

PAIRED_WEIGHT = 50
"""The weight that a pair's evidence is told under, in percent."""

MIRRORED_OPERATIONS = (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)

FLOOR = 4
"""Mirrors that are allowed in any case, so that quiet traffic is mirrored too."""

_CLIENT_SIDE_TOOLS = frozenset(("function", "custom", "local_shell", "apply_patch", "computer_use_preview"))
"""Tools that the client runs. Any other kind is taken to run where the engine is, and to have effects there."""

_BOUND_FIELDS = ("previous_response_id", "conversation", "background", "web_search_options", "kv_transfer_params")
"""Fields that tie a request to what a server keeps or does; when one is set, nothing may be asked twice."""


class InvalidMirroring(ServingError, ValueError):
    """Requests can't be mirrored like this."""


@dataclass(frozen=True, slots=True)
class MirrorSettings:
    """How much may be mirrored at one gateway. How many of a model's requests are, its traffic table says.

    Raises:
        InvalidMirroring: a number is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    most_in_flight: int = 32
    """Mirrored requests under way, over all models; further ones are dropped. Bounds their memory too: each keeps two
    answers of at most about 300 kB and a body. 0 switches mirroring off."""
    in_flight_share: float = 1.0
    """Of a model's mirrors beside stable's answers under way. At 1 a canary as fast as stable can be mirrored whole,
    and copies don't pile up on a slower one; 4 are always allowed."""
    timeout_s: float = 120.0
    """What is not answered by then, counted from the request, is a time-out: on either side of a pair, or a slow stable
    would be held against nobody. The client's own limit counts when it is shorter."""
    baseline_share: float = 0.2
    """The odds of the coin: of mirrored requests 1 in 5 goes to stable again. A mean of values in [0, 1] is known to
    within 0.05 after some 100 of them; everything else is worth more as a pair."""
    most_body_bytes: int = 1024 * 1024
    """A request with a longer body is not mirrored."""

    def __post_init__(self) -> None:
        bounds = (self.most_in_flight, self.most_body_bytes, self.in_flight_share, self.baseline_share)
        if min(bounds) < 0 or self.timeout_s <= 0 or self.baseline_share > 1:
            raise InvalidMirroring(f"{self}: timeout_s is above 0, baseline_share in 0 to 1, the others at least 0")


def drawn(u: float, percent: int, baseline_share: float) -> Role | None:
    """Where the copy of a request goes: to the canary, by the coin to stable again, or None for no copy.

    >>> drawn(0.099, 10, 0.2), drawn(0.019, 10, 0.2), drawn(0.1, 10, 0.2)
    (<Role.CANARY: 'canary'>, <Role.STABLE: 'stable'>, None)

    Args:
        u: Uniform in [0, 1), a keyed hash of the request.
        percent: Of requests that are mirrored.
        baseline_share: Of those, the part that goes to stable.
    """
    if u * 100.0 >= percent:
        return None
    return Role.STABLE if u * 100.0 < percent * baseline_share else Role.CANARY


def within_budget(mirrors: int, of_model: int, stable_in_flight: int, settings: MirrorSettings) -> bool:
    """Whether one more mirror may be under way.

    Args:
        mirrors: That are now, of all models.
        of_model: Of this model.
        stable_in_flight: Stable's answers under way.
        settings: The bounds.
    """
    return mirrors < settings.most_in_flight and of_model < max(FLOOR, settings.in_flight_share * stable_in_flight)


def has_room(outstanding: int, endpoints: int, endpoint_concurrency: int | None) -> bool:
    """Whether a revision's endpoints have room to spare: fewer than half of what they may have is under way there.

    Args:
        outstanding: Requests under way at all of them.
        endpoints: How many take requests.
        endpoint_concurrency: What each may have; None for any number.
    """
    return endpoint_concurrency is None or outstanding < SPARE_SHARE * endpoint_concurrency * endpoints


def mirrored_body(operation: Operation, body: bytes, fields: Mapping[str, Any]) -> bytes | None:
    """The body of a request's copy: the same bytes where nothing has to go. None when it can't be asked twice.

    >>> mirrored_body(Operation.CHAT, b'{"store": true}', {"store": True})
    b'{}'

    Args:
        operation: What is asked for.
        body: As the client sent it.
        fields: The same, parsed.
    """
    if operation not in MIRRORED_OPERATIONS or any(fields.get(name) not in (None, False) for name in _BOUND_FIELDS):
        return None
    if not all(map(_runs_at_the_client, _listed(fields.get("tools")))):
        return None
    store = fields.get("store")
    if operation is Operation.RESPONSES:
        if store is False:
            return body
        changed = {**fields, "store": False}  # unsaid, it means yes
    else:
        if not store:
            return body
        changed = {name: value for name, value in fields.items() if name != "store"}
    try:
        return orjson.dumps(changed)
    except TypeError:  # an integer that JSON allows and orjson does not
        return None


def _listed(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else ()


def _runs_at_the_client(tool: object) -> bool:
    return isinstance(tool, dict) and tool.get("type", "function") in _CLIENT_SIDE_TOOLS


class MirrorResult(enum.StrEnum):
    """What became of a request that was to be mirrored. A closed set: it is a metric's label."""

    SENT = "sent"
    """The copy was answered, with a 4xx perhaps."""
    FAILED = "failed"
    """The copy was sent, and no answer came of it."""
    DROPPED = "dropped"
    """Not sent: too much was under way."""
    SKIPPED = "skipped"
    """Not sent: it can't be asked twice."""
    ABANDONED = "abandoned"
    """Given up: the client went away, the table does not ask for mirrors any more, or the gateway is stopping."""


class Shown(NamedTuple):
    """What one answer shows."""

    signals: tuple[Signal, ...] = ()
    cause: Cause = Cause.VERSION
    """Of an error."""
    text: str | None = None
    """What it says; None for an error, and for an answer that can't be read."""


class Discordance(NamedTuple):
    """A signal that exactly one of a pair's answers shows."""

    arm: Role
    signal: SignalName
    cause: Cause


_OUTRIGHT = (Signal.ERROR, Signal.ENGINE_4XX)


def discordances(stable: Shown, canary: Shown) -> tuple[Discordance, ...]:
    """The events of a pair.

    What is read off a text counts only where both answers have one: an error has none, and beside it every length stop
    of the other would be an event, so that the version with fewer errors would seem to have more length stops.
    """
    both_read = stable.text is not None and canary.text is not None
    found: list[Discordance] = []
    for signal in Signal:
        on_stable, on_canary = signal in stable.signals, signal in canary.signals
        if on_stable is on_canary or not (both_read or signal in _OUTRIGHT):
            continue
        if on_canary:
            found.append(Discordance(Role.CANARY, signal, canary.cause))
        else:
            found.append(Discordance(Role.STABLE, signal, stable.cause))
    return tuple(found)


def differing(
    names: Iterable[SignalName], on_stable: Collection[str], on_canary: Collection[str]
) -> tuple[Discordance, ...]:
    """The same for signals that were measured on both answers: who alone shows one."""
    return tuple(
        Discordance(Role.CANARY if name in on_canary else Role.STABLE, name, Cause.VERSION)
        for name in names
        if (name in on_stable) is not (name in on_canary)
    )


T = TypeVar("T")


class Pairing(Generic[T]):
    """The two halves of a pair as they become known: over exactly once, as complete or as given up.

    Of each half the first word counts. Nothing that comes after the end changes anything.
    """

    __slots__ = ("canary", "ended", "stable")

    def __init__(self) -> None:
        self.stable: T | None = None
        self.canary: T | None = None
        self.ended = False

    def tell(self, half: Role, word: T) -> bool:
        """Take the outcome of one half. Returns whether that completes the pair."""
        if self.ended:
            return False
        if half is Role.STABLE:
            self.stable = word if self.stable is None else self.stable
        else:
            self.canary = word if self.canary is None else self.canary
        self.ended = self.stable is not None and self.canary is not None
        return self.ended

    def give_up(self) -> bool:
        """End it as nobody's. Returns whether that ends it."""
        ended, self.ended = self.ended, True
        return not ended
