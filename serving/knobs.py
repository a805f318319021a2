"""What may be set about picking endpoints and about queues: plain values with their defaults and bounds. Pure.

They stand apart from the code that obeys them (`scoring`, `endpoints`, `queueing`), since that may come compiled
(docs/adr/0008), and pydantic reads these classes to check a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

from serving.errors import ServingError


class InvalidPicking(ServingError, ValueError):
    """Endpoints can't be picked like this."""


@dataclass(frozen=True, slots=True)
class Picking:
    """How endpoints are picked. The defaults suit engines with prefix caches; all of it may be set.

    With both weights 0 and `imbalance_percent` None it is round robin; with `prefix_weight` 0 least outstanding work.

    Raises:
        InvalidPicking: a number is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    load_weight: float = 1.0
    """Of the load scorer: 1 for an idle endpoint, 0 at the bound."""
    prefix_weight: float = 2.0
    """Of the prefix scorer: the matched part of the prompt. At 2 a whole match wins up to the bound, and one of a
    quarter when the load differs by less than half the bound. Set 0 for engines without a prefix cache: there affinity
    gains nothing and costs a quarter to a half more time to first token under load."""
    imbalance_percent: float | None = 25.0
    """An endpoint is a candidate while its work is at most this much above the mean (plus the slack); None: always.
    The epsilon of consistent hashing with bounded loads."""
    slack_tokens: int = 512
    """Work above the mean that never matters: a few requests more cost a continuous batch little. In the replay of
    `benchmarks.prefix_workload` 512 is best or near it; 2048 costs two hot prompts a third of their gain."""
    slow_start_s: float = 30.0
    """A fresh endpoint's weight grows from 10 % to 100 % in this time."""
    slow_start_requests: int = 50
    """Or with so many requests served, whichever comes first."""
    failures_to_eject: int = 5
    """Bad answers in a row, a 5xx or one that was cut, after which an endpoint is ejected (Envoy's default)."""
    max_ejection_percent: float = 50.0
    """Ejections for bad answers stop here, and always before the last endpoint."""

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, float | None, float, float], ...] = (
            ("load_weight", self.load_weight, 0, 1000),
            ("prefix_weight", self.prefix_weight, 0, 1000),
            ("imbalance_percent", self.imbalance_percent, 0, 10_000),
            ("slack_tokens", self.slack_tokens, 0, 10**9),
            ("slow_start_s", self.slow_start_s, 0, 86_400),
            ("slow_start_requests", self.slow_start_requests, 0, 10**6),
            ("failures_to_eject", self.failures_to_eject, 1, 10_000),
            ("max_ejection_percent", self.max_ejection_percent, 0, 100),
        )
        for name, value, least, most in ranges:
            if value is not None and not least <= value <= most:
                raise InvalidPicking(f"picking: {name} is {value}; give a number from {least} to {most}")


LEAST_WORK = Picking(prefix_weight=0)
ROUND_ROBIN = Picking(load_weight=0, prefix_weight=0, imbalance_percent=None, slow_start_s=0)


class InvalidQueue(ServingError, ValueError):
    """Bounds that no queue can have."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How much may be under way and wait, for one model at one gateway.

    Raises:
        InvalidQueue: a number is out of range.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    endpoint_concurrency: int | None = 256
    """Requests under way per ready endpoint: what vLLM batches at once by default, so the queue of the engine stays
    short and this one, which knows priorities, decides. None: as many as come, and then nothing ever waits."""
    most_waiting: int = 1024
    """Four full batches of one endpoint: what is beyond would wait longer than clients do."""
    most_waiting_tokens: int = 4_000_000
    """Bounds the memory of waiting bodies to about 16 MB, and the wait when prompts are long."""
    wait_s: float = 60.0
    """The longest that a request may wait, whatever its deadline."""

    def __post_init__(self) -> None:
        bounds = (self.most_waiting, self.most_waiting_tokens, self.wait_s)
        if min(bounds) < 0 or (self.endpoint_concurrency is not None and self.endpoint_concurrency < 1):
            raise InvalidQueue(f"{self}: endpoint_concurrency is at least 1 or null, the others at least 0")
